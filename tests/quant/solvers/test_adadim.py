"""AdaDim: golden values of the brief, its invariants, the decision by the parent's output, hostile input."""

import pytest
import torch

from skerry.core.errors import ModelError, ParameterError
from skerry.quant.numerics import AffineGrid
from skerry.quant.solvers import GPTQ, RTN, AdaDim, Tiled
from skerry.quant.solvers.adadim import unextended
from skerry.quant.statistics import LayerStatistics

W = torch.tensor([[0.1, -0.3, 2, 0.2], [-0.05, 0.2, -3, 0.3], [0.15, -0.1, 1, -0.2], [0.02, 0.25, -2, 0.1]])
POWER = torch.diag(torch.tensor([100.0, 1, 1, 1], dtype=torch.float64))
GRID = AffineGrid(3, symmetric=False, group_size=16)


def grid(bits, size=4):
    return AffineGrid(bits, symmetric=False, group_size=size)


@pytest.mark.parametrize(
    ("bits", "oc", "ic"), [(2, 4.2050, 1.008333), (3, 1.479796, 0.184388), (4, 0.611011, 0.011578)]
)
def test_golden(bits, oc, ic):
    found = AdaDim().solve(W, LayerStatistics(tokens=4, gram=POWER), grid(bits))
    assert found.info["dim"] == "ic"
    assert found.info["error_oc"] == pytest.approx(oc, abs=1e-4 if bits == 2 else 1e-5)
    assert found.info["error_ic"] == pytest.approx(ic, abs=1e-6)
    assert found.info["outlier_score"] == 100.0


def test_golden_columns_and_the_transposed_weight():
    for axis, expected in (
        (1, [0.013359, 0.051020, 0.036122, 0.056735]),
        (0, [0.000380, 0.002143, 0.142857, 0.001429]),
    ):
        error = (AffineGrid(3, symmetric=False, group_size=4, axis=axis).round(W) - W).square().sum(0)
        torch.testing.assert_close(error, torch.tensor(expected), atol=1e-6, rtol=0)
    found = AdaDim().solve(W.T.contiguous(), LayerStatistics(tokens=4, gram=torch.eye(4).double()), grid(3))
    assert found.info["dim"] == "oc"
    assert found.info["error_oc"] == pytest.approx(0.146808, abs=1e-6)
    assert found.info["error_ic"] == pytest.approx(0.157237, abs=1e-6)


@pytest.mark.parametrize("base", [RTN(), GPTQ()])
def test_at_or_under_both_directions(make_layer, base):
    for seed in range(6):
        layer = make_layer(32, 48, seed=seed, outliers=20)
        layer.W[:, :3] /= 25
        layer.gram[:, :3] *= 25
        layer.gram[:3] *= 25
        both = [
            base.solve(layer.W, layer.statistics, AffineGrid(3, symmetric=False, group_size=16, axis=a)).objective
            for a in (1, 0)
        ]
        found = AdaDim(base, choose="base").solve(layer.W, layer.statistics, GRID)
        assert found.objective == pytest.approx(min(both), rel=1e-9)
        assert found.info["dim"] == ("oc" if both[0] <= both[1] else "ic")
        assert found.objective == pytest.approx(layer.error(found.dense()), rel=1e-6)


def test_the_base_solver_runs_in_the_dimension_that_rounding_chose(make_layer):
    layer = make_layer(32, 48)
    found = AdaDim(GPTQ()).solve(layer.W, layer.statistics, GRID)
    axis = 1 if found.info["dim"] == "oc" else 0
    expected = GPTQ().solve(layer.W, layer.statistics, AffineGrid(3, symmetric=False, group_size=16, axis=axis))
    assert torch.equal(found.weight.codes, expected.weight.codes)
    assert found.info["damp"] == 0.01
    rtn = AdaDim().solve(layer.W, layer.statistics, GRID)
    assert (rtn.info["error_oc"], rtn.info["error_ic"]) == (found.info["error_oc"], found.info["error_ic"])
    assert found.objective < rtn.objective


@pytest.mark.parametrize("shape", [(32, 32), (32, 48)])
def test_along_columns_is_along_rows_of_the_transposed_weight(make_layer, shape):
    layer = make_layer(*shape)
    ic = AffineGrid(3, symmetric=False, group_size=16, axis=0).round(layer.W)
    assert torch.equal(ic, AffineGrid(3, symmetric=False, group_size=16).round(layer.W.T.contiguous()).T)


