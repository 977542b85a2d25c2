"""Remedies are tried on the model, and the check-up names the one that wins there and in the whole model."""

import pytest
import torch

import skerry.quant as quant
from skerry.quant import diagnose
from skerry.quant.architectures.base import architecture_of
from skerry.quant.diagnose.remedies import REMEDIES, RemedyWatch, remedies
from skerry.quant.diagnose.report import _remedy


def noise(column, weight, share=1.0):
    """The remedies' noise (decibels) with one loud channel, in this share of the tokens, and its weights scaled."""
    g = torch.Generator().manual_seed(0)
    X, W = torch.randn(400, 64, generator=g), torch.randn(32, 64, generator=g)
    loud = torch.rand(400, generator=g) < share
    X[loud, 5] *= column
    W[:, 5] *= weight
    return {k: 10 * float(torch.tensor(v).log10()) for k, v in remedies(X, W).items()}


def planted(tiny, gain=30.0):
    """A Llama with two loud channels behind every norm, and what reads them scaled down: the same function."""
    model = tiny("llama")
    with torch.no_grad():
        for block in model.model.layers:
            a, m = block.self_attn, block.mlp
            for norm, readers in (
                (block.input_layernorm, (a.q_proj, a.k_proj, a.v_proj)),
                (block.post_attention_layernorm, (m.gate_proj, m.up_proj)),
            ):
                norm.weight[[3, 20]] *= gain
                for reader in readers:
                    reader.weight[:, [3, 20]] /= gain
    return model


def test_without_loud_channels_nothing_helps():
    found = noise(1.0, 1.0)
    assert max(found.values()) - min(found.values()) < 1.0 and list(found) == list(REMEDIES)
    assert _remedy({k: -v for k, v in found.items()}) == "rtn"


def test_small_weights_are_smoothed_and_not_read_from_coarse_codes():
    found = noise(60.0, 1 / 60)
    assert found["smoothquant"] < found["llm-int8"] - 6.0 < found["rtn"] - 6.0
    assert _remedy({k: -v for k, v in found.items()}) == "smoothquant"


def test_rare_loud_tokens_are_taken_apart():
    """Smoothing makes every token pay for the weights; columns apart cost the others nothing."""
    found = noise(100.0, 0.3, share=0.3)
    assert found["llm-int8"] < found["smoothquant"] - 1.0 < found["rtn"] - 6.0
    assert _remedy({k: -v for k, v in found.items()}) == "llm-int8"


def test_the_cheaper_of_two_that_are_alike():
    assert _remedy({"rtn": 20.0, "smoothquant": 40.1, "llm-int8": 41.0}) == "smoothquant"
    assert _remedy({"rtn": 20.0, "smoothquant": 39.9, "llm-int8": 41.0}) == "llm-int8"
    assert _remedy({"rtn": 38.1, "smoothquant": 39.9, "llm-int8": 41.0}) == "rtn"


def test_the_recipe_named_is_the_best_of_the_whole_model(tiny, inputs):
    model, batches = planted(tiny), inputs("llama", 4)
    report = diagnose.outliers(model, batches[:3])
    advice = next(a for a in report.advice if a.rule == "emergent features")
    assert advice.recipe == "smoothquant" and "dB with llm-int8" in advice.why
    measured = {}
    for recipe in REMEDIES:
        found = quant.quantize(model, recipe, "w8a8", batches[:3])
        measured[recipe] = quant.compare(model, found, batches[3:], repetitions=1).signal_to_noise
    assert max(measured, key=measured.get) == "smoothquant"
    assert sorted(measured, key=measured.get) == sorted(report.remedies, key=report.remedies.get)
    plain = diagnose.outliers(tiny("llama"), batches[:3])
    assert not any(a.recipe in ("smoothquant", "llm-int8") for a in plain.advice)


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "bert", "vit"])
def test_layers_behind_norms_are_those_described(family, tiny, inputs):
    model = tiny(family)
    watch = RemedyWatch(model, architecture_of(model))
    with torch.no_grad(), watch.measuring(3):
        for batch in inputs(family):
            model(batch)
    assert len(watch.readers) == (0 if family == "bert" else 4)
    assert bool(watch.report()) == bool(watch.readers)
    assert all(v > 20.0 for v in watch.report().values())
