"""Weights that a test draws without a seed of its own are the same in every run and order."""

import pytest


@pytest.fixture(autouse=True)
def _seed():
    try:
        import torch
    except ImportError:
        return
    torch.manual_seed(0)