def test_a_scaled_column_changes_itself_alone(make_layer):
    layer = make_layer(32, 48)
    other = layer.W.clone()
    other[:, 5] *= 8.0
    ic, oc = (AffineGrid(3, symmetric=False, group_size=16, axis=a) for a in (0, 1))
    expected = ic.round(layer.W)
    expected[:, 5] *= 8.0
    torch.testing.assert_close(ic.round(other), expected)
    changed = (oc.round(other) != oc.round(layer.W)).any(0).nonzero().flatten()
    assert changed.min() >= 0
    assert changed.max() < 16
    assert len(changed) > 1


def test_moving_scale_from_weights_to_inputs_changes_nothing_along_columns(make_layer):
    layer = make_layer(32, 48)
    t = torch.ones(48, dtype=torch.float64)
    t[7] = 100.0
    moved = LayerStatistics(tokens=300, gram=layer.gram * torch.outer(t, t))
    weight = (layer.W.double() / t).float()
    ic = AdaDim(dims=("ic",))
    found, expected = ic.solve(weight, moved, GRID), ic.solve(layer.W, layer.statistics, GRID)
    assert found.objective == pytest.approx(expected.objective, rel=1e-5)
    oc = AdaDim(dims=("oc",))
    before, after = oc.solve(layer.W, layer.statistics, GRID), oc.solve(weight, moved, GRID)
    assert abs(after.objective / before.objective - 1) > 0.05


def test_extreme_group_sizes(make_layer):
    layer = make_layer(32, 48)
    for axis in (0, 1):
        torch.testing.assert_close(AffineGrid(3, symmetric=False, group_size=1, axis=axis).round(layer.W), layer.W)
    found = AdaDim(dims=("ic",)).solve(layer.W, layer.statistics, AffineGrid(3, symmetric=False, group_size=32))
    assert found.weight.scale.shape == (1, 48)


def test_uncorrelated_inputs_make_gptq_round(make_layer):
    layer = make_layer(32, 48, diagonal=True)
    plain, fed = (AdaDim(b).solve(layer.W, layer.statistics, GRID) for b in (RTN(), GPTQ()))
    assert plain.info["dim"] == fed.info["dim"]
    assert torch.equal(plain.dense(), fed.dense())


def test_bits_per_weight_are_those_of_the_saved_tensors(make_layer):
    layer = make_layer(128, 256)
    big = AffineGrid(3, symmetric=False, group_size=128, scale_dtype="float16")
    for dim in ("oc", "ic"):
        found = AdaDim(dims=(dim,)).solve(layer.W, layer.statistics, big).weight
        saved = sum(t.numel() * t.element_size() for t in found.tensors().values())
        assert saved == pytest.approx(found.nbytes, rel=0.015)
        assert 8 * found.nbytes / layer.W.numel() == pytest.approx(3 + 19 / 128, rel=0.01)


def test_decisions_are_deterministic_and_prefer_the_first_of_equals(make_layer):
    layer = make_layer(32, 48)
    first, second = (AdaDim().solve(layer.W, layer.statistics, GRID) for _ in range(2))
    assert first.info == second.info
    assert AdaDim().solve(layer.W * 0, layer.statistics, GRID).info["dim"] == "oc"


def test_a_given_loss_decides(make_layer):
    layer = make_layer(32, 48)
    ic = AffineGrid(3, symmetric=False, group_size=16, axis=0).round(layer.W)
    found = AdaDim().solve(
        *(layer.W, layer.statistics, GRID), loss=lambda V: float(not torch.equal(V, ic)), parent="blocks.0.attention"
    )
    assert found.info["dim"] == "ic"
    assert found.info["parent"] == "blocks.0.attention"
    assert found.info["reference"] == "current"
    assert found.objective == pytest.approx(layer.error(ic))


def test_official_grids_clip_groups_of_one_sign():
    positive = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    scale, zero = unextended(positive, grid(2))
    assert (scale.item(), zero.item()) == (1.0, -2)
    found = AdaDim(dims=("oc",), official=True).solve(positive, LayerStatistics(gram=torch.eye(4).double()), grid(2))
    assert found.dense().tolist() == [[1.0, 2.0, 3.0, 3.0]]
    mixed = torch.tensor([[-1.0, 0.2, 2.0, 0.4]])
    torch.testing.assert_close(unextended(mixed, grid(3))[0], grid(3).fit(mixed)[0])


