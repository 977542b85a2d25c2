"""What the studies of quantized diffusion transformers share: sampling, three measures, and rows of them.

"Natural" is the transformer as trained, "planted" its twin with loud channels (:mod:`skerry.bench.dit_models`).
Noise error: squared difference of the predicted noise from the float model's, over the squared float noise, on held-out
images at random steps. PSNR: of DDIM images beside those of the float model from the same noise. Fréchet distance:
between features of those images and of held-out real ones, by our own classifier; its figures compare rows, nothing
else.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from skerry.bench.dit_models import (
    SIDE,
    DiTSettings,
    fashion_images,
    features_of,
    plant_channels,
    trained_classifier,
    trained_dit,
)
from skerry.deep.convnets import SmallCNN
from skerry.deep.ddim import CosineSchedule, ddim_sample, denoising_batches, noise_loss, predicted_noise
from skerry.quant.engine import quantize_model
from skerry.quant.linear import QuantizedLinear
from skerry.quant.recipe import Recipe
from skerry.quant.report import QuantizationReport

__all__ = ["DiTLab", "Measured", "frechet_distance", "make_dit_lab", "measured", "signal_to_peak"]

SHAPE = (1, SIDE, SIDE)
QUICK = DiTSettings(width=32, blocks=2, heads=2, steps=40, batch=32, classifier_steps=30)


@dataclass(frozen=True)
class DiTLab:
    """The two models, what they are calibrated on and what they are judged by.

    Attributes
    ----------
    models : dict of str to DiT
        "natural" and "planted".
    calibration : dict of str to list
        (latents, steps, classes) of a sampling run of each model.
    schedule : CosineSchedule
    held : tuple of Tensor
        Noised held-out images, their steps and classes.
    noise : Tensor
        What the float model predicts for them.
    images : list of Tensor
        DDIM images of the float model, one tensor a seed.
    labels : Tensor
        Their classes.
    classifier : SmallCNN
    real : Tensor of shape (n, features)
        Features of held-out images.
    steps : int
        Of sampling.
    loss : float
        Mean squared error of the float model's noise.
    """

    models: Mapping[str, nn.Module]
    calibration: Mapping[str, list[tuple[Tensor, Tensor, Tensor]]]
    schedule: CosineSchedule
    held: tuple[Tensor, Tensor, Tensor]
    noise: Tensor
    images: list[Tensor]
    labels: Tensor
    classifier: SmallCNN
    real: Tensor
    steps: int
    loss: float


@dataclass(frozen=True)
class Measured:
    """Figures of one quantized model; PSNR and Fréchet distance once a seed."""

    noise_error: float
    psnr: list[float]
    frechet: list[float]
    bits_per_weight: float
    report: QuantizationReport


@torch.no_grad()
def make_dit_lab(data: Path, *, quick: bool, seed: int, progress: Callable[[str], None]) -> DiTLab:
    """Return the lab; trains model and classifier if the cache has none."""
    settings = QUICK if quick else DiTSettings()
    with torch.enable_grad():
        model = trained_dit(data, settings, progress)
        classifier = trained_classifier(data, settings, progress)
    models = {"natural": model, "planted": plant_channels(model)}
    schedule, steps = CosineSchedule(), 4 if quick else 10
    classes = torch.arange(10)
    labels = classes.repeat(2 if quick else 10)
    calibration = {
        name: denoising_batches(
            m, schedule, classes.repeat(5), SHAPE, steps=steps, batch_size=64, random_state=10**6 + seed
        )
        for name, m in models.items()
    }
    x, y = fashion_images(data, "test")
    generator = torch.Generator().manual_seed(seed)
    some = torch.randperm(len(x), generator=generator)[: 64 if quick else 512]
    t = torch.randint(0, len(schedule), (len(some),), generator=generator)
    held = (schedule.noised(x[some], t, torch.randn(x[some].shape, generator=generator)), t, y[some])
    return DiTLab(
        models,
        calibration,
        schedule,
        held,
        predicted_noise(model, *held),
        [_images(model, schedule, labels, steps, seed * 100 + s) for s in range(3)],
        labels,
        classifier,
        features_of(classifier, x),
        steps,
        float(noise_loss(model, schedule, x[:2048], y[:2048], seed)),
    )


@torch.no_grad()
def measured(lab: DiTLab, which: str, recipe: Recipe, *, seed: int = 0) -> Measured:
    """Quantize one of the models and measure it."""
    found, report = quantize_model(
        copy.deepcopy(lab.models[which]), recipe, calibration=lab.calibration[which], inplace=True
    )
    for module in found.modules():
        if isinstance(module, QuantizedLinear):
            module.keep_dense()
    difference = predicted_noise(found, *lab.held) - lab.noise
    images = [_images(found, lab.schedule, lab.labels, lab.steps, seed * 100 + s) for s in range(len(lab.images))]
    return Measured(
        float(difference.square().sum() / lab.noise.square().sum()),
        [signal_to_peak(a, b) for a, b in zip(images, lab.images, strict=True)],
        [frechet_distance(features_of(lab.classifier, a), lab.real) for a in images],
        report.bits_per_weight,
        report,
    )


def signal_to_peak(a: Tensor, b: Tensor) -> float:
    """Return the PSNR in decibels of images between -1 and 1, from their mean squared difference over all pixels.

    Examples
    --------
    >>> round(signal_to_peak(torch.zeros(2, 1, 2, 2), torch.full((2, 1, 2, 2), 0.2)), 2)
    20.0
    """
    error = float((a.double() - b.double()).square().mean())
    return float("inf") if error == 0.0 else 10.0 * float(torch.log10(torch.tensor(4.0 / error)))


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Return ``||mean_a - mean_b||^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))`` of features (n, d) and (m, d).

    Examples
    --------
    >>> x = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])
    >>> round(frechet_distance(x, x + torch.tensor([3.0, 0.0])), 6)
    9.0
    """
    a, b = a.double(), b.double()
    shift = (a.mean(0) - b.mean(0)).square().sum()
    C, D = (torch.cov(f.T) for f in (a, b))
    values, vectors = torch.linalg.eigh(C)
    root = (vectors * values.clamp(min=0.0).sqrt()) @ vectors.T
    mixed = torch.linalg.eigvalsh(root @ D @ root).clamp(min=0.0).sqrt().sum()  # trace of (C D)^(1/2)
    return float((shift + torch.trace(C) + torch.trace(D) - 2.0 * mixed).clamp(min=0.0))


def spread(values: list[float]) -> str:
    """Return mean and standard deviation of a few values.

    Examples
    --------
    >>> spread([1.0, 2.0, 3.0])
    '2.00 ± 1.00'
    """
    found: Any = torch.tensor(values, dtype=torch.float64)
    return f"{float(found.mean()):.2f} ± {float(found.std()):.2f}"


def _images(model: nn.Module, schedule: CosineSchedule, labels: Tensor, steps: int, random_state: int) -> Tensor:
    return ddim_sample(model, schedule, labels, SHAPE, steps=steps, random_state=random_state)
