"""The probe tells planted residual sinks from planted massive activations, and interventions do what they say."""

import pytest

pytest.importorskip("torch", reason="needs the extra 'deep'")

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from skerry.core.errors import ModelError, ParameterError
from skerry.deep.sink_interventions import absorption_test, causal_test
from skerry.deep.sinks import SinkProbe, rescaling_bound
from skerry.deep.stream import stream_blocks, stream_norms
from skerry.train.lab_model import SmallGPT


def tokens(n=4, length=16, vocabulary=20, seed=0):
    return torch.randint(vocabulary, (n, length), generator=torch.Generator().manual_seed(seed))


def network(**parts):
    torch.manual_seed(0)
    return SmallGPT(20, dim=32, n_layers=2, n_heads=2, seq_len=16, **parts)


def plant(model, channel, size, first_only=False):
    rows = slice(0, 1) if first_only else slice(None)
    with torch.no_grad():
        model.position.weight[rows, channel] = size


def loss(model, x):
    return F.cross_entropy(model(x)[:, :-1].flatten(0, 1), x[:, 1:].flatten())


def test_a_planted_channel_is_a_residual_sink_and_not_massive():
    model = network()
    plant(model, 7, 50.0)
    report = SinkProbe(model).run([tokens(), tokens(seed=1)])
    assert [s.channel for s in report.residual_sinks] == [7] and not report.massive
    sink = report.residual_sinks[0]
    assert sink.mean_abs == pytest.approx(50, rel=0.02) and sink.argmax_share == 1.0 and sink.ratio > 100
    assert report.channel == 7 and report.top(1)[0][0] == 7
    assert report.peak == pytest.approx(50, rel=0.02)
    assert all(lever.mean > 0.99 and lever.p99 > 0.99 for lever in report.levers) and len(report.levers) == 5


def test_a_planted_first_token_is_massive_and_no_residual_sink():
    model = network()
    plant(model, 7, 150.0, first_only=True)
    report = SinkProbe(model).run([tokens()])
    assert {(m.block, m.channel) for m in report.massive} == {("blocks.0", 7), ("blocks.1", 7)}
    assert not report.residual_sinks
    assert report.peak_first == pytest.approx(150, rel=0.02) and report.peak < 5


def test_an_untrained_network_has_neither():
    report = SinkProbe(network()).run([tokens()])
    assert not report.residual_sinks and not report.massive


def test_the_gain_and_the_contribution_of_a_muted_channel():
    model = network()
    plant(model, 7, 50.0)
    with torch.no_grad():
        for norm in stream_norms(model).values():
            norm.weight[7] = 0.001
    for lever in SinkProbe(model).run([tokens()]).levers:
        assert lever.gain_ratio == pytest.approx(0.001) and lever.contribution < 0.9 < lever.mean


def test_attention_sinks_are_read_in_every_kind():
    for kind in ("softmax", "gate", "clip"):
        found = SinkProbe(network(attention=kind)).run([tokens()]).attention
        assert [a.layer for a in found] == ["blocks.0.attention", "blocks.1.attention"]
        assert all(len(a.mass) == 2 and all(0 <= m <= 1 for m in a.mass) for a in found)
        assert all(a.value_drain > 0 for a in found)
    model = network()
    SinkProbe(model).run([tokens()])
    assert not any(b.attention.explicit for b in model.blocks)  # put back


def test_attention_of_transformers_is_read():
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    config = transformers.LlamaConfig(
        vocab_size=20, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    report = SinkProbe(model).run([{"input_ids": tokens()}])
    assert len(report.attention) == 2 and all(len(a.mass) == 4 for a in report.attention)
    assert all(a.value_drain > 0 and 0 <= a.contribution for a in report.attention)
    assert len(report.levers) == 5
    assert model.config._attn_implementation != "eager"


def test_a_network_without_blocks_is_refused():
    with pytest.raises(ModelError, match="blocks"):
        stream_blocks(torch.nn.Linear(2, 2))
    with pytest.raises(ModelError, match="batch"):
        SinkProbe(network()).run([])


def test_an_input_independent_sink_mean_harmless_zero_harmful():
    model = network()
    with torch.no_grad():
        for p in model.parameters():  # a network whose outputs matter
            p.mul_(8 if p.ndim == 2 else 1)
    plant(model, 7, 30.0)
    x = [tokens()]
    mean, zero = (causal_test(model, [7], kind, x, loss) for kind in ("mean", "zero"))
    assert set(mean.by_norm) == set(stream_norms(model)) and mean.base == zero.base
    assert abs(mean.total) < 0.1 * abs(zero.total)
    assert abs(zero.total) > 0.05
    clamped = causal_test(model, [7], "clamp", x, loss, clamp=1e6)
    assert clamped.total == pytest.approx(0, abs=1e-6)
    assert abs(causal_test(model, [7], "clamp", x, loss, clamp=0.5).total) > 1e-3
    with pytest.raises(ParameterError, match="kind"):
        causal_test(model, [7], "median", x, loss)


def test_absorption_keeps_the_loss_and_lowers_the_peak():
    model = network()
    plant(model, 7, 30.0)
    found = absorption_test(model, 7, [tokens()], loss)
    assert abs(found.loss_change) < 1e-5
    assert found.peak == pytest.approx(30, rel=0.02) and found.peak_absorbed < 3
    assert set(found.mean) == {"blocks.0", "blocks.1"}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_bound_golden():
    h = torch.tensor([1.0, -1, 1, -1, 20])
    gain = torch.tensor([1.0, 1, 1, 1, 0.01])
    out = gain * h / h.square().mean().sqrt()
    r = h[4] / h.norm()
    assert r.item() == pytest.approx(0.995037, abs=1e-6)
    assert out[:4].abs().numpy() == pytest.approx(0.111249, abs=1e-6)
    assert out.square().mean().sqrt().item() == pytest.approx(0.1, abs=1e-4)
    assert rescaling_bound(r, 0.01).item() == pytest.approx(0.1, abs=1e-4)


@given(st.integers(0, 10_000), st.floats(0.0, 200.0), st.floats(0.0, 1.0))
def test_the_bound_holds(seed, size, eps):
    draw = torch.Generator().manual_seed(seed)
    h = torch.randn(12, generator=draw, dtype=torch.float64)
    gain = 2 * torch.rand(12, generator=draw, dtype=torch.float64) - 1
    h[3] = size
    gain[3] = 0
    top = gain.abs().max()
    gain[3] = eps * top
    out = gain * h / h.square().mean().sqrt()
    bound = rescaling_bound(h[3].abs() / h.norm(), eps, top)
    assert out.square().mean().sqrt() <= bound + 1e-6
