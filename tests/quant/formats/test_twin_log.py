"""Twin-log quantization: golden values, the search against a naive one, order, signs, both arithmetics."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.core.errors import ModelError, ParameterError
from skerry.quant.formats.twin_log import RATIOS, SPANS, TwinLog, TwinLogParameters, TwinLogTensor
from skerry.quant.numerics import AffineGrid
from skerry.quant.solvers import TwinLogSearch
from skerry.quant.solvers.layer import layer_error
from skerry.quant.statistics import LayerStatistics


def weight(rows=6, width=48, seed=0, tails=3.0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=g) / (torch.rand(rows, width, generator=g) + 0.05) * tails / 30


def mse(form, W):
    return float(((form.quantize(W).dequantize() - W) ** 2).mean())


def test_golden_values():
    W = torch.tensor([[0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, -0.03, -0.3, -0.6]])
    base = torch.tensor([[math.log2(0.8) - 3], [math.log2(0.6) - 3]])
    parameters = TwinLogParameters(base, torch.ones(2, 1), torch.ones(1), torch.ones(1))
    back = TwinLog(bits=3).quantize(W, parameters).dequantize()
    expected = torch.tensor([[0.1, 0.1, 0.1, 0.1, 0.2, 0.4, 0.8, -0.075, -0.3, -0.6]])
    assert torch.allclose(back, expected, rtol=1e-5)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_search_finds_the_naive_optimum(bits):
    W = weight(2, 40)
    levels = 2 ** (bits - 1)
    stored = TwinLog(bits=bits).quantize(W)
    got = (stored.dequantize() - W).double() ** 2
    for row in range(2):
        for sign in (1, -1):
            v = (W[row] * sign)[W[row] * sign > 0].double()
            ends = [(1.0, float(torch.log2(v.max() / v.min())))] + [(float(r), float(s)) for r in RATIOS for s in SPANS]
            best = math.inf
            for ratio, span in ends:
                low, step = math.log2(float(v.max()) * ratio) - span, span / (levels - 1)
                q = torch.round((torch.log2(v) - low) / step).clamp(0, levels - 1)
                best = min(best, float(((torch.exp2(low + step * q) - v) ** 2).sum()))
            assert float(got[row][W[row] * sign > 0].sum()) == pytest.approx(best, rel=1e-3)


@pytest.mark.parametrize("group_size", [-1, 0, 16])
@pytest.mark.parametrize(("bits", "levels"), [(3, "half"), (3, "full"), (8, "half")])
def test_stored_weight_survives_and_its_size_is_said(bits, levels, group_size):
    W = weight(5, 48)
    form = TwinLog(bits, levels, group_size, scale_dtype="float16" if group_size == 16 else "float32")
    stored = form.quantize(W)
    tensors = stored.tensors()
    assert stored.nbytes == sum(t.numel() * t.element_size() for t in tensors.values())
    assert form.bits_per_weight(stored.shape) == pytest.approx(stored.bits_per_weight)
    assert stored.bits_per_weight >= bits + (levels == "full")
    back = TwinLogTensor.from_tensors(stored.meta(), tensors)
    assert torch.equal(back.dequantize(), stored.dequantize())
    assert ((stored.dequantize() > 0) == (W > 0)).all()
    assert all(len(row.unique()) <= 2 * form.n_levels for row in (stored.dequantize() if group_size == -1 else W[:0]))


def test_monotone_idempotent_and_equivariant():
    W = weight()
    form = TwinLog(bits=3)
    parameters = form.fit(W)
    back = form.quantize(W, parameters).dequantize()
    assert (back.gather(1, W.argsort(1)).diff(dim=1) >= 0).all()
    assert torch.allclose(form.quantize(back, parameters).dequantize(), back, rtol=1e-6)
    assert torch.allclose(form.quantize(4 * W).dequantize(), 4 * back, rtol=1e-5)
    assert torch.allclose(form.quantize(-W).dequantize(), -back, rtol=1e-6)


def test_search_never_increases_the_error():
    W = weight(seed=4)
    for energy in (None, torch.rand(48, generator=torch.Generator().manual_seed(1)) * 9):
        w = torch.ones(48) if energy is None else energy
        errors = []
        for search in ("both", "clip", "none"):
            form = TwinLog(bits=3, search=search)
            errors.append(float(((form.quantize(W, form.fit(W, energy)).dequantize() - W) ** 2 * w).mean()))
        assert errors[0] <= errors[2] * (1 + 1e-6)
        assert errors[1] <= errors[2] * (1 + 1e-6)
    assert ((form.fit(W).alpha <= 1) & (form.fit(W).beta <= 1)).all()


@pytest.mark.parametrize("fraction_bits", [8, 12])
def test_shifts_agree_with_the_table(fraction_bits):
    stored = TwinLog(bits=5).quantize(weight())
    exact = stored.dequantize()
    assert ((stored.shifted(fraction_bits) - exact).abs() <= exact.abs() * 2.0**-fraction_bits).all()


def test_many_bits_on_gaussian_data_and_long_tails_against_uniform():
    g = torch.Generator().manual_seed(0)
    W = torch.randn(16, 256, generator=g)
    assert mse(TwinLog(bits=8), W) / float((W**2).mean()) < 1e-3
    T = torch.randn(16, 512, generator=g) / (torch.randn(3, 16, 512, generator=g) ** 2).mean(0).sqrt()  # Student t, 3
    steps = torch.arange(1, 41) / 40 * T.abs().amax(1, keepdim=True) / 3
    errors = [
        [float(((torch.round(t / s).clamp(-3, 3) * s - t) ** 2).mean()) for s in r]
        for t, r in zip(T, steps, strict=True)
    ]
    uniform = sum(min(e) for e in errors) / 16
    assert mse(TwinLog(bits=3), T) < uniform


def test_zeros_dead_rows_and_one_sided_rows():
    W = weight(4, 16)
    W[0] = 0.0
    W[1] = W[1].abs()
    W[2] = -W[2].abs()
    W[3, :4] = 0.0
    back = TwinLog(bits=4).quantize(W).dequantize()
    assert torch.isfinite(back).all()
    assert back[0].abs().max() < 1e-30
    assert (back[1] > 0).all() and (back[2] < 0).all()
    assert (back[3, :4] > 0).all() and back[3, :4].max() <= W[3].abs().max() / 2


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    bits=st.sampled_from([2, 3, 4]),
    levels=st.sampled_from(["half", "full"]),
    scale=st.sampled_from([1e-4, 0.3, 1.0, 50.0]),
)
def test_any_weight(seed, bits, levels, scale):
    """Signs and order stay, levels are few, the search pays, and size, sign and a second rounding change nothing."""
    W, form = weight(3, 24, seed) * scale, TwinLog(bits, levels)
    parameters = form.fit(W)
    stored = form.quantize(W, parameters)
    back = stored.dequantize()
    assert bool(((back > 0) == (W > 0)).all())
    assert bool((back.gather(1, W.argsort(1)).diff(dim=1) >= 0).all())
    assert all(len(row.unique()) <= 2 * form.n_levels for row in back)
    assert mse(form, W) <= mse(TwinLog(bits, levels, search="none"), W) * (1 + 1e-5)
    torch.testing.assert_close(form.quantize(-W).dequantize(), -back, rtol=1e-5, atol=0)
    torch.testing.assert_close(form.quantize(2.0 * W).dequantize(), 2.0 * back, rtol=1e-4, atol=0)
    torch.testing.assert_close(form.quantize(back, parameters).dequantize(), back, rtol=1e-6, atol=0)
    assert bool(((stored.shifted(8) - back).abs() <= back.abs() * 2.0**-8).all())


def test_errors_weighed_by_activity():
    g = torch.Generator().manual_seed(3)
    better = 0
    for seed in range(5):
        W, X = weight(6, 32, seed), torch.randn(300, 32, generator=g) * torch.logspace(0, 1.5, 32)
        statistics, form = LayerStatistics.of(X, {"gram"}), TwinLog(bits=3)
        found = TwinLogSearch().solve(W, statistics, form)
        assert found.objective == pytest.approx(layer_error(W, found.dense(), statistics.gram))
        better += found.objective < layer_error(W, form.quantize(W).dequantize(), statistics.gram)
    assert better == 5
    with pytest.raises(ModelError, match=r"h\.2.*AffineGrid"):
        TwinLogSearch().solve(W, statistics, AffineGrid(3), name="h.2")
    silent = LayerStatistics(tokens=3, gram=torch.zeros(32, 32, dtype=torch.float64))
    assert torch.equal(TwinLogSearch().solve(W, silent, form).dense(), form.quantize(W).dequantize())


def test_errors():
    with pytest.raises(ModelError, match="does not divide"):
        TwinLog(group_size=32).quantize(weight())
    for wrong in ({"bits": 1}, {"bits": 8, "levels": "full"}, {"levels": "x"}, {"search": "x"}, {"group_size": -2}):
        with pytest.raises(ParameterError):
            TwinLog(**wrong)
