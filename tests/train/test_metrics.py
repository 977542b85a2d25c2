"""What is measured on a network equals what its tensors say, and the probe records what it is told to."""

import pytest

pytest.importorskip("torch", reason="needs the extra 'deep'")

import torch

from skerry.core.errors import ModelError, ParameterError
from skerry.deep import outlier_metrics as om
from skerry.train.lab_model import SmallGPT
from skerry.train.metrics import OutlierProbe, mean_excess_kurtosis, measure


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SmallGPT(20, dim=32, n_layers=2, n_heads=2, seq_len=16)


def batches(n=2):
    draw = torch.Generator().manual_seed(0)
    return [tuple(torch.randint(20, (3, 16), generator=draw) for _ in range(2)) for _ in range(n)]


@torch.no_grad()
def stream(model, x):
    h, found = model.embedding(x) + model.position.weight[: x.shape[1]], []
    for block in model.blocks:
        h = block(h)
        found.append(h)
    return found


@torch.no_grad()
def test_measure_equals_the_definitions(model):
    data = batches()
    found = measure(model, data)
    layers = [torch.cat(h) for h in zip(*(stream(model, x) for x, _ in data), strict=True)]
    assert found["excess kurtosis"] == pytest.approx(float(torch.stack([om.excess_kurtosis(h) for h in layers]).mean()))
    assert found["sequence kurtosis"] == pytest.approx(
        float(torch.stack([om.sequence_kurtosis(h) for h in layers]).mean()), rel=1e-5
    )
    assert found["inf norm"] == pytest.approx(max(float(om.infinity_norm(h).mean()) for h in layers))
    assert found["MMR"] == pytest.approx(max(om.max_median_ratio(om.channel_rms(h)) for h in layers), rel=1e-5)
    per_batch = [[om.peak(h) for h in stream(model, x)] for x, _ in data]
    assert found["peak"] == pytest.approx(sum(map(sum, per_batch)) / 4)
    assert found["floor"] == om.gaussian_floor(32)
    loss = torch.nn.functional.cross_entropy(
        torch.cat([model(x) for x, _ in data]).flatten(0, 1), torch.cat([y for _, y in data]).flatten()
    )
    assert found["loss"] == pytest.approx(float(loss), rel=1e-6)
    assert 0 <= found["sink, mean head"] <= found["sink, best head"] <= 1
    assert found["value drain"] > 0


def test_measuring_leaves_the_model_as_it_was(model):
    model.train()
    x = batches(1)[0][0]
    before = model(x)
    measure(model, batches())
    assert model.training and torch.equal(model(x), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with pytest.raises(ModelError, match="batch"):
        measure(model, [])


def test_targets_that_are_ignored_do_not_count(model):
    (x, y), other = batches()
    ignored = torch.full_like(y, -100)
    assert measure(model, [(x, y), (other[0], ignored)])["loss"] == pytest.approx(measure(model, [(x, y)])["loss"])


def test_the_released_mode_sees_first_tokens_only(model):
    with torch.no_grad():
        model.position.weight[0, 3] = 100.0
    tokens = [x for x, _ in batches()]
    sequence, released = (mean_excess_kurtosis(model, tokens, mode=m) for m in ("sequence", "released"))
    assert released > 5 * sequence  # the spike stands on every token there
    assert released == pytest.approx(28, rel=0.1)  # d - 3 for one channel of 32, nearly
    assert mean_excess_kurtosis(model, tokens, embedding=False) == pytest.approx(
        measure(model, batches())["excess kurtosis"]
    )
    with pytest.raises(ParameterError, match="mode"):
        mean_excess_kurtosis(model, tokens, mode="other")


def test_the_probe_records_by_name(model):
    data = batches()
    with OutlierProbe(model, [(r"blocks\.\d$", "output"), (r"^norm$", "input")]) as probe:
        for x, _ in data:
            model(x)
    rows = {(r["tensor"], r["side"]): r for r in probe.table}
    assert set(rows) == {("blocks.0", "output"), ("blocks.1", "output"), ("norm", "input")}
    assert rows["norm", "input"]["kurtosis"] == rows["blocks.1", "output"]["kurtosis"]
    last = torch.cat([stream(model, x)[1] for x, _ in data])
    assert rows["norm", "input"]["inf norm"] == pytest.approx(float(om.infinity_norm(last).mean()))
    assert probe.max_inf_norm == max(r["inf norm"] for r in rows.values())
    assert probe.avg_kurtosis <= probe.max_kurtosis
    with pytest.raises(ParameterError, match="skerry-gpt"):
        OutlierProbe(model, "skerry-gtp")
    with pytest.raises(ModelError, match="matches"):
        OutlierProbe(model, [("nothing", "output")])
    with pytest.raises(ModelError, match="not run"), OutlierProbe(model) as silent:
        _ = silent.max_inf_norm


@pytest.mark.parametrize("preset", ["bert", "opt"])
def test_presets_fit_the_classes_of_transformers(preset):
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    if preset == "bert":
        config = transformers.BertConfig(
            vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
        )
        net, n = transformers.BertModel(config), 6
    else:
        config = transformers.OPTConfig(
            vocab_size=20,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            ffn_dim=32,
            word_embed_proj_dim=16,
        )
        net, n = transformers.OPTModel(config), 2 * (2 + 2 + 1 + 1)
    with OutlierProbe(net, preset) as probe:
        net(batches(1)[0][0])
    assert len(probe.table) == n


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_models_of_transformers_are_measured(name):
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    size = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    if name == "llama":
        net = transformers.LlamaForCausalLM(transformers.LlamaConfig(intermediate_size=24, **size))
    else:
        net = transformers.OPTForCausalLM(transformers.OPTConfig(ffn_dim=24, word_embed_proj_dim=16, **size))
    data = batches(1)
    found = measure(net.eval(), data)
    loss = torch.nn.functional.cross_entropy(net(data[0][0]).logits.flatten(0, 1), data[0][1].flatten())
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert 0 < found["sink, mean head"] < 1 and found["value drain"] > 0 and found["excess kurtosis"] >= 0
    named = measure(net, [({"input_ids": x}, y) for x, y in data])
    assert named == pytest.approx(found, rel=1e-5)
    assert mean_excess_kurtosis(net, [x for x, _ in data]) >= 0
    with pytest.raises(ModelError, match="without logits"):
        measure(net.model, data)
