"""Deterministic sampling of class-conditional diffusion models, and the inputs that a denoising run gives a network.

Song, Meng and Ermon (ICLR 2021), "Denoising diffusion implicit models" (arXiv 2010.02502), with the cosine schedule of
Nichol and Dhariwal (2021). What a quantized network must be calibrated on are the inputs of ITS task: latents of every
step of a run, with the step and the class (LRQ-DiT, arXiv 2508.03485).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from skerry.core.errors import ParameterError

__all__ = ["CosineSchedule", "ddim_sample", "denoising_batches", "noise_loss", "predicted_noise"]


class CosineSchedule:
    """The share of signal ``abar_t`` falls as a squared cosine.

    Parameters
    ----------
    n_steps : int, default 1000

    Attributes
    ----------
    abar : float64 Tensor of shape (n_steps,)

    Raises
    ------
    ParameterError
        For fewer than two steps.

    Examples
    --------
    >>> abar = CosineSchedule(1000).abar
    >>> bool((abar.diff() < 0).all()), round(float(abar[500]), 2)
    (True, 0.49)
    """

    def __init__(self, n_steps: int = 1000) -> None:
        if n_steps < 2:
            raise ParameterError(f"a schedule needs at least 2 steps, got {n_steps}")
        at = torch.arange(n_steps + 1, dtype=torch.float64) / n_steps
        f = torch.cos((at + 0.008) / 1.008 * math.pi / 2) ** 2
        self.abar = torch.cumprod((f[1:] / f[:-1]).clamp(min=1e-3), 0)

    def __len__(self) -> int:
        return len(self.abar)

    def noised(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return ``sqrt(abar_t) x + sqrt(1 - abar_t) noise``; x (B, ...), t (B,)."""
        abar = self.abar.to(x)[t].reshape(-1, *[1] * (x.dim() - 1))
        return abar.sqrt() * x + (1.0 - abar).sqrt() * noise

    def places(self, steps: int) -> list[int]:
        """Return the middles of ``steps`` equal parts of the schedule, the noisiest first.

        Examples
        --------
        >>> CosineSchedule(1000).places(4)
        [875, 625, 375, 125]
        """
        if not 1 <= steps <= len(self):
            raise ParameterError(f"steps must be 1 to {len(self)}, got {steps}")
        return [int((i + 0.5) * len(self) / steps) for i in reversed(range(steps))]


@torch.no_grad()
def ddim_sample(
    model: nn.Module,
    schedule: CosineSchedule,
    labels: Tensor,
    shape: tuple[int, int, int],
    *,
    steps: int = 20,
    bound: float = 1.0,
    random_state: int = 0,
    watch: Callable[[Tensor, Tensor], None] = lambda x, t: None,
) -> Tensor:
    """Turn noise into images of the given classes; the same ``random_state`` gives every model the same noise.

    Parameters
    ----------
    model : Module
        ``model(x, t, labels)`` predicts the noise: a tensor, or an object with one under ``sample``.
    schedule : CosineSchedule
    labels : int64 Tensor of shape (B,)
    shape : tuple of int
        (C, H, W).
    steps : int, default 20
    bound : float, default 1.0
        Images lie within +-``bound``; the predicted image is cut to that at every step.
    random_state : int, default 0
    watch : callable
        Called with the latents (B, C, H, W) and time steps (B,) of every call of the model.

    Returns
    -------
    Tensor of shape (B, C, H, W)
    """
    generator = torch.Generator().manual_seed(random_state)
    x = torch.randn(len(labels), *shape, generator=generator)
    places = schedule.places(steps)
    for i, place in enumerate(places):
        t = torch.full((len(labels),), place)
        watch(x, t)
        abar = float(schedule.abar[place])
        noise = predicted_noise(model, x, t, labels)
        image = ((x - (1.0 - abar) ** 0.5 * noise) / abar**0.5).clamp(-bound, bound)
        if i + 1 == len(places):
            return image
        noise = (x - abar**0.5 * image) / (1.0 - abar) ** 0.5  # that of the cut image
        following = float(schedule.abar[places[i + 1]])
        x = following**0.5 * image + (1.0 - following) ** 0.5 * noise
    raise AssertionError("unreachable: there is at least one step")


def denoising_batches(
    model: nn.Module,
    schedule: CosineSchedule,
    labels: Tensor,
    shape: tuple[int, int, int],
    *,
    steps: int = 20,
    batch_size: int = 64,
    random_state: int = 0,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return (latents, steps, classes) of a sampling run in batches, for calibration; each batch mixes all steps.

    Activations drift with the time step, and statistics that keep only the first tokens must see every step.

    Parameters
    ----------
    model, schedule, labels, shape, steps, random_state
        As for :func:`ddim_sample`; ``len(labels) * steps`` inputs come out.
    batch_size : int, default 64

    Examples
    --------
    >>> class Zero(nn.Module):
    ...     def forward(self, x, t, labels):
    ...         return 0 * x
    >>> batches = denoising_batches(Zero(), CosineSchedule(100), torch.arange(8), (1, 4, 4), steps=5, batch_size=20)
    >>> [tuple(latent.shape) for latent, t, label in batches]
    [(20, 1, 4, 4), (20, 1, 4, 4)]
    """
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    ddim_sample(
        model,
        schedule,
        labels,
        shape,
        steps=steps,
        random_state=random_state,
        watch=lambda x, t: seen.append((x.clone(), t, labels)),
    )
    x, t, label = (torch.cat(part) for part in zip(*seen, strict=True))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(random_state + 1))
    return [(x[p], t[p], label[p]) for p in order.split(batch_size)]


def noise_loss(model: nn.Module, schedule: CosineSchedule, images: Tensor, labels: Tensor, random_state: int) -> Tensor:
    """Return the mean squared error of the predicted noise for images (B, C, H, W) at random steps."""
    generator = torch.Generator().manual_seed(random_state)
    t = torch.randint(0, len(schedule), (len(images),), generator=generator)
    noise = torch.randn(images.shape, generator=generator)
    return nn.functional.mse_loss(predicted_noise(model, schedule.noised(images, t, noise), t, labels), noise)


def predicted_noise(model: nn.Module, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    """Return the noise that a model predicts; channels beyond the image's (a learned variance) are left out."""
    found: Any = model(x, t, labels)
    found = found if isinstance(found, Tensor) else found.sample
    return found[:, : x.shape[1]]
