"""AWQ's searches: never worse than rounding, protection of active inputs, ranges, hostile input."""

import pytest
import torch

from skerry.core.errors import ModelError, ParameterError
from skerry.quant.numerics import AffineGrid
from skerry.quant.solvers import AWQ, RTN, ColumnScaled
from skerry.quant.solvers.scale_search import channel_importance, search_ranges, search_scale
from skerry.quant.statistics import LayerStatistics

GRIDS = [AffineGrid(3, symmetric=False), AffineGrid(4, group_size=16), AffineGrid(3, group_size=0)]


def planted(make_layer, seed=0):
    layer = make_layer(16, 48, seed=seed)
    X = layer.X.clone()
    X[:, :2] *= 40.0
    layer.statistics = LayerStatistics.of(X)
    return layer


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("weight_aware", [False, True])
def test_never_worse_than_rounding_and_far_better_with_active_inputs(make_layer, grid, weight_aware):
    for seed in range(4):
        layer = make_layer(16, 48, seed=seed)
        rounded = RTN().solve(layer.W, layer.statistics, grid).objective
        found = AWQ(weight_aware=weight_aware).solve(layer.W, layer.statistics, grid)
        assert found.objective <= rounded * (1 + 1e-9)
        assert found.objective == pytest.approx(layer.error(found.dense()), rel=1e-6)
        layer = planted(make_layer, seed)
        rounded = RTN().solve(layer.W, layer.statistics, grid).objective
        found = AWQ(weight_aware=weight_aware).solve(layer.W, layer.statistics, grid)
        assert found.objective < (0.5 if grid.group_size else 0.9) * rounded
        assert found.info["ratio"] > 0


def test_the_stored_weight_is_what_its_parts_say(make_layer):
    layer = planted(make_layer)
    found = AWQ().solve(layer.W, layer.statistics, GRIDS[1])
    assert isinstance(found.weight, ColumnScaled)
    again = ColumnScaled.from_tensors(found.weight.meta(), found.weight.tensors())
    assert torch.equal(again.dequantize(), found.weight.dequantize())
    assert found.weight.nbytes == found.weight.weight.nbytes + 2 * 48
    assert found.weight.shape == (16, 48)


def test_the_scale_is_a_power_of_the_inputs(make_layer):
    mean_abs = torch.tensor([16.0, 1.0, 4.0])
    found = search_scale(mean_abs, lambda s: abs(float(s[0]) - 2.0))
    assert found.ratio == 0.5
    torch.testing.assert_close(found.scale, torch.tensor([2.0, 0.5, 1.0]))
    assert search_scale(mean_abs, lambda s: float((s - 1).abs().sum())).error == 0.0
    with pytest.raises(ModelError):
        search_scale(torch.tensor([float("nan")]), lambda s: 0.0)


def test_importance_is_relative_to_the_group():
    W = torch.tensor([[1.0, 2.0, 30.0, 60.0]])
    assert channel_importance([W, W], AffineGrid(4, group_size=2)).tolist() == [0.5, 1.0, 0.5, 1.0]


@pytest.mark.parametrize("bits", [2, 3])
def test_searched_ranges_lower_every_groups_error(make_layer, bits):
    layer = make_layer(16, 48, outliers=10)
    grid = AffineGrid(bits, group_size=16)

    def errors(V):
        E = (layer.W - V).double().reshape(16, 3, 16)
        blocks = layer.gram.reshape(3, 16, 3, 16)[range(3), :, range(3), :]
        return torch.einsum("ogi,gij,ogj->og", E, blocks, E)

    plain, searched = grid.round(layer.W), grid.values(
        grid.codes(layer.W, *search_ranges(layer.W, grid, layer.gram)), *search_ranges(layer.W, grid, layer.gram)
    )  # fmt: skip
    assert bool((errors(searched) <= errors(plain) * (1 + 1e-5)).all())
    assert errors(searched).sum() < errors(plain).sum()


def test_hostile_input(make_layer):
    layer = make_layer(8, 20)
    X = layer.X.clone()
    X[:, 3] = 0.0
    found = AWQ().solve(layer.W, LayerStatistics.of(X), GRIDS[0])
    assert found.info["dead_inputs"] == 1
    assert bool(torch.isfinite(found.dense()).all())
    silent = AWQ().solve(layer.W, LayerStatistics.of(torch.zeros(4, 20)), GRIDS[0])
    assert silent.objective == 0.0
    broken = layer.W * float("nan")
    with pytest.raises(ModelError, match=r"fc\.2.*NaN"):
        AWQ().solve(broken, layer.statistics, GRIDS[0], name="fc.2")
    with pytest.raises(ModelError, match="does not divide"):
        AWQ().solve(layer.W, layer.statistics, GRIDS[1])
    with pytest.raises(ModelError, match="mean_abs"):
        AWQ().solve(layer.W, LayerStatistics.of(X, {"gram"}), GRIDS[0])
    with pytest.raises(ParameterError):
        AWQ(steps=0)


@pytest.mark.parametrize("shape", [(1, 24), (24, 1), (1, 1)])
def test_one_row_or_column(make_layer, shape):
    layer = make_layer(*shape)
    assert AWQ().solve(layer.W, layer.statistics, GRIDS[0]).dense().shape == shape
