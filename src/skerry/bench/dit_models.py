"""The small diffusion transformer that quantization studies run on, and the classifier whose features judge its images.

Both are trained here on Fashion-MNIST (halved to 14 x 14 pixels and framed to 16 x 16) and kept in a cache folder,
never in git. The "planted" twin has an input channel of every first layer of attention and feed-forward multiplied
in the modulation and divided in the weights: the same function with activations like those of far larger models.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from skerry.core.errors import DataError
from skerry.core.files import atomic_write, cache_folder
from skerry.deep.convnets import SmallCNN
from skerry.deep.ddim import CosineSchedule, noise_loss
from skerry.deep.dit import DiT

__all__ = ["DiTSettings", "fashion_images", "features_of", "plant_channels", "trained_classifier", "trained_dit"]

SIDE = 16


@dataclass(frozen=True)
class DiTSettings:
    """What is trained; the defaults take about 8 CPU minutes."""

    width: int = 128
    blocks: int = 4
    heads: int = 4
    patch: int = 4
    steps: int = 2500
    batch: int = 64
    learning_rate: float = 1e-3
    classifier_steps: int = 600
    seed: int = 0


def fashion_images(data: Path, part: str) -> tuple[Tensor, Tensor]:
    """Return the images (n, 1, 16, 16) between -1 and 1 and the classes (n,) of ``part``, "train" or "test".

    Raises
    ------
    DataError
        If the file is missing.
    """
    path = data / "images" / "fashion_mnist.npz"
    if not path.is_file():
        raise DataError(f"no images at {path}: set SKERRY_DATA or --data to the folder of data sets")
    with np.load(path, allow_pickle=False) as z:
        x, y = z[f"x_{part}"], z[f"y_{part}"]
    images = nn.functional.avg_pool2d(torch.from_numpy(x)[:, None].float() / 127.5 - 1.0, 2)
    return nn.functional.pad(images, (1, 1, 1, 1), value=-1.0), torch.from_numpy(y.astype(np.int64))


def trained_dit(
    data: Path, settings: DiTSettings = DiTSettings(), progress: Callable[[str], None] = lambda text: None
) -> DiT:
    """Return the trained transformer, from the cache if it is there."""
    torch.manual_seed(settings.seed)
    model = DiT(SIDE, settings.patch, 1, settings.width, settings.blocks, settings.heads, 10)
    path = _place("dit", settings)
    if _loaded(model, path):
        return model
    images, labels = fashion_images(data, "train")
    schedule = CosineSchedule()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.0)
    falls = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: _rate(s, settings.steps))
    generator = torch.Generator().manual_seed(settings.seed)
    for step in range(settings.steps):
        at = torch.randint(0, len(images), (settings.batch,), generator=generator)
        loss = noise_loss(model, schedule, images[at], labels[at], settings.seed * 10**6 + step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        falls.step()
        if step % 100 == 0:
            progress(f"training the diffusion transformer: step {step} of {settings.steps}, loss {loss.item():.4f}")
    _keep(model, path)
    return model.eval()


def trained_classifier(
    data: Path, settings: DiTSettings = DiTSettings(), progress: Callable[[str], None] = lambda text: None
) -> SmallCNN:
    """Return a small convolutional classifier of the same images, from the cache if it is there."""
    torch.manual_seed(settings.seed)
    model = SmallCNN(10)
    path = _place("dit-classifier", settings)
    if _loaded(model, path):
        return model
    images, labels = fashion_images(data, "train")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    falls = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: _rate(s, settings.classifier_steps))
    generator = torch.Generator().manual_seed(settings.seed)
    for step in range(settings.classifier_steps):
        at = torch.randint(0, len(images), (128,), generator=generator)
        loss = nn.functional.cross_entropy(model(images[at]), labels[at])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        falls.step()
        if step % 100 == 0:
            progress(f"training the classifier: step {step} of {settings.classifier_steps}, loss {loss.item():.3f}")
    _keep(model, path)
    return model.eval()


@torch.no_grad()
def features_of(classifier: SmallCNN, images: Tensor) -> Tensor:
    """Return the features (n, 48) under the classifier's last layer, float64."""
    found = [torch.flatten(classifier.pool(classifier.features(part)), 1) for part in images.split(512)]
    return torch.cat(found).double()


@torch.no_grad()
def plant_channels(model: DiT, *, channels: int = 1, gain: float = 50.0) -> DiT:
    """Return a copy with the same function and loud input channels of q, k, v and of the first FFN layer.

    The modulation gives ``norm(x) (1 + scale) + shift``: its rows for shift and scale are multiplied, the bias of the
    scale makes up for the 1, and the readers' columns are divided.
    """
    twin = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    for block in twin.transformer_blocks:
        width = block.norm1.norm.normalized_shape[0]
        modulation, attention = block.norm1.linear, block.attn1
        for first, readers in (
            (0, (attention.to_q, attention.to_k, attention.to_v)),
            (3, (block.ff.net[0].proj,)),  # of the six vectors: shift, scale, gate, and the same for the FFN
        ):
            at = torch.randperm(width, generator=generator)[:channels]
            for vector in (first, first + 1):
                modulation.weight[vector * width + at] *= gain
                modulation.bias[vector * width + at] *= gain
            modulation.bias[(first + 1) * width + at] += gain - 1.0
            for reader in readers:
                reader.weight[:, at] /= gain
    return twin


def _rate(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / 100) * (0.02 + 0.49 * (1.0 + float(np.cos(np.pi * step / steps))))


def _place(name: str, settings: DiTSettings) -> Path:
    key = hashlib.sha256(json.dumps(asdict(settings), sort_keys=True).encode()).hexdigest()[:16]
    return cache_folder() / f"{name}-{key}.safetensors"


def _loaded(model: nn.Module, path: Path) -> bool:
    from safetensors.torch import load_file

    if path.is_file():
        model.load_state_dict(load_file(path))
        model.eval()
    return path.is_file()


def _keep(model: nn.Module, path: Path) -> None:
    from safetensors.torch import save

    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(save({k: v.contiguous() for k, v in model.state_dict().items()}))
