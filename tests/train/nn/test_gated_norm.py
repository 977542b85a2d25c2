"""GatedNorm: the invariants and golden values of its brief, the bound on rescaling, the retrofit."""

import pytest

pytest.importorskip("torch", reason="needs the extra 'deep'")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from skerry.core.errors import ModelError, ParameterError
from skerry.train.nn import GatedNorm, LowRankGate, PreAffineRMSNorm, SingleScaleRMSNorm


def rand(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def trained(dim=8, rank=3, **arguments):
    """A GatedNorm away from its start."""
    torch.manual_seed(0)
    norm = GatedNorm(dim, rank, **arguments)
    for p in norm.parameters():
        nn.init.normal_(p, mean=0.3, std=0.7)
    return norm


def test_starts():
    x, plain = 3 * rand(5, 4, 8), nn.RMSNorm(8, eps=1e-6)
    torch.testing.assert_close(GatedNorm(8, init="identity")(x), plain(x), atol=1e-7, rtol=0)
    assert torch.equal(GatedNorm(8)(x), 0.5 * plain(x))
    assert (GatedNorm(8).gate(x) == 0.5).all() and (GatedNorm(8, init="identity").gate(x) == 1).all()
    for activation in ("tanh", "silu", "identity"):
        assert (GatedNorm(8, activation=activation)(x) == 0).all()
        torch.testing.assert_close(GatedNorm(8, init="identity", activation=activation)(x), plain(x))


def test_identity_is_half_with_a_doubled_gain():
    half, identity = trained(), trained(init="identity")
    identity.load_state_dict(half.state_dict())
    x = rand(5, 8)
    torch.testing.assert_close(identity(x), 2 * half(x))


@pytest.mark.parametrize(("init", "top"), [("half", 1), ("identity", 2)])
def test_gate_values_and_the_size_of_what_passes(init, top):
    norm, x = trained(init=init), 20 * rand(50, 8)
    y = norm.norm(x)
    gate = norm.gate(y)
    assert ((gate > 0) & (gate < top)).all()
    assert (norm(x).abs() <= top * y.abs()).all()
    assert gate.std() > 0


def test_the_gate_reads_the_normalised_input():
    norm, x = trained(), rand(5, 8)
    y = norm.norm(x)
    hidden = nn.functional.silu(y @ norm.gate.down.weight.T)
    torch.testing.assert_close(norm(x), y * torch.sigmoid(hidden @ norm.gate.up.weight.T))
    for c in (0.01, 100.0):  # and so the scale of the input does not matter
        torch.testing.assert_close(trained(eps=0.0)(c * x), trained(eps=0.0)(x))


@pytest.mark.parametrize(("granularity", "outputs"), [("element", 32), ("tensor", 1)])
def test_parameter_counts(granularity, outputs):
    gate = LowRankGate(32, 4, granularity=granularity)
    assert sum(p.numel() for p in gate.parameters()) == 4 * (32 + outputs)
    assert sum(p.numel() for p in GatedNorm(2048).gate.parameters()) == 2 * 2048 * 16
    assert gate(rand(3, 32)).shape == (3, outputs)


def test_at_the_start_only_up_learns():
    norm, x = GatedNorm(8), rand(5, 8)
    norm(x).square().sum().backward()
    assert (norm.gate.down.weight.grad == 0).all()
    assert (norm.gate.up.weight.grad != 0).any()


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "silu", "identity"])
@pytest.mark.parametrize("granularity", ["element", "tensor"])
def test_finite_differences(activation, granularity):
    norm = trained(4, 2, activation=activation, granularity=granularity).double()
    names = [n for n, _ in norm.named_parameters()]

    def run(x, *values):
        return torch.func.functional_call(norm, dict(zip(names, values, strict=True)), (x,))

    values = [p.detach().clone().requires_grad_() for p in norm.parameters()]
    assert torch.autograd.gradcheck(run, (rand(3, 4, dtype=torch.float64).requires_grad_(), *values))


@given(st.integers(2, 40), st.floats(-4, 8), st.floats(-6, 0), st.integers(0, 2**31))
@settings(max_examples=100, deadline=None)
def test_the_bound_on_what_an_outlier_leaves(dim, log_outlier, log_gain, seed):
    h, gain = rand(dim, seed=seed, dtype=torch.float64), rand(dim, seed=seed + 1, dtype=torch.float64)
    h[-1] *= 10.0**log_outlier
    gain[-1] = 10.0**log_gain * gain[:-1].abs().max()
    r = h[-1].abs() / h.norm()
    eps = gain[-1] / gain.abs().max()
    out = nn.functional.rms_norm(h, (dim,), gain, 0.0)
    bound = gain.abs().max() * ((1 - r**2) + eps**2 * r**2).sqrt()
    assert out.square().mean().sqrt() <= bound * (1 + 1e-6) + 1e-12


def test_golden_values_of_one_outlier():
    h = torch.tensor([1, -1, 1, -1, 20], dtype=torch.float64)
    gain = torch.tensor([1, 1, 1, 1, 0.01], dtype=torch.float64)
    r = h[-1] / h.norm()
    out = nn.functional.rms_norm(h, (5,), gain, 0.0)
    assert r.item() == pytest.approx(0.995037, abs=5e-7)
    assert out[:4].abs().tolist() == pytest.approx([0.111249] * 4, abs=5e-7)
    assert out.square().mean().sqrt().item() == pytest.approx(0.1, abs=5e-5)
    assert ((1 - r**2) + 0.01**2 * r**2).sqrt().item() == pytest.approx(0.1, abs=5e-5)


def test_retrofit_changes_nothing_at_first_and_leaves_query_and_key_norms():
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.q_norm, self.final = nn.LayerNorm(6), nn.RMSNorm(6), SingleScaleRMSNorm(6)
            self.again = self.final
            self.pre = PreAffineRMSNorm(6)

        def forward(self, x):
            return self.again(self.final(self.q_norm(self.pre(self.norm1(x)))))

    net, x = Net().eval(), rand(3, 6)
    before = net(x)
    assert GatedNorm.retrofit(net, rank=2) is net
    assert torch.equal(net(x), before)
    assert type(net.q_norm) is nn.RMSNorm and net.again is net.final
    assert all(type(m) is GatedNorm and not m.training for m in (net.norm1, net.final, net.pre))
    names = set(net.state_dict())
    GatedNorm.retrofit(net, rank=2)  # a second call finds its own gates and adds none
    assert set(net.state_dict()) == names
    with pytest.raises(ModelError, match="no norm"):
        GatedNorm.retrofit(nn.Sequential(nn.Linear(2, 2)))


def test_retrofit_of_a_double_network_stays_double():
    net = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2)).double()
    assert GatedNorm.retrofit(net, match=r"^0$")(rand(2, 4, dtype=torch.float64)).dtype == torch.float64


def test_it_compiles_whole_and_runs_in_bfloat16():
    norm, x = trained(), rand(5, 8)
    compiled = torch.compile(norm, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), norm(x))
    compiled(x).sum().backward()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(norm(x).float(), norm(x.bfloat16()).float(), atol=5e-2, rtol=5e-2)
    torch.testing.assert_close(norm.bfloat16()(x.bfloat16()).float(), trained()(x), atol=5e-2, rtol=5e-2)


@pytest.mark.parametrize(
    "wrong", [{"init": "zero"}, {"granularity": "head"}, {"activation": "relu"}, {"rank": 0}, {"dim": 0}]
)
def test_wrong_arguments_are_refused(wrong):
    with pytest.raises(ParameterError):
        GatedNorm(**{"dim": 4, **wrong})
