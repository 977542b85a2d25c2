"""Rounding to nearest and GPTQ: golden values, the published form, grids, damping and fallbacks."""

import numpy as np
import pytest
import torch

from skerry.core.errors import ModelError, ParameterError, SkerryWarning
from skerry.quant.numerics import AffineGrid
from skerry.quant.solvers import GPTQ, RTN
from skerry.quant.solvers.layer import column_order, feedback_factor, min_max
from skerry.quant.statistics import LayerStatistics

GRIDS = [
    AffineGrid(3, symmetric=False),
    AffineGrid(4, group_size=16),
    AffineGrid(3, group_size=0),
    AffineGrid(2, symmetric=False, group_size=8, axis=0),
    AffineGrid(3, axis=0),
    AffineGrid(3, group_size=16, symmetric=False, scale_dtype="bfloat16"),
    AffineGrid(4, full_range=True),
]


def published_gptq(W, gram, grid, damp):
    """The paper's loop, with the Cholesky factor of the inverse, one column at a time."""
    H = gram + damp * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    U = torch.linalg.cholesky(torch.linalg.inv(H), upper=True)
    scale, zero = grid.fit(W)
    w, V = W.double().clone(), torch.zeros_like(W, dtype=torch.float64)
    for j in range(W.shape[1]):
        V[:, j] = grid.values(grid.codes(w.float(), scale, zero), scale, zero)[:, j].double()
        w[:, j:] -= torch.outer((w[:, j] - V[:, j]) / U[j, j], U[j, j:])
    return V.float()


def test_golden(golden):
    layer, grid = golden
    rounded = RTN().solve(layer.W, layer.statistics, grid)
    assert rounded.dense().tolist() == [[0.0, 0.5, 1.0, 1.0]]
    assert rounded.objective == pytest.approx(0.76)
    solved = GPTQ(damp=0.0, act_order=False).solve(layer.W, layer.statistics, grid)
    assert solved.dense().tolist() == [[0.0, 0.0, 0.5, 1.0]]
    assert solved.objective == pytest.approx(0.46)


def test_feedback_without_inverse_is_the_published_one(make_layer):
    layer = make_layer(24, 150)
    for grid in (AffineGrid(3, symmetric=False), AffineGrid(3, group_size=50)):
        found = GPTQ(damp=0.02, act_order=False).solve(layer.W, layer.statistics, grid)
        torch.testing.assert_close(found.dense(), published_gptq(layer.W, layer.gram, grid, 0.02))


def test_act_order_is_a_permutation_of_the_problem(make_layer):
    layer = make_layer(16, 40)
    order = column_order(layer.gram, True)
    grid = AffineGrid(3, symmetric=False)
    found = GPTQ(act_order=True).solve(layer.W, layer.statistics, grid).dense()
    permuted = LayerStatistics(tokens=300, gram=layer.gram[order][:, order])
    expected = GPTQ(act_order=False).solve(layer.W[:, order], permuted, grid).dense()
    torch.testing.assert_close(found[:, order], expected)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_diagonal_gram_matrix_gives_rounding(make_layer, grid):
    layer = make_layer(16, 32, diagonal=True)
    found = GPTQ().solve(layer.W, layer.statistics, grid)
    if grid.axis == 1 or grid.group_size == 0:
        assert torch.equal(found.weight.codes, grid.quantize(layer.W).codes)
    torch.testing.assert_close(found.dense(), grid.round(layer.W))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_values_lie_on_the_grid_and_the_error_is_told_right(make_layer, grid):
    layer = make_layer(16, 48)
    found = GPTQ().solve(layer.W, layer.statistics, grid)
    assert found.weight.codes.min() >= grid.qmin
    assert found.weight.codes.max() <= grid.qmax
    assert found.weight.scale.shape == grid.fit(layer.W)[0].shape
    assert found.weight.scale.dtype == grid.fit(layer.W)[0].dtype
    assert found.objective == pytest.approx(layer.error(found.dense()), rel=1e-9)
    assert found.objective < RTN().solve(layer.W, layer.statistics, grid).objective


def test_gptq_is_better_than_rounding_nearly_always(make_layer):
    grid = AffineGrid(3, symmetric=False)
    wins = 0
    for seed in range(100):
        layer = make_layer(8, 24, seed=seed, tokens=80)
        wins += (
            GPTQ().solve(layer.W, layer.statistics, grid).objective
            <= RTN().solve(layer.W, layer.statistics, grid).objective
        )
    assert wins >= 95


def test_fresh_grids_along_rows_equal_static_ones_for_the_first_group(make_layer):
    layer = make_layer(16, 48)
    grid = AffineGrid(3, group_size=16, symmetric=False)
    static = GPTQ(act_order=False).solve(layer.W, layer.statistics, grid)
    fresh = GPTQ(act_order=False, grids="fresh").solve(layer.W, layer.statistics, grid)
    assert torch.equal(fresh.weight.scale[:, 0], static.weight.scale[:, 0])
    assert not torch.equal(fresh.weight.scale[:, 1], static.weight.scale[:, 1])
    assert fresh.objective == pytest.approx(layer.error(fresh.dense()))
    with pytest.raises(ParameterError, match="act_order"):
        GPTQ(grids="fresh").solve(layer.W, layer.statistics, grid)


