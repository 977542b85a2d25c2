"""Padded tokens count nowhere: not in what is learned of inputs, not in what is searched, not in what is told."""

import pytest
import torch

import skerry.quant as quant
from skerry.quant import diagnose
from skerry.quant.architectures.base import architecture_of
from skerry.quant.calibration import live
from skerry.quant.diagnose.remedies import RemedyWatch
from skerry.quant.engine import quantize_model
from skerry.quant.numerics import AffineGrid
from skerry.quant.recipe import Recipe
from skerry.quant.recipes import make_recipe
from skerry.quant.solvers.gptq import GPTQ
from skerry.quant.transforms.adaptive_rotation import QuantileRotation

JUNK = 63


def batches(inputs, family, padding, *, masked=True):
    """The same text, ``padding`` loud tokens behind it."""
    found = []
    for text in inputs(family):
        text = text.clamp(max=JUNK - 1)
        junk = torch.full((len(text), padding), JUNK)
        mask = torch.cat([torch.ones_like(text), torch.zeros_like(junk)], 1)
        found.append({"input_ids": torch.cat([text, junk], 1), "attention_mask": mask if masked else mask.fill_(1)})
    return found


def model_of(tiny, family):
    model = tiny(family)
    model.get_input_embeddings().weight.data[JUNK] += 20.0
    return model


def searched(tiny, inputs, family, recipe, padding, **how):
    _, report = quantize_model(model_of(tiny, family), recipe, calibration=batches(inputs, family, padding, **how))
    return [(f["threshold"], f["largest_shift"], f["error"]) for f in report.transforms]


@pytest.mark.parametrize("family", ["llama", "opt", "bert"])
def test_junk_behind_the_text_changes_no_shift_and_no_threshold(family, tiny, inputs):
    recipe = make_recipe("os-plus", "w4a4", n_grid=6, floor=0.1, rms="bias")
    plain = searched(tiny, inputs, family, recipe, 0)
    padded = searched(tiny, inputs, family, recipe, 20)
    for one, other in zip(plain, padded, strict=True):
        assert one == pytest.approx(other, rel=2e-3, abs=1e-5, nan_ok=True)
    seen = searched(tiny, inputs, family, recipe, 20, masked=False)
    assert any(one != pytest.approx(other, rel=0.1, nan_ok=True) for one, other in zip(plain, seen, strict=True))


@pytest.mark.parametrize("part", ["gram", "quantile"])
def test_junk_changes_no_weight(part, tiny, inputs):
    transforms = (QuantileRotation(0.5, block=16, max_steps=8),) if part == "quantile" else ()
    recipe = Recipe("x", AffineGrid(4), GPTQ(), transforms=transforms, propagate="float")
    stored = []
    for padding, masked in ((0, True), (20, True), (20, False)):
        model, _ = quantize_model(
            model_of(tiny, "opt"), recipe, calibration=batches(inputs, "opt", padding, masked=masked)
        )
        stored.append(model.model.decoder.layers[1].fc1.solved.weight.dequantize())
    torch.testing.assert_close(stored[0], stored[1], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(stored[0], stored[2], rtol=1e-2, atol=1e-2)


def test_a_comparison_leaves_padding_out(tiny, inputs):
    model = model_of(tiny, "llama")
    found = quant.quantize(model, "rtn", bits="w4a8")
    plain, padded = (quant.compare(model, found, batches(inputs, "llama", n), repetitions=1) for n in (0, 20))
    for what in ("loss", "quantized_loss", "divergence", "agreement", "signal_to_noise"):
        assert getattr(padded, what) == pytest.approx(getattr(plain, what), rel=1e-3), what
    assert dict(padded.layers) == pytest.approx(dict(plain.layers), rel=1e-3)


def test_a_mask_of_something_else_leaves_a_tensor_whole():
    x = torch.randn(2, 5, 3)
    assert live(x, torch.zeros(2, 4)) is x and live(x, None) is x
    assert len(live(x.flatten(0, 1), torch.tensor([[1, 0, 0, 0, 0], [1, 1, 0, 0, 0]]))) == 3


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_the_check_up_counts_no_padding(family, tiny, inputs):
    model = model_of(tiny, family)
    found = []
    for padding, masked in ((0, True), (20, True), (20, False)):
        given = batches(inputs, family, padding, masked=masked)
        emergent = diagnose.emergent_features(model, given, threshold=1.5, layer_share=0.0, token_share=0.0)
        remedies = RemedyWatch(model, architecture_of(model))
        with torch.no_grad(), remedies.measuring(len(given)):
            for batch in given:
                model(**batch)
        census = diagnose.input_census(model, given, layers=[next(iter(remedies.readers))])[0]
        found.append([f.token_share for f in sorted(emergent.features, key=lambda f: f.channel)])
        found[-1] += [census.tokens, census.max, census.median_token_max, *remedies.report().values()]
    assert found[1] == pytest.approx(found[0], rel=1e-3)
    assert found[2] != pytest.approx(found[0], rel=1e-2)
