"""Solvers as parts of a recipe: plain settings, lazily imported, the engine runs every one of them."""

import dataclasses

import pytest
import torch

from skerry.quant import solvers
from skerry.quant.engine import quantize_model
from skerry.quant.numerics import AffineGrid
from skerry.quant.recipe import Recipe
from skerry.quant.solvers import AWQ, GPTQ, RTN, AdaDim, QuantEase, SpQR

ALL = [
    RTN(clip=True),
    GPTQ(damp=0.02, act_order=False, grids="static"),
    AWQ(steps=5),
    SpQR(threshold=0.3),
    QuantEase(outliers=0.02, structured=True),
    AdaDim(GPTQ(), dims=("ic", "oc"), reference="float"),
]


def test_all_names_can_be_imported():
    for name in solvers.__all__:
        assert getattr(solvers, name).__name__ == name


@pytest.mark.parametrize("solver", ALL, ids=lambda s: type(s).__name__)
def test_settings_survive_json_and_cannot_be_changed(solver):
    recipe = Recipe("test", AffineGrid(3), solver)
    assert Recipe.from_json(recipe.to_json()) == recipe
    with pytest.raises(dataclasses.FrozenInstanceError):
        solver.damp = 1.0


@pytest.mark.parametrize("solver", ALL, ids=lambda s: type(s).__name__)
def test_the_engine_runs_it(tiny, inputs, solver):
    grid = AffineGrid(4, symmetric=False, group_size=16)
    model, report = quantize_model(tiny("opt"), Recipe("test", grid, solver), calibration=inputs("opt"))
    assert report.layers
    assert all(layer.signal_to_noise > 5 for layer in report.layers)
    assert all(torch.isfinite(torch.tensor(layer.objective)) or isinstance(solver, RTN) for layer in report.layers)


def test_results_go_where_the_weight_was(make_layer):
    from skerry.quant.parts import on_device

    layer = make_layer(16, 32)
    grid = AffineGrid(3, symmetric=False, group_size=16)
    for solver in ALL[:-1]:
        away = on_device(solver.solve(layer.W, layer.statistics, grid), torch.device("meta"))
        assert away.weight.dequantize().device.type == "meta"
        assert away.sparse is None or away.sparse.values.device.type == "meta"
        assert away.weight.shape == (16, 32)
