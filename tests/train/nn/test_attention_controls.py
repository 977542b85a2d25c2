"""Softmax with one more key, and ReLU in place of softmax."""

import pytest

pytest.importorskip("torch", reason="needs the extra 'deep'")

import torch

from skerry.core.errors import ParameterError
from skerry.train.nn import GatedAttention, ReLUWeights, SoftmaxPlusOne


def rand(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def test_one_more_key_of_logit_zero():
    scores = 5 * rand(3, 4, 6)
    longer = torch.cat([scores, torch.zeros(3, 4, 1)], -1).softmax(-1)[..., :-1]
    torch.testing.assert_close(SoftmaxPlusOne()(scores), longer)
    huge = torch.tensor([500.0, 800.0, -900.0])
    torch.testing.assert_close(SoftmaxPlusOne()(huge), huge.softmax(0))
    torch.testing.assert_close(SoftmaxPlusOne()(-huge.abs()), torch.zeros(3))


@pytest.mark.parametrize("make", [SoftmaxPlusOne, lambda: ReLUWeights(seq_len=6)])
def test_masked_keys_gradients_and_compilation(make):
    module, scores = make(), rand(2, 6).requires_grad_()
    assert torch.autograd.gradcheck(module, scores)
    masked = torch.full((2, 6), -torch.inf, dtype=torch.float64)
    masked[0, 2] = 1.0
    masked.requires_grad_()
    out = module(masked)
    (grad,) = torch.autograd.grad(out.sum(), masked)
    assert (out[1] == 0).all() and out[0, 2] > 0 and torch.isfinite(grad).all()
    torch.testing.assert_close(torch.compile(module, backend="eager", fullgraph=True)(scores), module(scores))
    assert module(scores.bfloat16()).dtype == torch.bfloat16


def test_relu_divides_by_the_training_length():
    scores = torch.tensor([-1.0, 3.0, 0.5])
    assert ReLUWeights()(scores).tolist() == pytest.approx([0, 1, 0.5 / 3])
    assert ReLUWeights(seq_len=6)(scores).tolist() == pytest.approx([0, 0.5, 0.5 / 6])
    with pytest.raises(ParameterError, match="seq_len"):
        ReLUWeights(seq_len=0)


@pytest.mark.parametrize("softmax", [SoftmaxPlusOne(), ReLUWeights(seq_len=6)])
def test_attention_with_them_is_causal(softmax):
    torch.manual_seed(0)
    attention = GatedAttention(8, 2, gate=None, softmax=softmax, causal=True).double()
    x = rand(1, 6, 8).requires_grad_()
    out = attention(x)
    for t in range(6):
        (grad,) = torch.autograd.grad(out[0, t].sum(), x, retain_graph=True)
        assert (grad[0, t + 1 :] == 0).all() and (grad[0, t] != 0).any()
