"""Clipped softmax: the golden values and invariants 1 to 4 of its brief, and its gradient."""

import pytest

pytest.importorskip("torch", reason="needs the extra 'deep'")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.core.errors import ParameterError
from skerry.train.nn import ClippedSoftmax, clipped_softmax


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [
        (0, [0.032059, 0.087144, 0.236883, 0.643914]),
        (1, [0, 0, 0.046104, 0.554893]),
        (2, [0, 0, 0, 0.465871]),
    ],
)
def test_golden_values(alpha, expected):
    p = clipped_softmax(torch.arange(4, dtype=torch.float64), alpha=alpha)
    torch.testing.assert_close(p, torch.tensor(expected, dtype=torch.float64), atol=5e-7, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_without_a_stretch_it_is_softmax(dtype):
    scores = torch.randn(3, 2, 5, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    p = clipped_softmax(scores, gamma=0.0)
    assert p.dtype == dtype
    torch.testing.assert_close(
        p, scores.double().softmax(-1).to(dtype), atol=1e-7 if dtype.itemsize > 2 else 4e-3, rtol=0
    )


@given(st.integers(1, 12), st.floats(0, 12), st.floats(1, 1.3), st.floats(0.1, 40), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_zeros_are_exact_and_exactly_where_the_paper_says(n_keys, alpha, zeta, scale, seed):
    scores = scale * torch.randn(4, n_keys, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    p = clipped_softmax(scores, alpha=alpha, zeta=zeta)
    gamma = -alpha / n_keys
    plain = scores.softmax(-1)
    cut = -gamma / (zeta - gamma)
    assert ((p >= 0) & (p <= 1)).all()
    away = (plain - cut).abs() > 1e-12
    assert torch.equal((p == 0)[away], (plain < cut)[away])
    if zeta == 1:
        assert (p.sum(-1) <= 1 + 1e-9).all()


@pytest.mark.parametrize(("n", "alpha"), [(4, 0.5), (4, 1.3), (4, 1.4), (64, 1.0), (64, 1.02)])
def test_uniform_attention_dies_above_one_over_one_minus_one_over_t(n, alpha):
    p = clipped_softmax(torch.zeros(n, dtype=torch.float64), alpha=alpha)
    expected = max(0.0, (1 / n) * (1 - alpha * (1 - 1 / n)))
    torch.testing.assert_close(p, torch.full((n,), expected, dtype=torch.float64), atol=1e-12, rtol=0)
    assert (p[0] == 0) == (alpha > 1 / (1 - 1 / n))


def test_masked_keys_are_exactly_zero_and_a_row_of_masked_keys_is_finite():
    scores = torch.randn(2, 5, 5, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    mask[3] = False
    scores = scores.masked_fill(~mask, -torch.inf).requires_grad_()
    for gamma in (0.0, -0.05):
        p = clipped_softmax(scores, gamma=gamma)
        assert (p[:, ~mask] == 0).all()
        assert (p[:, 3] == 0).all()
        (grad,) = torch.autograd.grad(p.square().sum(), scores)
        assert torch.isfinite(grad).all()
        assert (grad[:, 3] == 0).all()


def test_gradients_against_finite_differences_and_none_through_a_zero():
    scores = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: clipped_softmax(s, alpha=0.7), scores)
    assert torch.autograd.gradcheck(lambda s: clipped_softmax(s, dim=0, gamma=-0.1, zeta=1.1), scores)
    p = clipped_softmax(scores, alpha=1)
    assert (p == 0).any() and (p > 0).any()
    (grad,) = torch.autograd.grad(p[p == 0].sum(), scores)
    assert (grad == 0).all()
    inside = clipped_softmax(scores, gamma=-0.01)
    weights = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    (grad,) = torch.autograd.grad((weights * (inside > 0) * inside).sum(), scores)
    (plain,) = torch.autograd.grad((weights * (inside > 0) * scores.softmax(-1)).sum(), scores)
    torch.testing.assert_close(grad, 1.01 * plain)


def test_decoding_uses_the_length_of_training():
    module = ClippedSoftmax(alpha=4, seq_len=128)
    short = torch.zeros(1, 16)
    torch.testing.assert_close(module(short), torch.full((1, 16), (1 + 4 / 128) / 16 - 4 / 128))
    assert (ClippedSoftmax(alpha=4)(short) == 0).all()  # the length of the call would cut everything


def test_it_compiles_without_a_graph_break_and_runs_under_autocast():
    module = ClippedSoftmax(alpha=2, seq_len=8)
    scores = torch.randn(2, 8, generator=torch.Generator().manual_seed(4))
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(scores), module(scores))
    with torch.autocast("cpu", torch.bfloat16):
        assert module(scores.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "wrong",
    [{}, {"alpha": 1, "gamma": -0.1}, {"gamma": 0.1}, {"alpha": -1}, {"gamma": -0.1, "zeta": 0.9}],
)
def test_wrong_stretches_are_refused(wrong):
    with pytest.raises(ParameterError):
        clipped_softmax(torch.zeros(3), **wrong)
    if wrong:
        with pytest.raises(ParameterError):
            ClippedSoftmax(**wrong)
    with pytest.raises(ParameterError, match="seq_len"):
        ClippedSoftmax(seq_len=0)
