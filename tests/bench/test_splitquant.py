"""The rival that cuts tails off: its range is that of all but a thousandth of the weights."""

import torch

from skerry.bench.splitquant import PercentileClip, _clipped
from skerry.quant.numerics import AffineGrid
from skerry.quant.statistics import LayerStatistics


def test_one_scale_of_all_but_the_tails():
    W = torch.linspace(-1.0, 1.0, 10_000).reshape(50, 200)
    W[3, 7] = 40.0
    grid = AffineGrid(3, symmetric=False, group_size=0)
    found = PercentileClip().solve(W, LayerStatistics(), grid).weight
    assert found.scale.shape == (1, 1)
    assert float(found.scale) < 0.3 < float(grid.quantize(W).scale)
    assert 0.9 < float(found.dequantize().max()) < 1.2
    error, plain = (float((V - W).square().sum()) for V in (found.dequantize(), grid.round(W)))
    assert error < 1600.0 and plain > 1600.0  # one weight of 40 against the steps of all others
    assert _clipped("w3a16").solver == PercentileClip()
