"""``torch.compile`` takes quantized layers as one graph, whatever multiplies them; seen without a compiler."""

import pytest
import torch

from skerry.quant.activation import TokenDynamic
from skerry.quant.formats.mixed_decomposition import MixedInt8, OutlierSplit
from skerry.quant.linear import QuantizedLinear
from skerry.quant.numerics import AffineGrid
from skerry.quant.parts import LowRank, Solved
from skerry.quant.runtime.capability import int4_products, int8_products
from skerry.quant.runtime.choose import prepare_kernel

GROUPS = AffineGrid(4, group_size=32, scale_dtype="bfloat16")
CASES = {
    "reference": (AffineGrid(8), TokenDynamic(8), True),
    "w4a16": (GROUPS, None, int4_products()),
    "w8a16": (AffineGrid(8), None, True),
    "w8a8": (AffineGrid(8), TokenDynamic(8), int8_products()),
}


def layer(weight, activation, kernel, **parts):
    g = torch.Generator().manual_seed(0)
    solved = Solved(weight.quantize(torch.randn(64, 64, generator=g)), **parts)
    found = QuantizedLinear(solved, activation, torch.ones(64))
    if kernel != "reference":
        found.set_kernel(prepare_kernel(solved, activation, torch.ones(64), name=kernel))
    return found, torch.randn(5, 64, generator=g)


@pytest.mark.parametrize("kernel", CASES)
def test_one_graph(kernel):
    weight, activation, there = CASES[kernel]
    if not there:
        pytest.skip("this processor or build of torch has no such product")
    found, x = layer(weight, activation, kernel, low_rank=LowRank(torch.ones(64, 2), torch.ones(2, 64)))
    wanted = found(x)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(found, backend="aot_eager", fullgraph=True)(x), wanted)


@pytest.mark.skipif(not int8_products(), reason="this processor has no exact 8-bit products")
def test_what_depends_on_the_data_is_cut_out_of_the_graph():
    """Which columns are outliers is known only from the input: the graph breaks there, the result stays."""
    found, x = layer(MixedInt8(), OutlierSplit(), "mixed_int8")
    x[:, 3] *= 20.0
    torch._dynamo.reset()
    assert torch.equal(torch.compile(found, backend="eager")(x), found(x))