@pytest.mark.parametrize("dim", ["oc", "ic"])
def test_official_grids_in_gptq(make_layer, dim):
    layer = make_layer(32, 48)
    layer.W.abs_().add_(0.5)
    found = AdaDim(GPTQ(), dims=(dim,), official=True).solve(layer.W, layer.statistics, GRID)
    expected = unextended(layer.W, found.weight.grid)[0]
    assert found.weight.scale.shape == expected.shape
    assert found.weight.zero.max() == found.weight.grid.qmin
    if dim == "oc":
        torch.testing.assert_close(found.weight.scale, expected)
    assert found.objective == pytest.approx(layer.error(found.dense()), rel=1e-6)


def test_groups_that_do_not_divide_are_reduced_and_told(make_layer):
    layer = make_layer(8, 48)
    found = AdaDim(dims=("ic",)).solve(layer.W, layer.statistics, GRID)
    assert found.info["group_size"] == 8
    assert found.info["reduced_from"] == 16


@pytest.mark.parametrize("base", [RTN(), GPTQ()])
def test_tiles_as_a_third_candidate(make_layer, base):
    layer = make_layer(32, 48)
    solver = AdaDim(base, dims=("oc", "ic", "tensor2d"))
    assert "error_tensor2d" in solver.solve(layer.W, layer.statistics, GRID).info
    found = AdaDim(base, dims=("tensor2d",)).solve(layer.W, layer.statistics, GRID)
    assert isinstance(found.weight, Tiled)
    again = Tiled.from_tensors(found.weight.meta(), found.weight.tensors())
    assert torch.equal(again.dequantize(), found.dense())
    assert found.weight.scale.shape == (2, 6)
    assert found.objective == pytest.approx(layer.error(found.dense()), rel=1e-6)
    if isinstance(base, GPTQ):
        assert found.objective < AdaDim(dims=("tensor2d",)).solve(layer.W, layer.statistics, GRID).objective
        with pytest.raises(ModelError, match="do not divide"):
            solver.solve(layer.W[:20], layer.statistics, GRID)


def test_a_tile_of_one_row_is_a_group(make_layer):
    layer = make_layer(32, 48)
    tiled = Tiled.rounded(layer.W, GRID, (1, 16))
    assert torch.equal(tiled.dequantize(), GRID.round(layer.W))


def test_the_engine_decides_by_the_parents_output(tiny, inputs):
    from skerry.quant.engine import quantize_model
    from skerry.quant.recipe import Recipe

    model = tiny("llama")
    recipe = Recipe("adadim", AffineGrid(3, symmetric=False, group_size=16), AdaDim(), propagate="float")
    quantized, report = quantize_model(model, recipe, calibration=inputs("llama"))
    queries = [r for r in report.layers if r.name.endswith("q_proj")]
    assert queries
    for layer in report.layers:
        assert layer.info["dim"] == min(("oc", "ic"), key=lambda d: layer.info[f"error_{d}"])
        assert layer.info["reference"] == "current"
    assert all("attn" in q.info["parent"] and not q.info["parent"].endswith("q_proj") for q in queries)


def test_hostile_input(make_layer):
    layer = make_layer(8, 20)
    with pytest.raises(ModelError, match=r"layers\.3\.q.*NaN"):
        AdaDim().solve(layer.W * float("nan"), layer.statistics, GRID, name="layers.3.q")
    X = layer.X.clone()
    X[:, 2] = 0.0
    for base in (RTN(), GPTQ()):
        found = AdaDim(base).solve(layer.W, LayerStatistics.of(X), GRID)
        assert bool(torch.isfinite(found.dense()).all())
        for shape in ((1, 24), (24, 1), (1, 1)):
            small = make_layer(*shape)
            assert AdaDim(base).solve(small.W, small.statistics, GRID).dense().shape == shape
    for wrong in ({"dims": ()}, {"dims": ("row",)}, {"reference": "x"}, {"choose": "x"}, {"base": object()}):
        with pytest.raises(ParameterError):
            AdaDim(**wrong)
