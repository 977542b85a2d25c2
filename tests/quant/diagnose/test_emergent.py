"""Emergent features are counted as LLM.int8 defines them, whatever the batches and the family."""

import numpy as np
import pytest
import torch

from skerry.core.errors import DataError, ModelError, ParameterError
from skerry.quant import diagnose
from skerry.quant.diagnose.emergent import EmergentWatch
from skerry.report.diagnose_html import render_diagnosis


def loud(tiny, family="opt", blocks=4, channels=(3, 11), at=(0, 1, 2, 3)):
    """A model whose norms put out huge values in these channels of these blocks, and quiet ones elsewhere."""
    model = tiny(family, blocks=blocks)
    stack = {"opt": lambda m: m.model.decoder.layers, "llama": lambda m: m.model.layers}[family](model)
    with torch.no_grad():
        for i, block in enumerate(stack):
            for name, norm in block.named_modules():
                if "norm" in name:
                    norm.weight.fill_(1.0)
                    if getattr(norm, "bias", None) is not None:
                        norm.bias.zero_()
                    if i in at:
                        norm.weight[list(channels)] = 40.0
    return model


@pytest.mark.parametrize("family", ["opt", "llama"])
def test_planted_channels_are_the_features(family, tiny, inputs):
    found = diagnose.emergent_features(loud(tiny, family), inputs(family))
    assert {f.channel for f in found.features} == {3, 11}
    for f in found.features:
        assert f.layer_share == 1.0 and 0.5 < f.token_share <= 1.0 and 0.5 <= f.one_sided <= 1.0
        assert 6.0 <= f.quartiles[0] <= f.quartiles[1] <= f.quartiles[2]
        assert f.loudness > 1.5
    assert all(set(layer.channels) == {3, 11} and layer.beyond == 2 for layer in found.layers)


def test_shares_are_those_of_counting(tiny, inputs):
    model, batches = loud(tiny), inputs("opt")
    outputs = {}
    for i, block in enumerate(model.model.decoder.layers):
        for norm in (block.self_attn_layer_norm, block.final_layer_norm):
            norm.register_forward_hook(lambda m, a, o, i=i: outputs.setdefault(i, []).append(o.reshape(-1, 32)))
    found = diagnose.emergent_features(model, batches, threshold=20.0, token_share=0.0, layer_share=0.0)
    X = [torch.cat(outputs[i]).numpy() for i in range(4)]
    for f in found.features:
        hits = np.array([(np.abs(x[:, f.channel]) >= 20.0).mean() for x in X])
        assert f.layer_share == pytest.approx((hits > 0).mean())
        assert f.token_share == pytest.approx(hits[hits > 0].mean())
        values = np.concatenate([x[:, f.channel] for x in X])
        values = values[np.abs(values) >= 20.0]
        assert f.quartiles == pytest.approx(np.quantile(np.abs(values), [0.25, 0.5, 0.75]).tolist(), rel=1e-5)
        assert f.one_sided == pytest.approx(max((values > 0).mean(), (values < 0).mean()))
    for layer, x in zip(found.layers, X, strict=True):
        assert layer.token_share == pytest.approx((np.abs(x) >= 20.0).any(1).mean())


def test_both_shares_must_be_reached(tiny, inputs):
    one_of_eight = loud(tiny, blocks=8, at=(2,))
    assert diagnose.emergent_features(one_of_eight, inputs("opt")).features == []
    assert {f.channel for f in diagnose.emergent_features(one_of_eight, inputs("opt"), layer_share=0.1).features} == {
        3,
        11,
    }
    assert diagnose.emergent_features(loud(tiny), inputs("opt"), token_share=1.0, threshold=39.0).features == []


def test_batches_do_not_matter(tiny, inputs):
    model, batches = loud(tiny), inputs("opt")
    together, apart = (
        diagnose.emergent_features(model, b) for b in ([torch.cat(batches)], [row[None] for b in batches for row in b])
    )
    for a, b in zip(together.features, apart.features, strict=True):
        assert a.channel == b.channel and a.token_share == b.token_share
        assert a.quartiles == pytest.approx(b.quartiles, rel=1e-5)


def test_the_check_up_tells_them_and_advises(tiny, inputs, monkeypatch):
    model = loud(tiny, blocks=5, channels=(7,))
    with torch.no_grad():
        for block in model.model.decoder.layers:
            for norm in (block.self_attn_layer_norm, block.final_layer_norm):
                norm.weight[7] = 0.0
                norm.bias[7] = 30.0
    report = diagnose.outliers(model, inputs("opt"))
    assert [f.channel for f in report.emergent.features] == [7]
    assert report.to_plain()["emergent"]["features"][0]["one_sided"] == 1.0
    advice = next(a for a in report.advice if a.rule == "emergent features")
    assert report.remedies[advice.recipe] >= max(report.remedies.values()) - 1.0
    assert f"{report.remedies['rtn']:.1f} dB with rtn" in advice.why
    # where nothing can be tried, loudness decides: one channel of 32 is at most 5.7 times the root mean square it makes
    monkeypatch.setattr("skerry.quant.diagnose.remedies.RemedyWatch.report", lambda self: {})
    assert not any(a.recipe == "llm-int8" for a in diagnose.outliers(model, inputs("opt")).advice)
    monkeypatch.setattr("skerry.quant.diagnose.report.LOUD", 5.0)
    advice = diagnose.outliers(model, inputs("opt")).advice
    assert [a.rule for a in advice if a.recipe == "llm-int8"] == ["emergent features"]
    assert "Emergent features" in render_diagnosis(report)
    assert "Emergent features" not in render_diagnosis(diagnose.outliers(tiny("llama"), inputs("llama")))


def test_what_cannot_be_counted_is_refused(tiny, inputs):
    model = tiny("opt")
    with pytest.raises(ParameterError, match="threshold"):
        diagnose.emergent_features(model, inputs("opt"), threshold=0.0)
    with pytest.raises(ParameterError, match="layer_share"):
        diagnose.emergent_features(model, inputs("opt"), layer_share=2.0)
    with pytest.raises(DataError):
        diagnose.emergent_features(model, [])
    with pytest.raises(ModelError, match="no norm"):
        diagnose.emergent_features(torch.nn.Linear(4, 4), [torch.ones(2, 4)], blocks={"": torch.nn.Linear(4, 4)})
    assert EmergentWatch(model, {}).report().features == []


def test_the_terminal_shows_the_loudest(capsys):
    from rich.console import Console

    from skerry.app.diagnose import SHOWN, _print_features

    row = {"layer_share": 1.0, "token_share": 0.5, "quartiles": [7.0, 41.25, 60.0], "one_sided": 0.9, "loudness": 5.5}
    _print_features(Console(width=100), {"threshold": 6.0, "features": [row | {"channel": c} for c in range(12)]})
    told = capsys.readouterr().out
    assert f"the {SHOWN} loudest of 12" in told and told.count("41.2") == SHOWN
    _print_features(Console(width=100), {"threshold": 6.0, "features": []})
    assert "no channel passes 6" in capsys.readouterr().out
