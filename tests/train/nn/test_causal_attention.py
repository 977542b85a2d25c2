"""Variants of causal attention: what each equals at its neutral setting, causality, both paths, golden values."""

import pytest
import torch

from skerry.core.errors import ParameterError
from skerry.quant.diagnose import sink_decomposition
from skerry.train.nn import CausalAttention, SigmoidWeights
from skerry.train.nn.causal_attention import CAUSAL_ATTENTIONS, SoftmaxBesideKey

D, H, T = 16, 2, 9


@pytest.fixture
def x():
    return torch.randn(3, T, D, generator=torch.Generator().manual_seed(0))


def make(variant, **fields):
    torch.manual_seed(1)
    plain = CausalAttention(D, H, "default", **fields)
    torch.manual_seed(2)
    other = CausalAttention(D, H, variant, **fields)
    other.load_state_dict(plain.state_dict(), strict=False)
    return plain.eval(), other.eval()


def test_a_value_bias_of_zero_changes_nothing(x):
    plain, other = make("value_bias")
    torch.testing.assert_close(other(x), plain(x))
    other.extra_value.data += 1.0
    moved = plain.o_proj(torch.ones(H * (D // H)))
    torch.testing.assert_close(other(x), plain(x) + moved, atol=1e-5, rtol=1e-5)


def test_a_context_bias_without_a_value_changes_nothing(x):
    plain, other = make("context_bias")
    other.extra_value.data.zero_()
    torch.testing.assert_close(other(x), plain(x), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("need_weights", [False, True])
def test_an_unseen_key_changes_nothing(x, need_weights):
    plain, other = make("attn_bias")
    # every query against the learned key: -inf in the limit
    other.q_proj.bias = torch.nn.Parameter(torch.full((D,), 60.0))
    plain.q_proj.bias = torch.nn.Parameter(torch.full((D,), 60.0))
    other.extra_key.data.fill_(-60.0)
    out = other(x, need_weights=need_weights)
    torch.testing.assert_close(out[0] if need_weights else out, plain(x), atol=1e-5, rtol=1e-5)


def test_a_context_scale_of_zero_logits_is_one(x):
    plain, other = make("context_scale")
    other.gate.weight.data.zero_()
    torch.testing.assert_close(other(x), plain(x), atol=1e-6, rtol=1e-6)
    other.gate.bias.data.fill_(50.0)  # 2 sigmoid goes to 2
    torch.testing.assert_close(other(x), 2 * plain(x), atol=1e-5, rtol=1e-5)


def test_the_learned_key_scales_what_the_tokens_give(x):
    """Variant (d) is S times (a) plus (1 - S) v': the identity that the paper is about."""
    plain, other = make("attn_bias", n_kv_heads=1)
    seen = {}
    other.o_proj.register_forward_pre_hook(lambda m, inputs: seen.__setitem__("d", inputs[0]))
    plain.o_proj.register_forward_pre_hook(lambda m, inputs: seen.__setitem__("a", inputs[0]))
    _, weights = other(x, need_weights=True)
    plain(x)
    S = weights.sum(-1).transpose(1, 2)[..., None]  # (B, T, H, 1)
    a, d = (seen[k].unflatten(-1, (H, -1)) for k in "ad")
    torch.testing.assert_close(d, S * a + (1 - S) * other.extra_value, atol=1e-5, rtol=1e-5)


def test_context_bias_emits_the_share_of_the_learned_key(x):
    _, other = make("context_bias")
    plain, beside = make("attn_bias")
    for name in ("extra_key", "extra_value"):
        getattr(beside, name).data.copy_(getattr(other, name).data * 20)
        getattr(other, name).data.mul_(20)
    _, weights = beside(x, need_weights=True)
    share = 1 - weights.sum(-1)
    seen = {}
    other.o_proj.register_forward_pre_hook(lambda m, inputs: seen.__setitem__("c", inputs[0]))
    plain.o_proj.register_forward_pre_hook(lambda m, inputs: seen.__setitem__("a", inputs[0]))
    other(x), plain(x)
    c, a = (seen[k].unflatten(-1, (H, -1)) for k in "ca")
    expected = share.transpose(1, 2)[..., None] * other.extra_value
    torch.testing.assert_close(c - a, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", CAUSAL_ATTENTIONS)
def test_no_variant_reads_the_future(variant, x):
    _, attention = make(variant)
    changed = x.clone()
    changed[:, 5] += 10.0
    before, after = attention(x), attention(changed)
    torch.testing.assert_close(after[:, :5], before[:, :5], atol=1e-6, rtol=1e-6)
    assert (after[:, 5:] - before[:, 5:]).abs().max() > 1e-3


@pytest.mark.parametrize("variant", CAUSAL_ATTENTIONS)
@pytest.mark.parametrize("kind", ["none", "padding", "additive"])
def test_explicit_and_fused_paths_agree(variant, kind, x):
    _, attention = make(variant, n_kv_heads=1)
    pad = torch.zeros(3, T, dtype=torch.bool)
    pad[1, 6:] = True
    how = {
        "none": {},
        "padding": {"pad_mask": pad},
        "additive": {"mask": torch.randn(T, T, generator=torch.Generator().manual_seed(4))},
    }[kind]
    out, _ = attention(x, need_weights=True, **how)
    torch.testing.assert_close(attention(x, **how), out, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", CAUSAL_ATTENTIONS)
def test_gradients_against_finite_differences(variant):
    _, attention = make(variant)
    attention = attention.double()
    x = torch.randn(1, 4, D, dtype=torch.float64, generator=torch.Generator().manual_seed(3), requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: attention(z).sum(-1), (x,), atol=1e-4)


@pytest.mark.parametrize("variant", CAUSAL_ATTENTIONS)
def test_it_compiles_whole_and_runs_in_bfloat16(variant, x):
    _, attention = make(variant)
    compiled = torch.compile(attention, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), attention(x))
    with torch.autocast("cpu", torch.bfloat16):
        low = attention(x)
    torch.testing.assert_close(low.float(), attention(x), atol=0.05, rtol=0.1)


def test_golden_values_of_the_scaling_factor():
    q = torch.tensor([[1.0, 0.0]])
    K = torch.tensor([[3.0, 0.0], [0.5, 1.0], [-0.5, 2.0]])
    V = torch.tensor([[0.0, 0.0], [1.0, 2.0], [3.0, -1.0]])
    P = (q @ K.T / 2**0.5).softmax(-1)
    torch.testing.assert_close(P, torch.tensor([[0.7968843, 0.1360391, 0.0670766]]))
    S, rest, _ = sink_decomposition(P, V, [0])
    torch.testing.assert_close(S, torch.tensor([0.2031157]))
    torch.testing.assert_close(S[:, None] * rest, torch.tensor([[0.3372690, 0.2050016]]))
    # the same factor from a learned key in place of the first token
    beside = SoftmaxBesideKey()(q @ K[1:].T / 2**0.5, q @ K[:1].T / 2**0.5)
    torch.testing.assert_close(beside.sum(-1), S)


def test_sigmoid_weights():
    scores = torch.tensor([0.0, 2.0, -torch.inf])
    expected = 1 / (1 + 5 * torch.exp(-scores))
    torch.testing.assert_close(SigmoidWeights(5)(scores), expected)
    with pytest.raises(ParameterError, match="seq_len is 0"):
        SigmoidWeights(0)


def test_unknown_variants_are_refused():
    with pytest.raises(ParameterError, match="context_scale"):
        CausalAttention(D, H, "contextscale")
