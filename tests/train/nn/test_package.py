"""The public names of the training wing: lazy, complete, and clear about what is missing."""

import importlib
import subprocess
import sys

import pytest

import skerry.train
from skerry.core.errors import MissingExtra


def test_importing_the_wing_loads_no_torch():
    code = "import sys, skerry.train, skerry.train.nn as n; n.__all__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_name_resolves_in_the_wing_and_in_nn():
    pytest.importorskip("torch", reason="needs the extra 'deep'")
    for name in skerry.train.nn.__all__:
        assert getattr(skerry.train.nn, name) is getattr(skerry.train, name)
        assert name in importlib.import_module(skerry.train.nn.NAMES[name]).__all__


def test_a_missing_package_names_its_extra(monkeypatch):
    torch = pytest.importorskip("torch", reason="needs the extra 'deep'")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match=r"skerry\[deep\]"):
        skerry.train.convert_transformers(torch.nn.Linear(2, 2), norm="gated")
