"""The check-up finds what was planted, where it was planted, and nothing depends on scale."""

import json

import pytest
import torch
from torch import nn

from skerry.core.errors import DataError, ModelError, ParameterError
from skerry.quant import diagnose
from skerry.quant.comparison import language_loss
from skerry.quant.diagnose.activations import StreamWatch, token_class
from skerry.quant.diagnose.report import described_blocks
from skerry.quant.diagnose.spread import SpreadWatch
from skerry.quant.diagnose.weights import weight_outliers
from skerry.report.diagnose_html import render_diagnosis


def planted(tiny, token=9, channel=7, mark=20, up=1, down=3):
    """A Llama whose block ``up`` writes a huge value for one token and whose block ``down`` takes it away."""
    model = tiny("llama", blocks=5)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, [mark, channel]] = 0.0
        model.model.embed_tokens.weight[token] = 0.0
        model.model.embed_tokens.weight[token, mark] = 1.0  # nothing else has this channel
        for block in model.model.layers:
            block.self_attn.o_proj.weight[:] = 0.0  # the same token is the same vector everywhere
            block.mlp.down_proj.weight *= 0.01
            block.mlp.down_proj.weight[[mark, channel]] = 0.0
        for index, sees, writes in ((up, mark, 60.0), (down, channel, -60.0)):
            mlp = model.model.layers[index].mlp
            for reader in (mlp.gate_proj, mlp.up_proj):
                reader.weight[0] = 0.0
                reader.weight[0, sees] = 2.0
            mlp.down_proj.weight[:, 0] = 0.0
            mlp.down_proj.weight[channel, 0] = writes
        states = model(torch.full((1, 1), token), output_hidden_states=True).hidden_states
        value, change = states[down][0, 0, channel], states[down + 1][0, 0, channel] - states[down][0, 0, channel]
        model.model.layers[down].mlp.down_proj.weight[channel, 0] *= -value / change
    return model


def test_golden_sink_decomposition():
    q, K = torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 0.0], [0.5, 1.0], [-0.5, 2.0]])
    V = torch.tensor([[0.0, 0.0], [1.0, 2.0], [3.0, -1.0]])
    P = torch.softmax(q @ K.T / 2**0.5, -1)
    torch.testing.assert_close(P, torch.tensor([[0.7968843, 0.1360391, 0.0670766]]))
    S, rest, b = diagnose.sink_decomposition(P, V, [0])
    assert S.item() == pytest.approx(0.2031157, abs=1e-6)
    torch.testing.assert_close(S[..., None] * rest + b, torch.tensor([[0.3372690, 0.2050016]]))


def test_sinks_and_the_rest_add_up():
    generator = torch.Generator().manual_seed(0)
    P = torch.softmax(torch.randn(2, 3, 5, 6, generator=generator) * 3, -1)
    V = torch.randn(2, 3, 6, 4, generator=generator)
    S, rest, b = diagnose.sink_decomposition(P, V, [0, 4])
    torch.testing.assert_close(S[..., None] * rest + b, P @ V, atol=1e-5, rtol=0)
    torch.testing.assert_close(S + P[..., [0, 4]].sum(-1), torch.ones(2, 3, 5))
    assert float(S.min()) >= 0 and float(S.max()) <= 1


def test_received_attention_sums_to_the_queries(tiny, inputs):
    for family in ("llama", "opt", "gpt2"):
        report = diagnose.outliers(tiny(family), inputs(family))
        assert len(report.attention) == 2
        for layer in report.attention:
            assert float(layer.received.sum()) == pytest.approx(12.0, abs=1e-3)


def test_a_planted_element_is_found_exactly_there(tiny, inputs):
    model, batches = tiny("opt"), inputs("opt")
    block = model.model.decoder.layers[1]

    def plant(module, arguments, output):
        x = output.clone()
        x[1, 5, 11] = 2000 * x.abs().mean()
        return x

    handle = block.register_forward_hook(plant)
    # the mean includes the outlier: among 768 values it is 3.6 times what it was
    report = diagnose.outliers(model, batches[:1], tokenizer=[f"t{i}" for i in range(64)], act_eta=400.0)
    handle.remove()
    first, second = report.activation.layers
    assert first.tokens == [] and [(t.sequence, t.position, t.channels) for t in second.tokens] == [(1, 5, (11,))]
    assert second.channels[0] == 11 and second.ratio > 400
    assert sum(report.activation.classes.values()) == len(second.tokens)


