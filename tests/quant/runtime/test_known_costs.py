"""Costs that were kept decide on the machine that they were measured on, and on no other."""

import pytest
import torch

import skerry.quant as quant
from skerry.core.errors import SkerryWarning
from skerry.core.machine import processor
from skerry.quant.runtime.choose import BUCKETS, CostTable, known_costs

SLOW = {f"int8-row|float|{b}": {"w8a16": 9.0, "reference": 1.0} for b in BUCKETS}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SKERRY_CACHE", str(tmp_path))


def test_costs_of_another_processor_are_left_alone():
    assert known_costs() is None
    mine = CostTable(SLOW, 64, 2, processor())
    mine.save()
    assert known_costs() == mine
    CostTable(SLOW, 64, 2, "another").save()
    with pytest.warns(SkerryWarning, match="another processor"):
        assert known_costs() is None


def test_layers_get_the_kernel_that_was_measured_fastest():
    layer = torch.nn.Sequential(torch.nn.Linear(64, 64))
    assert quant.use_kernels(quant.quantize(layer, "rtn", "w8a16")) == {"0": "w8a16"}
    CostTable(SLOW, 64, 2, processor()).save()
    assert quant.use_kernels(quant.quantize(layer, "rtn", "w8a16")) == {"0": "reference"}
