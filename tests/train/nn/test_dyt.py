"""DyT and GatedDyT: values, bounds, gradients."""

import pytest

pytest.importorskip("torch", reason="needs the extra 'deep'")

import torch
from torch import nn

from skerry.train.nn import DyT, GatedDyT


def rand(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def test_zero_gives_the_bias_and_the_output_is_bounded():
    dyt = DyT(6, alpha=0.8)
    nn.init.normal_(dyt.weight)
    nn.init.normal_(dyt.bias)
    assert torch.equal(dyt(torch.zeros(2, 6)), dyt.bias.expand(2, 6))
    x = 100 * rand(50, 6)
    assert (dyt(x).abs() <= dyt.weight.abs() + dyt.bias.abs() + 1e-6).all()
    torch.testing.assert_close(dyt(x), dyt.weight * torch.tanh(0.8 * x) + dyt.bias)


def test_parameters():
    assert {n: tuple(p.shape) for n, p in DyT(6).named_parameters()} == {"alpha": (1,), "weight": (6,), "bias": (6,)}
    assert DyT(6).alpha.item() == 0.5
    assert sum(p.numel() for p in GatedDyT(32, 4).gate.parameters()) == 2 * 32 * 4


def test_the_gated_form_gates_the_squashed_input():
    torch.manual_seed(0)
    gated, x = GatedDyT(6, rank=2), rand(4, 6)
    assert torch.equal(gated(x), 0.5 * gated.norm(x))
    assert torch.equal(GatedDyT(6, init="identity")(x), DyT(6)(x))
    nn.init.normal_(gated.gate.up.weight)
    torch.testing.assert_close(gated(x), gated.norm(x) * gated.gate(gated.norm(x)))
    assert (gated(x).abs() <= gated.norm(x).abs()).all()


@pytest.mark.parametrize("make", [DyT, lambda d: GatedDyT(d, rank=2)])
def test_finite_differences_compilation_and_bfloat16(make):
    torch.manual_seed(0)
    norm = make(4)
    for p in norm.parameters():
        nn.init.normal_(p)
    x = rand(3, 4)
    torch.testing.assert_close(torch.compile(norm, backend="aot_eager", fullgraph=True)(x), norm(x))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(norm(x.bfloat16()).float(), norm(x).float(), atol=5e-2, rtol=5e-2)
    norm = norm.double()
    names = [n for n, _ in norm.named_parameters()]

    def run(x, *values):
        return torch.func.functional_call(norm, dict(zip(names, values, strict=True)), (x,))

    values = [p.detach().clone().requires_grad_() for p in norm.parameters()]
    assert torch.autograd.gradcheck(run, (x.double().requires_grad_(), *values))