def test_fresh_groups_wider_than_a_block(make_layer):
    layer = make_layer(4, 320, tokens=700)
    grid = AffineGrid(4, group_size=160)
    found = GPTQ(act_order=False, grids="fresh").solve(layer.W, layer.statistics, grid)
    assert found.weight.scale.shape == (4, 2)
    assert found.objective < RTN().solve(layer.W, layer.statistics, grid).objective


def test_searched_ranges_lower_the_searched_error(make_layer):
    layer = make_layer(outliers=8)
    for grid in GRIDS:
        plain, clipped = (grid.quantize(layer.W, *min_max(layer.W, grid, clip=c)).dequantize() for c in (False, True))
        error = [float(((v - layer.W).abs() ** 2.4).sum()) for v in (plain, clipped)]
        assert error[1] < error[0]
    assert GPTQ(clip=True).solve(layer.W, layer.statistics, GRIDS[0]).objective < 1e9


def test_dead_inputs_get_weight_zero(make_layer):
    layer = make_layer(8, 20)
    X = layer.X.clone()
    X[:, [3, 7]] = 0.0
    found = GPTQ().solve(layer.W, LayerStatistics.of(X), AffineGrid(3, symmetric=False))
    assert found.info["dead_inputs"] == 2
    assert bool((found.dense()[:, [3, 7]] == 0.0).all())


def test_identical_samples_raise_the_damping_and_are_told(make_layer):
    layer = make_layer(8, 20)
    statistics = LayerStatistics.of(layer.X[:1].expand(64, -1))
    found = GPTQ(damp=0.0).solve(layer.W, statistics, AffineGrid(3))
    assert found.info["damp_raised"]
    assert found.info["damp"] == pytest.approx(0.0025)
    few = GPTQ().solve(layer.W, LayerStatistics.of(layer.X[:4]), AffineGrid(3))
    assert few.info["few_tokens"] == "4 tokens for 20 inputs"


def test_an_indefinite_matrix_falls_back_to_rounding(make_layer):
    layer = make_layer(8, 20)
    layer.gram.diagonal().sub_(layer.gram.diagonal().mean() * 0.9)
    layer.gram.diagonal().clamp_(min=1e-3)
    grid = AffineGrid(3)
    with pytest.warns(SkerryWarning, match=r"blocks\.0\.q: the Gram matrix .* not positive definite"):
        found = GPTQ().solve(layer.W, layer.statistics, grid, name="blocks.0.q")
    assert found.info["fallback"] == "rtn"
    assert torch.equal(found.weight.codes, grid.quantize(layer.W).codes)
    assert feedback_factor(layer.gram, 0.01) is None


def test_a_layer_that_sees_only_zeros_is_rounded(make_layer):
    layer = make_layer(8, 20)
    statistics = LayerStatistics(tokens=9, gram=torch.zeros(20, 20, dtype=torch.float64))
    with pytest.warns(SkerryWarning, match="all zero"):
        found = GPTQ().solve(layer.W, statistics, AffineGrid(3))
    assert torch.equal(found.weight.codes, AffineGrid(3).quantize(layer.W).codes)


@pytest.mark.parametrize("shape", [(1, 24), (24, 1), (1, 1)])
def test_one_row_or_column(make_layer, shape):
    layer = make_layer(*shape)
    for grid in (AffineGrid(3), AffineGrid(3, symmetric=False, axis=0)):
        found = GPTQ().solve(layer.W, layer.statistics, grid)
        assert found.dense().shape == shape
        assert bool(torch.isfinite(found.dense()).all())


def test_hostile_input(make_layer):
    layer = make_layer(8, 20)
    for solver in (RTN(), GPTQ()):
        broken = layer.W.clone()
        broken[2, 3] = float("nan")
        with pytest.raises(ModelError, match=r"blocks\.1\.fc1.*NaN"):
            solver.solve(broken, layer.statistics, AffineGrid(3), name="blocks.1.fc1")
        with pytest.raises(ModelError, match=r"blocks\.1\.fc1: group size 16 does not divide"):
            solver.solve(layer.W, layer.statistics, AffineGrid(3, group_size=16), name="blocks.1.fc1")
        with pytest.raises(ModelError, match="must be a matrix"):
            solver.solve(layer.W[0], layer.statistics, AffineGrid(3))
    with pytest.raises(ModelError, match="needs the 'gram'"):
        GPTQ().solve(layer.W, LayerStatistics(), AffineGrid(3))
    with pytest.raises(ModelError, match="does not fit"):
        GPTQ().solve(layer.W[:, :-1], layer.statistics, AffineGrid(3))
    layer.gram[0, 0] = float("inf")
    with pytest.raises(ModelError, match="Gram matrix"):
        GPTQ().solve(layer.W, layer.statistics, AffineGrid(3))
    with pytest.raises(ParameterError):
        GPTQ(damp=-1.0)
    with pytest.raises(ParameterError):
        GPTQ(grids="other")
    with pytest.raises(ModelError, match="uniform grids"):
        GPTQ().solve(layer.W, make_layer(8, 20).statistics, object())


def test_threads_change_no_code(make_layer):
    import numba

    layer = make_layer(64, 256, tokens=600)
    found = []
    threads = torch.get_num_threads()
    for n in (1, 2):
        torch.set_num_threads(n)
        numba.set_num_threads(min(n, numba.config.NUMBA_NUM_THREADS))
        found.append(GPTQ().solve(layer.W, layer.statistics, AffineGrid(3)).weight.codes.numpy())
    torch.set_num_threads(threads)
    assert np.array_equal(*found)
