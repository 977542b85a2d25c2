"""The choice of a kernel: default order, measured costs, what saturating processors get."""

import json

import pytest
import torch

from skerry.core.errors import ModelError, ParameterError
from skerry.quant.activation import TokenDynamic
from skerry.quant.formats.mixed_decomposition import MixedInt8, OutlierSplit
from skerry.quant.formats.twin_log import TwinLog
from skerry.quant.numerics import AffineGrid
from skerry.quant.parts import Solved
from skerry.quant.runtime import choose as module
from skerry.quant.runtime.capability import int4_products, int8_products
from skerry.quant.runtime.choose import CostTable, choose, cost_path, measure_costs, prepare_kernel

pytestmark = pytest.mark.skipif(not (int8_products() and int4_products()), reason="no exact 8-bit or 4-bit products")
W = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))


def test_default_order():
    eight = Solved(AffineGrid(8).quantize(W))
    assert choose(eight, TokenDynamic(8)).name == "w8a8"
    assert choose(eight, None).name == "w8a16"
    assert choose(eight, OutlierSplit()).name == "mixed_int8"
    assert choose(Solved(MixedInt8().quantize(W)), OutlierSplit()).name == "mixed_int8"
    assert choose(Solved(AffineGrid(4, group_size=32).quantize(W)), None).name == "w4a16"
    assert choose(Solved(TwinLog().quantize(W)), None).name == "reference"


def test_without_exact_products_sums_of_pairs_or_bfloat16(monkeypatch):
    monkeypatch.setattr("skerry.quant.runtime.w8a8.int8_products", lambda device: False)
    monkeypatch.setattr("skerry.quant.runtime.mixed_int8.int8_products", lambda device: False)
    eight = Solved(AffineGrid(8).quantize(W))
    assert choose(eight, TokenDynamic(8)).name == "int8_exact"
    assert choose(eight, OutlierSplit()).name == "w8a16"


def test_costs_decide_and_survive(tmp_path, monkeypatch):
    monkeypatch.setenv("SKERRY_CACHE", str(tmp_path / "cache"))
    entries = {f"int4-row|token_dynamic|{b}": {"w8a8": 1.0, "w4a16": c} for b, c in ((1, 0.5), (32, 2.0), (512, 9.0))}
    table = CostTable(entries, 64, 2, "here")
    assert table.save() == cost_path()
    assert CostTable.load() == table
    four = Solved(AffineGrid(4).quantize(W))
    assert choose(four, TokenDynamic(8), tokens=1, table=table).name == "w4a16"
    assert choose(four, TokenDynamic(8), tokens=400, table=table).name == "w8a8"
    assert choose(four, TokenDynamic(8), table=table).name == "w8a8"
    assert choose(Solved(AffineGrid(8).quantize(W)), TokenDynamic(8), table=table).name == "w8a8"  # not measured


@pytest.mark.parametrize(
    "text", ["", "[1]", '{"entries": 3}', '{"other": 1}', json.dumps({"entries": {"a": {"b": "c"}}})]
)
def test_a_damaged_table_says_so(tmp_path, text):
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(ModelError, match=r"t\.json"):
        CostTable.load(tmp_path / "t.json")


def test_measuring_covers_every_kind(monkeypatch):
    table = measure_costs(64, seconds=0.001)
    assert len(table.entries) == 15
    assert set(table.entries["int4-row|token_dynamic|1"]) == {"w8a8", "int8_exact", "w4a16", "w8a16"}
    assert all(ms > 0 for costs in table.entries.values() for ms in costs.values())


def test_by_name():
    four = Solved(AffineGrid(4, group_size=32).quantize(W))
    assert prepare_kernel(four, None, name="w8a16").name == "w8a16"
    assert prepare_kernel(four, None).name == "w4a16"
    with pytest.raises(ModelError, match="w8a8"):
        prepare_kernel(four, TokenDynamic(8), name="w8a8")
    with pytest.raises(ParameterError, match="unknown kernel"):
        prepare_kernel(four, None, name="w4a4")
    assert module.KERNELS
