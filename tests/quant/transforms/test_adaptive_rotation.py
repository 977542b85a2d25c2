"""LRQ-DiT's rotations: golden values and invariants."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import skerry.quant as quant
from skerry.core.errors import ParameterError
from skerry.quant.calibration import output_of
from skerry.quant.engine import quantize_model
from skerry.quant.linear import BlockRotation
from skerry.quant.recipe import Recipe
from skerry.quant.transforms.adaptive_rotation import (
    AdaptiveRotation,
    base_rotation,
    greedy_rotation,
    root_mean_square,
    zigzag,
)


def test_golden_base_rotation():
    wanted = torch.tensor(
        [
            [0.5, 0.5, 0.5, 0.5],
            [0.0, 0.408248, -0.816497, 0.408248],
            [-0.866025, 0.288675, 0.288675, 0.288675],
            [0.0, -0.707107, 0.0, 0.707107],
        ],
        dtype=torch.float64,
    )
    torch.testing.assert_close(base_rotation(4), wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("n", [2, 7, 32, 128])
def test_rotations_are_orthogonal(n):
    eye = torch.eye(n, dtype=torch.float64)
    E = base_rotation(n)
    torch.testing.assert_close(E @ E.T, eye, atol=1e-9, rtol=0)
    X = torch.randn(40, 2 * n, generator=torch.Generator().manual_seed(n))
    X[:, 1] *= 30
    R = greedy_rotation(X, n, 20, 0)
    torch.testing.assert_close(R @ R.T, eye, atol=1e-8, rtol=0)
    assert torch.equal(R, greedy_rotation(X, n, 20, 0))


def test_the_peak_never_grows_and_a_planted_channel_falls():
    X = torch.randn(512, 256, generator=torch.Generator().manual_seed(0))
    R = greedy_rotation(X, 128, 0, 0)
    assert torch.equal(R, torch.eye(128, dtype=torch.float64))
    X[:, 17] = 200.0
    changes = AdaptiveRotation()._dual(X.double(), 128)
    Y = X.double()
    for change in changes:
        Y = change(Y)
    assert float(Y.abs().max()) < float(X.abs().max()) / 5
    torch.testing.assert_close(Y.norm(dim=1), X.double().norm(dim=1))  # nothing is lost


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), loud=st.floats(1.0, 300.0), blocks=st.integers(1, 3))
def test_the_range_of_values_never_grows(seed, loud, blocks):
    """Each greedy search keeps its best step, none among them, and the permutation moves no value."""
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(40, 16 * blocks, generator=g, dtype=torch.float64)
    X[:, int(torch.randint(16 * blocks, (1,), generator=g))] *= loud
    reach = [float(X.max() - X.min())]
    for change in AdaptiveRotation(max_steps=12)._dual(X, 16):
        X = change(X)
        reach.append(float(X.max() - X.min()))
    assert reach[1] <= reach[0] * (1 + 1e-5) and reach[2] <= reach[1] * (1 + 1e-5)


@pytest.mark.parametrize("kind", ["hadamard", "dual"])
def test_weights_undo_what_inputs_get(kind):
    g = torch.Generator().manual_seed(0)
    X, W = torch.randn(50, 96, generator=g, dtype=torch.float64), torch.randn(7, 96, generator=g, dtype=torch.float64)
    X[:, 5] *= 60.0
    changes = [BlockRotation(32)] if kind == "hadamard" else AdaptiveRotation(max_steps=20)._dual(X, 32)
    Y, V = X, W
    for change in changes:
        Y, V = change(Y), change(V)
    assert float((Y @ V.T - X @ W.T).norm() / (X @ W.T).norm()) < 1e-6


def test_the_number_that_decides():
    X = torch.randn(30, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    R = base_rotation(8)
    assert root_mean_square(X @ R) == pytest.approx(root_mean_square(X))
    assert root_mean_square(X[torch.randperm(30)]) == pytest.approx(root_mean_square(X))
    assert root_mean_square(-3 * X) == pytest.approx(3 * root_mean_square(X))


def test_zigzag_deals_the_loud_channels_to_all_blocks():
    sizes = torch.arange(12.0)
    order = zigzag(sizes, 3)
    assert sorted(order.tolist()) == list(range(12))
    dealt = sizes[order].reshape(4, 3)
    assert sorted(dealt[:, 0].tolist(), reverse=True) == [11.0, 10.0, 9.0, 8.0]
    assert float(dealt.sum(1).max() - dealt.sum(1).min()) <= 4


@pytest.mark.parametrize("threshold", [0.0, float("inf")])
@pytest.mark.parametrize("family", ["llama", "opt", "bert", "vit"])
def test_the_function_stays(family, threshold, tiny, inputs):
    model, batches = tiny(family), inputs(family)
    moves = Recipe("x", transforms=(AdaptiveRotation(threshold=threshold, block=16, max_steps=8),))
    found, report = quantize_model(model, moves, calibration=batches)
    with torch.no_grad():
        exact = output_of(model(batches[0]))
        assert float((output_of(found(batches[0])) - exact).norm() / exact.norm()) < 1e-5
    assert {t["kind"] for t in report.transforms} == {"dual" if threshold == 0.0 else "hadamard"}


def test_the_recipe_chooses_layer_by_layer(tiny, inputs):
    found = quant.quantize(tiny("opt"), "lrq-dit", "w4a8", inputs("opt"), block=16)
    report = quant.report_of(found)
    for told in report.transforms:
        assert (told["kind"] == "dual") == (told["J"] >= 1.0)
    assert 4.0 < report.bits_per_weight < 9.0


@pytest.mark.parametrize("family", ["llama", "opt", "plain"])
def test_the_loudest_layers_of_the_whole_model(family, tiny, inputs):
    model, batches = tiny(family), inputs(family)
    recipe = quant.make_recipe("lrq-dit", "w4a8", threshold="quantile:0.75", block=16, max_steps=8)
    assert Recipe.from_json(recipe.to_json()) == recipe
    moves = Recipe("x", transforms=recipe.transforms)
    found, report = quantize_model(model, moves, calibration=batches)
    with torch.no_grad():
        exact = output_of(model(batches[0]))
        assert float((output_of(found(batches[0])) - exact).norm() / exact.norm()) < 1e-5
    told = report.transforms[0]
    groups = len(told["dual"]) + told["hadamard"]
    assert len(told["dual"]) == -(-groups // 4)  # the paper's few, here a quarter
    # layer by layer with the threshold that was found, the same layers are chosen
    _, again = quantize_model(
        model,
        Recipe("x", transforms=(AdaptiveRotation(told["threshold"] * (1 - 1e-5), 16, 8),)),
        calibration=batches,
    )
    assert [t["group"] for t in again.transforms if t["kind"] == "dual"] == told["dual"]


def test_groups_of_weights():
    recipe = quant.make_recipe("lrq-dit", "w3a8g64")
    assert recipe.weight.group_size == 64 and quant.make_recipe("lrq-dit", "w3a8").weight.group_size == -1


def test_settings_out_of_range():
    for threshold in ("x", "quantile:x", "quantile:2"):
        with pytest.raises(ParameterError):
            quant.make_recipe("lrq-dit", "w4a8", threshold=threshold)
    with pytest.raises(ParameterError):
        AdaptiveRotation(threshold=-1.0)
    with pytest.raises(ParameterError, match="2 to 8"):
        quant.make_recipe("lrq-dit", "w16a8")
