"""Diffusion transformers in the engine: our own and that of diffusers, by the same rules."""

import pytest
import torch

import skerry.quant as quant
from skerry.deep.ddim import CosineSchedule, denoising_batches, predicted_noise
from skerry.deep.dit import DiT
from skerry.quant.architectures.base import architecture_of
from skerry.quant.engine import quantize_model
from skerry.quant.linear import QuantizedLinear
from skerry.quant.recipe import Recipe
from skerry.quant.transforms.adaptive_rotation import AdaptiveRotation
from skerry.quant.transforms.smooth import Smooth

SCHEDULE = CosineSchedule(100)
LABELS = torch.arange(6) % 3


def make(kind):
    torch.manual_seed(0)
    if kind == "ours":
        found = DiT(8, 2, 1, width=32, blocks=2, heads=4, n_classes=3)
    else:
        diffusers = pytest.importorskip("diffusers", reason="needs diffusers")
        found = diffusers.DiTTransformer2DModel(
            num_attention_heads=4,
            attention_head_dim=8,
            in_channels=1,
            out_channels=2,  # noise and a learned variance
            num_layers=2,
            sample_size=8,
            patch_size=2,
            num_embeds_ada_norm=3,
        )
    for parameter in found.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return found.eval()


def batches_of(model):
    return denoising_batches(model, SCHEDULE, LABELS, (1, 8, 8), steps=4, batch_size=8)


def noise_of(model, batch):
    with torch.no_grad():
        return predicted_noise(model, *batch)


@pytest.fixture(params=["ours", "diffusers"])
def model(request):
    return make(request.param)


def test_groups(model):
    architecture = architecture_of(model)
    assert architecture.name == "DiT"
    found, report = quantize_model(model, quant.make_recipe("rtn", "w8a8"), calibration=batches_of(model))
    per_block = ["attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2"]
    wanted = [f"transformer_blocks.{i}.{name}" for i in range(2) for name in per_block]
    assert [layer.name for layer in report.layers] == wanted
    assert [n for n, m in found.named_modules() if isinstance(m, QuantizedLinear)] == wanted
    for batch in batches_of(model):
        exact, rounded = noise_of(model, batch), noise_of(found, batch)
        assert 0 < float((exact - rounded).norm() / exact.norm()) < 0.05


@pytest.mark.parametrize(
    "transform",
    [Smooth(0.5), Smooth(0.5, folded_only=False), AdaptiveRotation(0.0, 32, 8), AdaptiveRotation(float("inf"))],
    ids=["folded", "everywhere", "dual", "hadamard"],
)
def test_the_function_stays(model, transform):
    batches = batches_of(model)
    found, report = quantize_model(model, Recipe("x", transforms=(transform,)), calibration=batches)
    for batch in batches:
        exact = noise_of(model, batch)
        assert float((noise_of(found, batch) - exact).norm() / exact.norm()) < 1e-5
    assert len(report.transforms) == (2 if getattr(transform, "folded_only", False) else 8)


@pytest.mark.parametrize("name", ["lrq-dit", "svdquant", "smoothquant", "gptq"])
def test_recipes(model, name):
    settings = {"svdquant": {"rank": 4, "n_grid": 2}, "lrq-dit": {"block": 32}}.get(name, {})
    bits = "w4a8g16" if name == "svdquant" else "w4a8"
    batches = batches_of(model)
    small = quant.quantize(model, name, bits, batches, **settings)
    exact, rounded = noise_of(model, batches[0]), noise_of(small, batches[0])
    assert 0 < float((exact - rounded).norm() / exact.norm()) < 0.5


def test_what_is_calibrated_is_what_is_called(model):
    """Every block sees the step and the class of each batch, not those of the first."""
    batches = batches_of(model)
    rotate = Recipe("x", transforms=(AdaptiveRotation(0.0, 32, 4),))
    names = ("hidden_states", "timestep", "class_labels")
    found, _ = quantize_model(model, rotate, calibration=batches)
    by_name, _ = quantize_model(model, rotate, calibration=[dict(zip(names, b, strict=True)) for b in batches])
    for batch in batches:
        torch.testing.assert_close(noise_of(found, batch), noise_of(model, batch), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(noise_of(found, batch), noise_of(by_name, batch))


def test_saved_and_loaded(model, tmp_path):
    batches = batches_of(model)
    small = quant.quantize(model, "lrq-dit", "w3a8", batches, block=32)
    quant.save(small, tmp_path / "out")
    again = quant.load(tmp_path / "out", make("ours" if isinstance(model, DiT) else "diffusers"))
    assert torch.equal(noise_of(small, batches[0]), noise_of(again, batches[0]))