def test_the_life_of_an_outlier(tiny):
    model = planted(tiny)
    batch = torch.randint(10, 64, (3, 12), generator=torch.Generator().manual_seed(2))
    batch[0, 4] = batch[2, 8] = 9
    report = diagnose.outliers(model, [batch], act_eta=30.0)
    life = report.lifecycle
    assert life.emergence.layer == "model.layers.1" and life.emergence.channel == 7
    assert {(t.sequence, t.position) for t in report.activation.layers[1].tokens} == {(0, 4), (2, 8)}
    assert 7 in report.activation.systematic
    best = life.emergence.contributions[0]
    assert best.column == 0 and best.contribution == pytest.approx(best.weight * best.value)
    assert sum(c.contribution for c in life.emergence.contributions) == pytest.approx(life.emergence.written, rel=0.1)
    assert life.emergence.change == pytest.approx(life.emergence.written, rel=1e-4)
    assert min(life.similarity.values()) > 0.9
    assert [s.layer for s in life.spread] == ["model.layers.2", "model.layers.3"]
    assert min(s.similarity for s in life.spread) > 0.99  # behind a norm they are one vector
    assert "likeness of outlier tokens" in render_diagnosis(report)
    assert life.disappearance.layer == "model.layers.3"
    assert life.disappearance.change * life.emergence.change < 0
    assert report.activation.layers[0].outliers == report.activation.layers[3].outliers == 0


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "bert"])
def test_lengths_of_queries_keys_and_values_are_those_of_counting(family, tiny, inputs):
    model, batch, places = tiny(family), inputs(family)[0], [(0, 3), (1, 0)]
    blocks = described_blocks(model)
    watch, outputs = SpreadWatch(blocks, places), {}
    names = {"llama": "k_proj", "opt": "k_proj", "gpt2": "c_attn", "bert": "key"}
    for name, module in model.named_modules():
        if name.endswith(names[family]):
            module.register_forward_hook(lambda m, a, o, name=name: outputs.__setitem__(name, o))
    with watch.watching(), torch.no_grad():
        model(batch)
    told = watch.report()
    assert [s.layer for s in told] == list(blocks)
    for spread, x in zip(told, outputs.values(), strict=True):
        lengths = (x.chunk(3, -1)[1] if family == "gpt2" else x).norm(dim=-1)
        assert spread.key == pytest.approx(float(lengths[[0, 1], [3, 0]].mean() / lengths.mean()), rel=1e-5)
        assert spread.query > 0 and spread.value > 0 and -1.0 <= spread.similarity <= 1.0 + 1e-6
    with torch.no_grad():
        model(batch)  # nothing is left behind
    assert watch.report() == told


@pytest.mark.parametrize("scale", [1e-3, 7.0, 1e4])
def test_the_size_of_a_stream_changes_no_verdict(scale):
    x = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    x[1, 4, 5] = 50.0

    def verdicts(x):
        stream = nn.Identity()
        watch = StreamWatch({"a": stream}, 20.0)
        with watch.measuring():
            stream(x)
        with watch.locating(lambda: None, lambda token: None):
            stream(x)
        return watch.report()

    plain, scaled = verdicts(x), verdicts(x * scale)
    assert [(t.sequence, t.position, t.channels) for t in plain.layers[0].tokens] == [(1, 4, (5,))]
    assert [(t.sequence, t.position, t.channels) for t in scaled.layers[0].tokens] == [(1, 4, (5,))]
    assert scaled.layers[0].ratio == pytest.approx(plain.layers[0].ratio, rel=1e-5)
    assert scaled.layers[0].kurtosis == pytest.approx(plain.layers[0].kurtosis, rel=1e-4)
    assert (scaled.systematic, scaled.classes) == (plain.systematic, plain.classes)


