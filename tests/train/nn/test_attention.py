"""Gated attention: equal to plain attention where it must be, causal, masked, compiled, differentiable."""

import pytest

pytest.importorskip("torch", reason="needs the extra 'deep'")

import torch
from torch import nn

from skerry.core.errors import ParameterError
from skerry.train.nn import ClippedSoftmax, GatedAttention, HeadGate
from skerry.train.nn.gates import GATES

D, H, T = 8, 2, 6


def rand(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def build(gate="linear", seed=0, **arguments):
    torch.manual_seed(seed)
    return GatedAttention(D, H, gate=gate, **arguments)


def twin(attention, x, probabilities, gate):
    """Attention by loops over batch and heads, with the given function of (T, T) scores."""
    c = attention.head_dim
    out = torch.zeros(*x.shape[:2], H * c, dtype=x.dtype)
    for b in range(len(x)):
        q, k, v = attention.q_proj(x[b]), attention.k_proj(x[b]), attention.v_proj(x[b])
        for h in range(H):
            part = slice(c * h, c * h + c)
            p = probabilities(q[:, part] @ k[:, part].T / c**0.5)
            out[b, :, part] = gate(x)[b, h] * (p @ v[:, part])
    return attention.o_proj(out)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("causal", [False, True])
def test_a_naive_twin_agrees(gate, causal):
    attention, x = build(gate, causal=causal).double(), rand(2, T, D, dtype=torch.float64)
    mask = torch.ones(T, T, dtype=torch.bool).tril() if causal else torch.ones(T, T, dtype=torch.bool)
    plain = twin(attention, x, lambda s: s.masked_fill(~mask, -torch.inf).softmax(-1), attention.gate)
    torch.testing.assert_close(attention(x), plain)
    clip = ClippedSoftmax(alpha=1.5, seq_len=T)
    clipped = twin(attention, x, lambda s: clip(s.masked_fill(~mask, -torch.inf)), attention.gate)
    attention.softmax, attention.explicit = clip, True
    torch.testing.assert_close(attention(x), clipped)
    assert not torch.allclose(plain, clipped)


@pytest.mark.parametrize("gate", GATES)
def test_an_open_gate_is_plain_attention_and_a_flat_one_scales_it(gate):
    attention, plain = build(gate, gate_init=0.25, causal=True), build(None, causal=True)
    plain.load_state_dict({k: v for k, v in attention.state_dict().items() if not k.startswith("gate")})
    x = rand(3, T, D)
    if attention.gate.weight is not None:
        nn.init.zeros_(attention.gate.weight)
    bare = plain(x) - plain.o_proj.bias
    torch.testing.assert_close(attention(x) - attention.o_proj.bias, 0.25 * bare, atol=1e-6, rtol=1e-5)
    nn.init.constant_(attention.gate.bias, 1e4)
    torch.testing.assert_close(attention(x), plain(x))


@pytest.mark.parametrize("gate", GATES)
def test_gates_put_into_a_trained_network_change_nothing_at_first(gate):
    trained, x = build(None, causal=True), rand(3, T, D)
    before = trained(x)
    trained.gate = HeadGate(gate, D, H, init=0.25, finetune_std=0.0)
    torch.testing.assert_close(trained(x), before, atol=1e-5, rtol=0)


@pytest.mark.parametrize("gate", [None, *GATES])
@pytest.mark.parametrize("softmax", [None, ClippedSoftmax(alpha=1.2, seq_len=T), ClippedSoftmax(gamma=0.0)])
@pytest.mark.parametrize("n_kv_heads", [2, 1])
def test_every_causal_variant_is_causal(gate, softmax, n_kv_heads):
    attention = build(gate, softmax=softmax, causal=True, n_kv_heads=n_kv_heads).double()
    x = rand(1, T, D, dtype=torch.float64).requires_grad_()
    out = attention(x)
    for t in range(T):
        (grad,) = torch.autograd.grad(out[0, t].sum(), x, retain_graph=True)
        assert (grad[0, t + 1 :] == 0).all()
        assert (grad[0, t] != 0).any()
    changed = x.detach().clone()
    changed[:, 4:] += 10
    torch.testing.assert_close(attention(changed)[:, :4], out[:, :4], atol=0, rtol=0)
    for length in (1, 3):  # and the same on a shorter text
        torch.testing.assert_close(attention(x[:, :length]), out[:, :length])


def test_without_causal_every_token_is_seen():
    attention, x = build("all-heads").double(), rand(1, T, D, dtype=torch.float64).requires_grad_()
    (grad,) = torch.autograd.grad(attention(x)[0, 0].sum(), x)
    assert (grad != 0).any(-1).all()


@pytest.mark.parametrize("softmax", [None, ClippedSoftmax(alpha=1.2, seq_len=T)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["bool", "additive", "per batch"])
def test_masks_and_padding_hide_keys(softmax, causal, kind):
    attention, x = build(softmax=softmax, causal=causal), rand(2, T, D)
    seen = rand(T, T, seed=3) > -0.8
    seen.fill_diagonal_(True)
    mask = {
        "bool": seen,
        "additive": torch.zeros(T, T).masked_fill(~seen, -torch.inf),
        "per batch": seen.expand(2, T, T),
    }
    out, weights = attention(x, mask[kind], need_weights=True)
    hidden = ~(seen.tril() if causal else seen)
    assert (weights[..., hidden] == 0).all()
    torch.testing.assert_close(attention(x, mask[kind]), out)
    pad = torch.zeros(2, T, dtype=torch.bool)
    pad[0, 4:] = True
    out, weights = attention(x, mask[kind], pad_mask=pad, need_weights=True)
    assert (weights[0, ..., 4:] == 0).all()
    torch.testing.assert_close(attention(x, mask[kind], pad_mask=pad), out)
    short = mask[kind][:1, :4, :4] if kind == "per batch" else mask[kind][:4, :4]
    torch.testing.assert_close(out[0, :4], attention(x[:1, :4], short)[0])


@pytest.mark.parametrize("mask", [None, torch.ones(T, T, dtype=torch.bool), torch.zeros(T, T)])
def test_a_sequence_of_padding_alone_is_finite(mask):
    pad = torch.ones(1, T, dtype=torch.bool)
    for softmax in (None, ClippedSoftmax(alpha=1, seq_len=T)):
        attention, x = build(softmax=softmax), rand(1, T, D).requires_grad_()
        out = attention(x, mask, pad_mask=pad)
        (grad,) = torch.autograd.grad(out.sum(), x)
        assert torch.isfinite(out).all() and torch.isfinite(grad).all()
        torch.testing.assert_close(out, attention.o_proj.bias.expand_as(out))


@pytest.mark.parametrize("n_kv_heads", [1, 2])
def test_rotary_positions_depend_on_distance_alone(n_kv_heads):
    attention, x = build(n_kv_heads=n_kv_heads), rand(1, T, D)

    def rotary(start):
        angle = (start + torch.arange(T))[:, None] * 10 ** -torch.arange(0, 1, 0.5)
        angle = torch.cat([angle, angle], -1)
        return angle.cos(), angle.sin()

    here, there = attention(x, rotary=rotary(0)), attention(x, rotary=rotary(50))
    torch.testing.assert_close(here, there, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(here, attention(x), atol=1e-4)
    torch.testing.assert_close(attention(x, rotary=rotary(0), need_weights=True)[0], here)


def test_an_additive_mask_and_rotary_positions_follow_the_dtype_of_the_network():
    attention, x = build(causal=True).bfloat16(), rand(1, T, D).bfloat16()
    rotary = (torch.ones(T, D // H), torch.zeros(T, D // H))
    out = attention(x, torch.zeros(T, T), rotary=rotary)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, attention(x), atol=2e-2, rtol=2e-2)


def test_hooks_see_the_probabilities_once_the_path_is_explicit():
    attention, seen = build(causal=True), []
    attention.softmax.register_forward_hook(lambda module, inputs, output: seen.append(output))
    out = attention(rand(1, T, D))
    assert not seen
    attention.explicit = True
    torch.testing.assert_close(attention(rand(1, T, D)), out)
    torch.testing.assert_close(seen[0].sum(-1), torch.ones(1, H, T))


def test_dropout_acts_in_training_on_both_paths():
    for softmax in (None, ClippedSoftmax(gamma=0.0)):
        attention, x = build(softmax=softmax, dropout=0.5), rand(1, T, D)
        assert not torch.equal(attention(x), attention(x))
        attention.eval()
        assert torch.equal(attention(x), attention(x))


@pytest.mark.parametrize("gate", [None, *GATES])
@pytest.mark.parametrize("softmax", [None, ClippedSoftmax(alpha=0.4, seq_len=3)])
def test_gradients_against_finite_differences(gate, softmax):
    attention = build(gate, softmax=softmax, causal=True).double()
    names = [n for n, _ in attention.named_parameters()]

    def run(x, *values):
        return torch.func.functional_call(attention, dict(zip(names, values, strict=True)), (x,))

    inputs = (
        rand(1, 3, D, dtype=torch.float64).requires_grad_(),
        *[p.detach().clone().requires_grad_() for p in attention.parameters()],
    )
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize("gate", ["linear", "mlp", "element"])
@pytest.mark.parametrize("softmax", [None, ClippedSoftmax(alpha=1.2, seq_len=T)])
def test_it_compiles_whole_and_runs_in_bfloat16(gate, softmax):
    attention, x = build(gate, softmax=softmax, causal=True), rand(2, T, D)
    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), attention(x))
    compiled(x).sum().backward()
    assert all(p.grad is not None for p in attention.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        out = attention(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), attention(x), atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"n_heads": 3}, "do not divide"),
        ({"n_kv_heads": 3}, "key heads"),
        ({"dropout": 1.0}, "dropout"),
        ({"gate": None, "gate_init": 0.5}, "gate_init"),
        ({"gate": HeadGate("linear", D, H, pooled=True), "causal": True}, "tokens to come"),
    ],
)
def test_wrong_arguments_are_refused(arguments, match):
    with pytest.raises(ParameterError, match=match):
        GatedAttention(**{"d_model": D, "n_heads": H, **arguments})
