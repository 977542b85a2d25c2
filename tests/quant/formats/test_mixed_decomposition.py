"""LLM.int8(): golden values, every invariant of the brief, gradients, the module's state."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import skerry.quant as quant
from skerry.core.errors import ModelError, ParameterError
from skerry.quant.formats.mixed_decomposition import MixedInt8, MixedInt8Tensor, OutlierSplit, mixed_product
from skerry.quant.formats.mixed_linear import MixedInt8Linear
from skerry.quant.numerics import AffineGrid
from skerry.quant.solvers import StaticColumns
from skerry.quant.statistics import LayerStatistics

X = torch.tensor([[1.0, -2.0, 8.0, 0.5], [0.25, 3.0, -7.0, -1.5]])
W = torch.tensor([[0.5, -0.2, 0.1], [0.3, 0.4, -0.6], [-0.05, 0.02, 0.04], [1.0, -0.7, 0.2]]).T.contiguous()


def problem(tokens=7, width=96, out=20, outlier=20.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    x, w = torch.randn(tokens, width, generator=g), torch.randn(out, width, generator=g) * 0.1
    x[:, 11] *= outlier
    return x, w


def relative(y, exact):
    return float((y - exact).norm() / exact.norm())


def with_float_rows(w):
    """Codes, and the weight itself in float32, where the format keeps bfloat16."""
    stored = MixedInt8().quantize(w)
    return MixedInt8Tensor(MixedInt8("float"), stored.codes, stored.scale, w)


def test_golden_values():
    exact = X @ W.T
    y, info = mixed_product(X, with_float_rows(W), OutlierSplit())
    assert info.outlier_dims == [2]
    golden = torch.tensor([[0.013417, -1.197468, 1.719988], [-0.133229, 2.073795, -2.354202]])
    assert torch.allclose(y, golden, atol=1e-6)
    assert relative(golden, exact) == pytest.approx(0.0059050, abs=1e-6)
    plain, info = mixed_product(X, MixedInt8().quantize(W), OutlierSplit(math.inf))
    assert info.outlier_dims == []
    assert relative(plain, exact) == pytest.approx(0.0151496, abs=1e-6)


def test_infinite_threshold_is_plain_vector_wise():
    x, w = problem()
    stored = MixedInt8().quantize(w)
    y, _ = mixed_product(x, stored, OutlierSplit(math.inf))
    scale = x.abs().amax(1, keepdim=True) / 127
    codes = torch.round(x / scale)
    assert torch.equal(y, (codes @ stored.codes.float().T) * (scale * stored.scale[:, 0]))


def test_zero_threshold_is_exact():
    x, w = problem()
    y, info = mixed_product(x, MixedInt8("float").quantize(w), OutlierSplit(0.0))
    assert info.int8_share == 0.0
    assert relative(y, x @ w.T) < 3e-3
    assert relative(mixed_product(x, with_float_rows(w), OutlierSplit(0.0))[0], x @ w.T) < 1e-6


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("scope", ["columns", "entries"])
def test_product_is_the_fake_input_times_the_stored_weight(symmetric, scope):
    x, w = problem()
    stored, split = MixedInt8().quantize(w), OutlierSplit(symmetric=symmetric, scope=scope)
    y, _ = mixed_product(x, stored, split)
    assert torch.allclose(y, split.fake(x) @ stored.dequantize().T, atol=1e-5)


def test_zero_points_help_one_sided_inputs():
    x, w = problem(outlier=1.0)
    x = x.abs()
    stored = MixedInt8().quantize(w)
    exact = x @ stored.dequantize().T
    errors = [relative(mixed_product(x, stored, OutlierSplit(symmetric=s))[0], exact) for s in (False, True)]
    assert errors[0] < errors[1]


def test_error_bound_of_the_eight_bit_part():
    x, w = problem()
    stored = MixedInt8().quantize(w)
    y, info = mixed_product(x, stored, OutlierSplit())
    rest = [j for j in range(96) if j not in info.outlier_dims]
    part = y - x[:, info.outlier_dims] @ stored.columns(torch.tensor(info.outlier_dims)).T
    cx, cw = x[:, rest].abs().amax(1, keepdim=True), w.abs().amax(1)
    bound = (
        0.5 * cw / 127 * x[:, rest].abs().sum(1, keepdim=True)
        + 0.5 * cx / 127 * w[:, rest].abs().sum(1)
        + 96 * 0.25 * cx * cw / 127**2
    )
    assert ((part - x[:, rest] @ w[:, rest].T).abs() <= bound + 1e-6).all()


@given(
    tokens=st.integers(1, 9),
    width=st.integers(2, 60),
    seed=st.integers(0, 10_000),
    loud=st.floats(1.0, 200.0),
    threshold=st.sampled_from([3.0, 6.0, math.inf]),
)
@settings(deadline=None)
def test_error_bound_for_any_input(tokens, width, seed, loud, threshold):
    """Element by element, whatever is loud: half a step on either side, and the product of both halves."""
    g = torch.Generator().manual_seed(seed)
    x, w = torch.randn(tokens, width, generator=g), torch.randn(5, width, generator=g)
    x[:, :: max(2, width // 3)] *= loud
    y, info = mixed_product(x, with_float_rows(w), OutlierSplit(threshold))
    rest = [j for j in range(width) if j not in info.outlier_dims]
    exact = x.double() @ w.double().T
    cx = x[:, rest].abs().amax(1, keepdim=True) if rest else torch.zeros(tokens, 1)
    cw = w.abs().amax(1)
    bound = 0.5 * cw / 127 * x[:, rest].abs().sum(1, keepdim=True) + 0.5 * cx / 127 * w[:, rest].abs().sum(1)
    bound = bound + len(rest) * 0.25 * cx * cw / 127**2 + 1e-5 * (x.abs() @ w.abs().T) + 1e-6
    assert ((y.double() - exact).abs() <= bound).all()
    assert info.int8_share == pytest.approx(len(rest) / width)


def test_without_an_outlier_the_second_product_is_not_executed(monkeypatch):
    x, w = problem(outlier=1.0)
    x = x.clamp(-5.9, 5.9)
    stored = MixedInt8().quantize(w)

    def never(self, outliers):
        raise AssertionError("no column is an outlier")

    monkeypatch.setattr(MixedInt8Tensor, "columns", never)
    y, info = mixed_product(x, stored, OutlierSplit())
    assert info.outlier_dims == []
    assert torch.equal(y, mixed_product(x, stored, OutlierSplit(math.inf))[0])


def test_a_louder_token_keeps_its_integers():
    x, w = problem()
    split = OutlierSplit()
    scaled = x.clone()
    rest = [j for j in range(96) if j not in split.find(x).tolist()]
    scaled[2, rest] *= 0.5  # nothing new passes the threshold
    a, b = split.split(x), split.split(scaled)
    assert torch.equal(a.outliers, b.outliers)
    assert torch.equal(a.codes, b.codes)
    assert float(b.scale[2]) == 0.5 * float(a.scale[2])


def test_the_accumulator_of_32_bits_is_wide_enough():
    """127 * 127 * h stays below 2^31 for h up to 133,144 inputs, the worst case of all codes at the ends."""
    widest = (2**31 - 1) // 127**2
    assert widest >= 130_000
    x, w = torch.full((1, 130_000), 5.0), torch.full((1, 130_000), 1.0)
    codes = OutlierSplit().split(x).codes.to(torch.int32)
    total = (codes * MixedInt8().quantize(w).codes.to(torch.int32)).sum(dtype=torch.int64)
    assert int(total) == 127 * 127 * 130_000 < 2**31


def test_row_scaling_and_permutation():
    x, w = problem(outlier=1.0)
    stored = MixedInt8().quantize(w)
    y, _ = mixed_product(x, stored, OutlierSplit(100.0))
    scaled = x.clone()
    scaled[2] *= 4.0
    z, _ = mixed_product(scaled, stored, OutlierSplit(100.0))
    assert torch.equal(z[2], 4.0 * y[2])
    order = torch.randperm(96, generator=torch.Generator().manual_seed(0))
    p, _ = mixed_product(x[:, order], MixedInt8().quantize(w[:, order]), OutlierSplit(100.0))
    assert torch.allclose(p, y, atol=1e-5)


def test_error_does_not_grow_with_the_outlier():
    errors = []
    for size in (10.0, 100.0, 1000.0):
        x, w = problem(outlier=1.0)
        x[:, 11] = size
        stored = MixedInt8().quantize(w)
        exact = x.double() @ stored.dequantize().double().T
        y, _ = mixed_product(x, stored, OutlierSplit())
        errors.append(float((y.double() - exact).abs().max()))
    assert errors[1] == pytest.approx(errors[0], abs=1e-4)
    assert errors[2] == pytest.approx(errors[0], abs=1e-4)


def test_decomposition_saves_what_plain_int8_loses():
    x, w = problem(32, 256, 64, outlier=40.0)
    stored = MixedInt8().quantize(w)
    exact = x @ w.T
    assert relative(mixed_product(x, stored, OutlierSplit())[0], exact) * 3 < relative(
        mixed_product(x, stored, OutlierSplit(math.inf))[0], exact
    )


def test_static_columns():
    x, w = problem()
    split = OutlierSplit(mode="static")
    with pytest.raises(ModelError, match="calibration"):
        split.fake(x)
    split = split.calibrated(LayerStatistics.of(x, {"absmax"}))
    assert split.columns == tuple(OutlierSplit().find(x).tolist())
    solved = MixedInt8().with_columns(w, split.columns)
    assert not solved.weight.codes[:, list(split.columns)].any()
    assert relative(split.fake(x) @ solved.dense().T, x @ w.T) < 0.02
    layer = MixedInt8Linear.from_float(linear(w), columns=split.columns)
    layer(x)
    x[0, 50] = 9.0
    layer(x)
    assert (layer.calls, layer.missed_calls) == (2, 1)


@pytest.mark.parametrize(
    "given_", [{}, {"mode": "static"}, {"symmetric": False}, {"scope": "entries"}, {"mode": "static", "threshold": 3.0}]
)
def test_the_recipe_in_all_its_kinds(given_, tiny, inputs, tmp_path):
    model, batches = tiny("opt"), inputs("opt")
    with torch.no_grad():  # channels that a scale a token would crush
        for block in model.model.decoder.layers:
            block.self_attn_layer_norm.weight[3] *= 40.0
    found = quant.quantize(model, "llm-int8", "w8a8", batches, **given_)
    plain = quant.quantize(model, "rtn", "w8a8")
    a, b = (quant.compare(model, m, batches, repetitions=1).signal_to_noise for m in (found, plain))
    assert a > b + 6.0
    layer = found.model.decoder.layers[0].self_attn.q_proj
    if given_.get("mode") == "static":
        assert layer.solved.sparse.columns.tolist() == list(layer.activation.columns)
        assert 3 in layer.activation.columns
        assert layer.solved.info["outlier_columns"] == len(layer.activation.columns)
    quant.save(found, tmp_path / "out")
    again = quant.load(tmp_path / "out", tiny("opt"))
    with torch.no_grad():
        assert torch.equal(again(batches[0]).logits, found(batches[0]).logits)
    quant.use_kernels(found)
    with torch.no_grad():
        assert relative(found(batches[0]).logits, again(batches[0]).logits) < 0.01  # a code more or less in places


def test_static_columns_refuse_what_they_cannot_store():
    w = torch.randn(3, 8)
    with pytest.raises(ModelError, match=r"fc1.*MixedInt8"):
        StaticColumns().solve(w, LayerStatistics.of(w, {"absmax"}), AffineGrid(8), name="fc1")
    with pytest.raises(ModelError, match="'absmax'"):
        StaticColumns().solve(w, LayerStatistics(), MixedInt8())
    with pytest.raises(ParameterError):
        StaticColumns(-1.0)
    quiet = StaticColumns(1e6).solve(w, LayerStatistics.of(w, {"absmax"}), MixedInt8())
    assert quiet.sparse is None and quiet.info == {"outlier_columns": 0}


def linear(w, bias=True):
    found = nn.Linear(w.shape[1], w.shape[0], bias=bias)
    with torch.no_grad():
        found.weight.copy_(w)
    return found


@pytest.mark.parametrize("outlier_weights", ["int8", "float"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_module_state_shapes_and_memory(outlier_weights, dtype):
    x, w = problem(6)
    layer = MixedInt8Linear.from_float(linear(w), outlier_weights=outlier_weights)
    y = layer(x.to(dtype).reshape(2, 3, -1))
    assert y.shape == (2, 3, 20) and y.dtype == dtype
    other = MixedInt8Linear.from_float(linear(torch.zeros_like(w)), outlier_weights=outlier_weights)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    bytes_ = sum(t.numel() * t.element_size() for t in layer.state_dict().values())
    assert bytes_ <= w.numel() * (1 if outlier_weights == "int8" else 3) + 4 * 20 + 4 * 20
    stored = layer.stored()
    assert stored.nbytes == sum(t.numel() * t.element_size() for t in stored.tensors().values())
    back = MixedInt8Tensor.from_tensors(stored.meta(), stored.tensors())
    assert torch.equal(back.dequantize(), stored.dequantize())
    assert MixedInt8(outlier_weights).bits_per_weight(stored.shape) == pytest.approx(stored.nbytes * 8 / w.numel())


def test_gradients():
    x, w = problem()
    x.requires_grad_()
    layer = MixedInt8Linear.from_float(linear(w), outlier_weights="float")
    layer(x).square().sum().backward()
    g = 2 * layer(x).detach()
    W = layer.stored().dequantize()
    outliers = OutlierSplit().find(x)
    W[:, outliers] = layer.weight[:, outliers].detach().float()
    assert torch.allclose(x.grad, g @ W, atol=1e-4)
    exact = g.T @ x.detach()
    assert relative(layer.weight.grad.float()[:, outliers], exact[:, outliers]) < 5e-3
    assert relative(layer.weight.grad.float(), exact) < 2e-2


def test_dead_tokens_dead_rows_and_no_token_at_all():
    x, w = problem()
    x[3], w[5] = 0.0, 0.0
    y, _ = mixed_product(x, MixedInt8().quantize(w), OutlierSplit())
    assert not y[3].any() and not y[:, 5].any()
    layer = MixedInt8Linear.from_float(linear(w))
    assert layer(x[:0]).shape == (0, 20)


def test_bf16_inputs_do_not_wrap():
    x = torch.full((1, 32), 1.27, dtype=torch.bfloat16)
    codes = OutlierSplit().split(x).codes
    assert codes.max() == 127 and codes.min() == 127


def test_errors():
    for wrong in ({"threshold": -1.0}, {"bits": 9}, {"scope": "x"}, {"mode": "x"}):
        with pytest.raises(ParameterError):
            OutlierSplit(**wrong)
    with pytest.raises(ParameterError):
        MixedInt8("bf16")
    with pytest.raises(ModelError, match="NaN"):
        MixedInt8Linear.from_float(linear(torch.full((2, 4), math.nan)))
