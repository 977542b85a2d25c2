"""The study of diffusion transformers: the planted twin, the measures, the recipes that are compared."""

import pytest
import torch

pytest.importorskip("torch", reason="needs the extra 'deep'")

from skerry.bench import dit_models, lrq_dit
from skerry.bench.dit_rows import DiTLab, frechet_distance, measured, signal_to_peak
from skerry.core.errors import DataError
from skerry.deep.convnets import SmallCNN
from skerry.deep.ddim import CosineSchedule, ddim_sample, denoising_batches, predicted_noise
from skerry.deep.dit import DiT
from skerry.quant.recipe import Recipe

SHAPE = (1, 16, 16)


@pytest.fixture(scope="module")
def lab():
    torch.manual_seed(0)
    kept = torch.get_num_threads()
    torch.set_num_threads(1)
    model = DiT(16, 4, 1, width=64, blocks=2, heads=2).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    classifier, schedule, labels = SmallCNN(10).eval(), CosineSchedule(), torch.arange(10)
    models = {"natural": model, "planted": dit_models.plant_channels(model)}
    held = (torch.randn(16, *SHAPE), torch.arange(16) * 60, torch.arange(16) % 10)
    with torch.no_grad():
        noise = predicted_noise(model, *held)
    yield DiTLab(
        models,
        {n: denoising_batches(m, schedule, labels, SHAPE, steps=3, batch_size=15) for n, m in models.items()},
        schedule,
        held,
        noise,
        [ddim_sample(model, schedule, labels, SHAPE, steps=3, random_state=s) for s in range(2)],
        labels,
        classifier,
        dit_models.features_of(classifier, torch.rand(60, *SHAPE)),
        3,
        1.0,
    )
    torch.set_num_threads(kept)


def test_the_twin_computes_the_same_with_louder_inputs(lab):
    natural, planted = lab.models["natural"], lab.models["planted"]
    with torch.no_grad():
        torch.testing.assert_close(planted(*lab.held), natural(*lab.held), rtol=1e-3, atol=1e-4)
    peaks = []
    for model in (natural, planted):
        seen = []
        for layer in (model.transformer_blocks[0].attn1.to_q, model.transformer_blocks[1].ff.net[0].proj):
            layer.register_forward_pre_hook(lambda m, x, seen=seen: seen.append(float(x[0].abs().max())))
        with torch.no_grad():
            model(*lab.held)
        peaks.append(seen)
    assert all(loud > 10 * calm for calm, loud in zip(*peaks, strict=True))


def test_nothing_quantized_nothing_lost(lab):
    found = measured(
        lab, "natural", Recipe("x", activation=None, transforms=lrq_dit.make_recipe("quarot").transforms[1:])
    )
    assert found.noise_error < 1e-8
    assert min(found.psnr) > 60


def test_more_bits_less_error(lab):
    make = lrq_dit._cases(32, 4, 4)["LRQ-DiT"]
    errors = [measured(lab, "natural", make(bits)).noise_error for bits in ("w3a8", "w6a8")]
    assert 0 < errors[1] < errors[0] / 4


def test_all_cases_and_their_table(lab):
    cases = lrq_dit._cases(32, 4, 4)
    found = {which: lrq_dit._rows(lab, which, cases, ("w3a8",), 0, lambda text: None) for which in lab.models}
    table = lrq_dit._table(found["natural"], ("w3a8",))
    assert [row["method"] for row in table] == list(cases)
    assert all(0 < row["w3a8 noise error"] < 1 for row in table)
    natural, planted = lrq_dit._chosen(found, "w3a8")
    assert natural["layers"] == planted["layers"] == 8
    assert planted["after the double rotation"] < planted["its peak"] > 5 * natural["its peak"]
    assert "twin-log alone" in lrq_dit._claim(found, "w3a8")


def test_weights_and_distributions(lab):
    rows = lrq_dit._weights(lab)
    assert [row["layer"] for row in rows] == list(lrq_dit.LAYERS)
    for row in lrq_dit._distributions(0, 4000):
        for bits in (3, 4):
            assert row[f"{bits}: twin-log, searched"] < row[f"{bits}: twin-log, from the smallest"]
            assert row[f"{bits}: uniform, searched"] < row[f"{bits} bits: uniform, min-max"]


def test_measures():
    a = torch.randn(400, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    turned = a @ torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(a, 2 * a) == pytest.approx(float(torch.trace(torch.cov(a.T)) + a.mean(0).square().sum()))
    assert frechet_distance(a, turned) == pytest.approx(frechet_distance(turned, a), abs=1e-9)
    x = torch.zeros(1, 1, 2, 2)
    assert signal_to_peak(x, x) == float("inf")


def test_images_that_are_missing(tmp_path):
    with pytest.raises(DataError, match="fashion_mnist"):
        dit_models.fashion_images(tmp_path, "train")


def test_a_trained_model_comes_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SKERRY_CACHE", str(tmp_path))
    settings = dit_models.DiTSettings(width=16, blocks=1, heads=2, steps=2, batch=4, classifier_steps=2)
    torch.manual_seed(0)
    images = torch.rand(20, *SHAPE), torch.arange(20) % 10
    monkeypatch.setattr(dit_models, "fashion_images", lambda data, part: images)
    first = [f(tmp_path, settings) for f in (dit_models.trained_dit, dit_models.trained_classifier)]
    monkeypatch.setattr(dit_models, "fashion_images", None)  # not read again
    again = [f(tmp_path, settings) for f in (dit_models.trained_dit, dit_models.trained_classifier)]
    for a, b in zip(first, again, strict=True):
        assert not a.training and not b.training
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True):
            assert torch.equal(x, y)
