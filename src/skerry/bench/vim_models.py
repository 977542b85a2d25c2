"""The small Vision Mamba that MambaQuant is tried on, its planted twin, and rows of what quantization costs them.

Trained here on Fashion-MNIST (halved and framed to 16 x 16 pixels, 16 patches), kept in a cache folder, never in git.
The twin is :func:`~skerry.bench.mamba_models.plant_gates`'s: one function, loud gates and loud time steps.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skerry.bench.dit_models import SIDE, fashion_images
from skerry.bench.mamba_models import plant_gates
from skerry.core.files import atomic_write, cache_folder
from skerry.deep.vision_mamba import VisionMamba
from skerry.quant.engine import quantize_model
from skerry.quant.recipe import Recipe

__all__ = ["VimLab", "VimSettings", "judged", "make_vim_lab", "trained_vim", "vim_rows"]


@dataclass(frozen=True)
class VimSettings:
    """What is trained; the defaults take about half a CPU minute."""

    width: int = 32
    blocks: int = 3
    states: int = 8
    rank: int = 8
    steps: int = 250
    batch: int = 64
    learning_rate: float = 4e-3
    seed: int = 0


QUICK = VimSettings(width=16, blocks=2, states=4, rank=4, steps=40)


@dataclass(frozen=True)
class VimLab:
    """The two models, their images, and the float models' loss (nats) and accuracy, by name."""

    models: dict[str, nn.Module]
    calibration: list[Tensor]
    images: Tensor
    labels: Tensor
    float: dict[str, tuple[float, float]]


def trained_vim(
    data: Path, settings: VimSettings = VimSettings(), progress: Callable[[str], None] = lambda text: None
) -> VisionMamba:
    """Return the trained model, from the cache if it is there."""
    from safetensors.torch import load_file, save

    torch.manual_seed(settings.seed)
    sizes = {"width": settings.width, "blocks": settings.blocks, "states": settings.states, "rank": settings.rank}
    model = VisionMamba(SIDE, 4, 1, **sizes)
    key = hashlib.sha256(json.dumps(asdict(settings), sort_keys=True).encode()).hexdigest()[:16]
    path = cache_folder() / f"vim-{key}.safetensors"
    if path.is_file():
        model.load_state_dict(load_file(path))
        return model.eval()
    images, labels = fashion_images(data, "train")
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.05)
    falls = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1.0, (s + 1) / 20) * (0.02 + 0.49 * (1.0 + float(np.cos(np.pi * s / settings.steps))))
    )
    generator = torch.Generator().manual_seed(settings.seed)
    for step in range(settings.steps):
        at = torch.randint(0, len(images), (settings.batch,), generator=generator)
        loss = nn.functional.cross_entropy(model(images[at]), labels[at])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        falls.step()
        if step % 50 == 0:
            progress(f"training Vision Mamba: step {step} of {settings.steps}, loss {loss.item():.3f}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(save({k: v.contiguous() for k, v in model.state_dict().items()}))
    return model.eval()


def make_vim_lab(data: Path, *, quick: bool, progress: Callable[[str], None]) -> VimLab:
    """Return the lab: 128 images to calibrate on, as the paper has, and test images to judge by."""
    model = trained_vim(data, QUICK if quick else VimSettings(), progress)
    seen = fashion_images(data, "train")[0][:128]
    images, labels = (part[: 200 if quick else 2000] for part in fashion_images(data, "test"))
    models: dict[str, nn.Module] = {"natural": model, "planted": plant_gates(model)}
    known = {name: judged(m, images, labels) for name, m in models.items()}
    return VimLab(models, list(seen.split(32)), images, labels, known)


@torch.no_grad()
def judged(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return the mean loss in nats and the share of images that get their class."""
    logits = torch.cat([model(part) for part in images.split(200)])
    return nn.functional.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).double().mean().item()


def vim_rows(
    lab: VimLab,
    cases: Iterable[tuple[str, Callable[[str], Recipe]]],
    bits: Iterable[str],
    progress: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Return a row a case: loss increase, and points of accuracy lost, of both models at every width."""
    rows = []
    bits = list(bits)
    for label, make in cases:
        row: dict[str, Any] = {"method": label}
        for which, model in lab.models.items():
            for width in bits:
                progress(f"Vision Mamba: {label}, {which}, {width}")
                given = {"calibration": lab.calibration, "inplace": True, "check": False}
                found, _ = quantize_model(copy.deepcopy(model), make(width), **given)
                loss, share = judged(found, lab.images, lab.labels)
                row[f"{which} {width}"] = loss - lab.float[which][0]
                row[f"{which} {width} points"] = 100.0 * (lab.float[which][1] - share)
        rows.append(row)
    return rows