def test_scaling_changes_no_verdict(tiny, inputs):
    model = tiny("llama")
    model.model.layers[0].mlp.down_proj.weight.data[3, 4] = 30.0
    before = weight_outliers(model)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.data *= 0.001
    after = weight_outliers(model)
    assert {n for n, w in before.items() if w.flagged} == {n for n, w in after.items() if w.flagged}
    assert before["model.layers.0.mlp.down_proj"].flagged
    assert before["model.layers.0.mlp.down_proj"].top_columns[0][0] == 4
    for name, found in before.items():
        assert after[name].score == pytest.approx(found.score, rel=1e-4)


def test_interventions(tiny):
    model = planted(tiny)
    batch = torch.randint(10, 64, (3, 12), generator=torch.Generator().manual_seed(2))
    batch[0, 4] = 9
    report = diagnose.outliers(model, [batch], act_eta=30.0)
    plain = language_loss(model, batch)
    assert diagnose.intervene(model, report, "zero", batches=[batch], floor=1e9) == pytest.approx(plain)
    assert diagnose.intervene(model, report, "zero", batches=[batch]) != plain
    assert diagnose.intervene(model, report, "mean", batches=[batch]) == pytest.approx(plain, abs=0.2)
    assert language_loss(model, batch) == plain  # no hook is left behind
    with pytest.raises(ParameterError, match="zero"):
        diagnose.intervene(model, report, "none", batches=[batch])


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "bert"])
def test_the_report_is_json_and_the_same_again(family, tiny, inputs):
    first = diagnose.outliers(tiny(family), inputs(family), act_eta=4.0).to_plain()
    assert json.loads(json.dumps(first)) == json.loads(
        json.dumps(diagnose.outliers(tiny(family), inputs(family), act_eta=4.0).to_plain())
    )
    assert first["advice"] and first["down_input"]["layers"] and len(first["activation"]["layers"]) == 2


def test_statistics_against_numpy(tiny, inputs):
    model, batches = tiny("llama"), inputs("llama")
    outputs = []
    handle = model.model.layers[0].register_forward_hook(lambda m, i, o: outputs.append(o))
    report = diagnose.outliers(model, batches)
    handle.remove()
    x = torch.cat(outputs[: len(batches)]).double()
    layer = report.activation.layers[0]
    assert layer.mean == pytest.approx(float(x.abs().mean()), rel=1e-5)
    z = (x - x.mean()) / x.std(correction=0)
    assert layer.kurtosis == pytest.approx(float((z**4).mean()), rel=1e-4)
    assert layer.top[0] == pytest.approx(float(x.abs().max()), rel=1e-6)
    assert layer.moderate == int((x.abs() > 100 * x.abs().mean()).sum())


@pytest.mark.parametrize(
    ("text", "position", "kind"),
    [
        ("The", 0, "initial"),
        (".", 3, "strong_delimiter"),
        ("\n", 3, "strong_delimiter"),
        (" --", 2, "strong_delimiter"),
        ("\u0120the", 5, "weak_semantic"),
        ("\u2581Of", 5, "weak_semantic"),
        ("", 5, "weak_semantic"),
        ("7", 1, "weak_semantic"),
        ("seven", 1, "other"),
        (None, 1, "other"),
    ],
)
def test_token_classes(text, position, kind):
    assert token_class(text, position) == kind


def test_no_batch_is_refused(tiny):
    with pytest.raises(DataError, match="empty"):
        diagnose.outliers(tiny("llama"), [])


def test_numbers_that_are_none_are_told(tiny, inputs):
    model = tiny("llama")
    up = model.model.layers[1].mlp.up_proj.weight.data
    up[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj\.weight holds NaN"):
        diagnose.outliers(model, inputs("llama"))
    up[0, 0] = 3e38  # finite, its products are not
    up[0, 1] = -3e38
    model.model.layers[1].mlp.down_proj.weight.data *= 1e6
    with pytest.raises(ModelError, match="outputs are not finite"):
        diagnose.outliers(model, inputs("llama"))
