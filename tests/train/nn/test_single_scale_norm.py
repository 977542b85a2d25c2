"""SingleScaleRMSNorm: one number, and no preferred axis."""

import pytest

pytest.importorskip("torch", reason="needs the extra 'deep'")

import torch
from torch import nn

from skerry.core.errors import ModelError
from skerry.train.nn import GatedAttention, SingleScaleRMSNorm, expand_single_scale


def rand(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def test_it_commutes_with_rotations_where_a_gain_per_channel_does_not():
    x, q = 4 * rand(20, 16), torch.linalg.qr(rand(16, 16, seed=1, dtype=torch.float64))[0].float()
    norm = SingleScaleRMSNorm(16, init=1.7)
    torch.testing.assert_close(norm(x @ q), norm(x) @ q, atol=1e-5, rtol=0)
    vector = nn.RMSNorm(16)
    nn.init.normal_(vector.weight)
    assert not torch.allclose(vector(x @ q), vector(x) @ q, atol=0.1)


def test_a_network_of_it_is_invariant_under_rotations_of_the_residual_stream():
    torch.manual_seed(0)
    d = 8

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(11, d), nn.Linear(d, 11, bias=False)
            self.norms = nn.ModuleList(SingleScaleRMSNorm(d, init=s) for s in (0.7, 1.3, 2.0))
            self.attention = GatedAttention(d, 2, gate=None, causal=True, bias=False)
            self.up, self.down = nn.Linear(d, 16, bias=False), nn.Linear(16, d, bias=False)

        def forward(self, tokens):
            x = self.embed(tokens)
            x = x + self.attention(self.norms[0](x))
            x = x + self.down(torch.relu(self.up(self.norms[1](x))))
            return self.head(self.norms[2](x))

    net, tokens = Net().double(), torch.arange(11)[None]
    before = net(tokens)
    q = torch.linalg.qr(rand(d, d, seed=1, dtype=torch.float64))[0]
    with torch.no_grad():
        net.embed.weight.copy_(net.embed.weight @ q)
        for reader in (net.attention.q_proj, net.attention.k_proj, net.attention.v_proj, net.up, net.head):
            reader.weight.copy_(reader.weight @ q)
        for writer in (net.attention.o_proj, net.down):
            writer.weight.copy_(q.T @ writer.weight)
    torch.testing.assert_close(net(tokens), before)


def test_it_has_one_parameter_and_still_has_one_after_a_step():
    norm, x = SingleScaleRMSNorm(8), rand(5, 8)
    assert [tuple(p.shape) for p in norm.parameters()] == [(1,)]
    (norm(x) * rand(5, 8, seed=1)).sum().backward()
    torch.optim.Adam(norm.parameters(), lr=0.1).step()
    ratio = norm(x) / nn.functional.rms_norm(x, (8,), None, 1e-6)
    torch.testing.assert_close(ratio, norm.scale.expand_as(ratio))
    assert norm.scale.item() != 1


def test_the_exported_norm_is_equal():
    norm, x = SingleScaleRMSNorm(8, init=0.3).eval(), rand(5, 8)
    plain = norm.to_rms_norm()
    assert plain.weight.shape == (8,) and not plain.training
    torch.testing.assert_close(plain(x), norm(x))


def test_finite_differences_compilation_and_bfloat16():
    norm, x = SingleScaleRMSNorm(4, init=1.3), rand(3, 4)
    torch.testing.assert_close(torch.compile(norm, backend="aot_eager", fullgraph=True)(x), norm(x))
    with torch.autocast("cpu", torch.bfloat16):
        out = norm(x.bfloat16())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), norm(x), atol=2e-2, rtol=2e-2)
    assert torch.autograd.gradcheck(
        lambda x, s: torch.func.functional_call(norm, {"scale": s}, (x,)),
        (x.double().requires_grad_(), norm.scale.detach().double().requires_grad_()),
    )


def test_half_precision_does_not_overflow():
    x = torch.full((2, 8), 3e4, dtype=torch.float16)
    torch.testing.assert_close(SingleScaleRMSNorm(8)(x), torch.ones_like(x))


def test_a_whole_model_is_expanded_once_trained():
    torch.manual_seed(0)
    net, x = nn.Sequential(SingleScaleRMSNorm(4, init=2.0), nn.Linear(4, 4), SingleScaleRMSNorm(4)), rand(3, 4)
    net.add_module("again", net[0])
    before = net(x)
    assert expand_single_scale(net) is net
    assert net.again is net[0] and net.state_dict()["0.weight"].tolist() == [2.0] * 4
    torch.testing.assert_close(net(x), before)
    with pytest.raises(ModelError, match="nothing to expand"):
        expand_single_scale(net)
