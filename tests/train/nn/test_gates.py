"""Head gates: parameter counts, starts, slices, fine-tuning and the folding of an affine input."""

import math

import pytest

pytest.importorskip("torch", reason="needs the extra 'deep'")

import torch

from skerry.core.errors import ParameterError
from skerry.train.nn import HeadGate
from skerry.train.nn.gates import GATES


def rand(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("kind", "count"),
    [("linear", 780), ("mlp", 12_684), ("all-heads", 9_228), ("unconditional", 12), ("element", 768 * 769)],
)
def test_parameter_counts_of_the_paper(kind, count):
    gate = HeadGate(kind, 768, 12)
    assert sum(p.numel() for p in gate.parameters()) == count
    if kind == "mlp":
        assert gate.hidden == 16


def test_the_formulas_head_by_head():
    x = rand(2, 5, 12)
    linear, mlp = HeadGate("linear", 12, 3).double(), HeadGate("mlp", 12, 3, hidden=2).double()
    wide, element = HeadGate("all-heads", 12, 3).double(), HeadGate("element", 12, 3).double()
    for h in range(3):
        part = x[..., 4 * h : 4 * h + 4]
        expected = torch.sigmoid(part @ linear.weight[h] + linear.bias[h])
        torch.testing.assert_close(linear(x)[:, h, :, 0], expected)
        hidden = torch.relu(part @ mlp.hidden_weight[h].T + mlp.hidden_bias[h])
        torch.testing.assert_close(mlp(x)[:, h, :, 0], torch.sigmoid(hidden @ mlp.weight[h] + mlp.bias[h]))
        torch.testing.assert_close(wide(x)[:, h, :, 0], torch.sigmoid(x @ wide.weight[h] + wide.bias[h]))
        rows = slice(4 * h, 4 * h + 4)
        torch.testing.assert_close(element(x)[:, h], torch.sigmoid(x @ element.weight[rows].T + element.bias[rows]))


def test_a_sliced_gate_reads_its_own_slice_alone():
    for kind in ("linear", "mlp"):
        gate = HeadGate(kind, 8, 2, hidden=8).double()  # wide enough that not every unit rests
        x = rand(1, 3, 8).requires_grad_()
        (grad,) = torch.autograd.grad(gate(x)[:, 0].sum(), x)
        assert (grad[..., :4] != 0).any() and (grad[..., 4:] == 0).all()


@pytest.mark.parametrize("kind", GATES)
def test_starts(kind):
    torch.manual_seed(0)
    x = rand(4, 6, 8, dtype=torch.float32)
    gate = HeadGate(kind, 8, 2, init=0.25)
    assert torch.allclose(gate.bias, torch.tensor(math.log(0.25 / 0.75)))
    if gate.weight is not None:
        assert gate.weight.std() > 0
        torch.nn.init.zeros_(gate.weight)
    torch.testing.assert_close(gate(x), torch.full_like(gate(x), 0.25))
    plain = HeadGate(kind, 8, 2)
    assert ((plain(x) > 0) & (plain(x) < 1)).all()
    assert 0.3 < plain(x).mean() < 0.7


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("init", [None, 0.25, 0.9])
def test_fine_tuning_starts_at_one_and_can_learn(kind, init):
    torch.manual_seed(0)
    x = rand(4, 6, 8, dtype=torch.float32)
    gate = HeadGate(kind, 8, 2, init=init, finetune_std=0.0)
    torch.testing.assert_close(gate(x), torch.ones_like(gate(x)), atol=1e-6, rtol=0)
    gate(x).square().sum().backward()
    assert (gate.bias.grad != 0).all()
    assert gate.weight is None or (gate.weight.grad != 0).any()
    near = HeadGate(kind, 8, 2, init=init, finetune_std=0.01)
    assert near.weight is None or 0 < near.weight.std() < 0.02
    torch.testing.assert_close(near(x), torch.ones_like(near(x)), atol=0.15, rtol=0)


def test_a_pooled_gate_is_one_number_per_head_and_leaves_out_padding():
    gate = HeadGate("all-heads", 8, 2, pooled=True).double()
    x = rand(3, 5, 8)
    assert gate(x).shape == (3, 2, 1, 1)
    torch.testing.assert_close(gate(x)[..., 0, 0], torch.sigmoid(gate.logits(x).mean(1)))
    pad = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [True] * 5])
    torch.testing.assert_close(gate(x, pad)[1], gate(x[1:2, :3])[0])
    assert torch.isfinite(gate(x, pad)).all()


@pytest.mark.parametrize("kind", GATES)
def test_finite_differences(kind):
    gate = HeadGate(kind, 6, 3, init=0.4).double()
    names = [n for n, _ in gate.named_parameters()]
    x = rand(2, 3, 6).requires_grad_()

    def run(x, *values):
        return torch.func.functional_call(gate, dict(zip(names, values, strict=True)), (x,))

    inputs = (x, *[p.detach().clone().requires_grad_() for p in gate.parameters()])
    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize(
    ("kind", "bias"), [(kind, bias) for kind in GATES for bias in (True, False) if bias or kind != "unconditional"]
)
def test_an_affine_input_folds_into_the_weights(kind, bias):
    gate = HeadGate(kind, 8, 2, bias=bias).double()
    x, scale, shift = rand(2, 3, 8), rand(8, seed=1), rand(8, seed=2)
    before = gate(x * scale + shift)
    gate.fold_input_affine_(scale, shift)
    torch.testing.assert_close(gate(x), before)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"kind": "lineer"}, "did you mean 'linear'"),
        ({"kind": "linear", "n_heads": 3}, "do not divide"),
        ({"kind": "linear", "init": 1.0}, "strictly between"),
        ({"kind": "element", "init": 0.5, "bias": False}, "without a bias"),
        ({"kind": "unconditional", "bias": False}, "is its bias"),
    ],
)
def test_wrong_arguments_are_refused(arguments, match):
    with pytest.raises(ParameterError, match=match):
        HeadGate(**{"d_model": 8, "n_heads": 2, **arguments})
