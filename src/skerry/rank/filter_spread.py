"""The spread of data before and after a convolution, position by position, for Beta-Rank (arXiv 2304.07461).

Statistics are running moments, so that chunks of images give what all at once would give.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from skerry.core.errors import MissingExtra

try:
    import torch
    from torch import Tensor, nn
    from torch.nn import functional
except ImportError as error:
    raise MissingExtra("torch", "deep") from error

__all__ = ["RATIOS", "Moments", "beta_ratio", "mixture", "receptive_field_std"]

RATIOS = ("output/input", "input/output")
EPSILON = 1e-6  # of the mean spread: below it a position is dead


@dataclass
class Moments:
    """Running mean and population variance of maps, merged chunk by chunk (Chan, Golub and LeVeque, 1983)."""

    count: int = 0
    mean: Any = 0.0
    square: Any = 0.0  # sum of squared deviations

    def add(self, values: Tensor, dims: tuple[int, ...]) -> None:
        """Take in ``values``, of which ``dims`` are samples."""
        values = values.double()
        n = math.prod(values.shape[d] for d in dims)
        mean = values.mean(dims, keepdim=True)
        square = (values - mean).square().sum(dims)
        delta = mean.squeeze(dims) - self.mean
        total = self.count + n
        self.mean = self.mean + delta * (n / total)
        self.square = self.square + square + delta.square() * (self.count * n / total)
        self.count = total


def mixture(parts: Sequence[Moments]) -> tuple[Tensor, Tensor]:
    """Return mean and population variance of the mixture of ``parts`` with equal weights."""
    means = torch.stack([p.mean for p in parts])
    within = torch.stack([p.square / p.count for p in parts])
    return means.mean(0), within.mean(0) + means.var(0, correction=0)


def receptive_field_std(conv: nn.Conv2d, mean: Tensor, variance: Tensor) -> Tensor:
    """Return the standard deviation over images and cells of every patch that ``conv`` reads.

    A patch is a union of cells with equally many samples, so its variance is the mean of the cells' variances plus the
    variance of their means: exact, and the images themselves need no unfolding.

    Parameters
    ----------
    conv : Conv2d
    mean, variance : Tensor of shape (groups, H, W)
        Of the input, over images and the channels of a group.

    Returns
    -------
    Tensor of shape (groups, H' * W'), float64
    """
    pads = conv._reversed_padding_repeated_twice
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode

    def cells(maps: Tensor) -> Tensor:
        padded = functional.pad(maps.unsqueeze(1), pads, mode=mode)
        return functional.unfold(padded, conv.kernel_size, dilation=conv.dilation, stride=conv.stride)

    return (cells(variance).mean(1) + cells(mean).var(1, correction=0)).sqrt()


def beta_ratio(spread_in: Tensor, spread_out: Tensor, ratio: str) -> Tensor:
    """Return the mean over live positions of the ratio of spreads, one number per filter.

    ``spread_in`` (K, P) is of the receptive field that filter k reads, ``spread_out`` (K, P) of its output.
    """
    above, below = (spread_out, spread_in) if ratio == "output/input" else (spread_in, spread_out)
    epsilon = EPSILON * below.mean(1, keepdim=True)
    live = (below > epsilon) & (spread_in > EPSILON * spread_in.mean(1, keepdim=True))
    ratios = torch.where(live, above / (below + epsilon).clamp_min(torch.finfo(below.dtype).tiny), 0.0)
    return ratios.sum(1) / live.sum(1).clamp_min(1)
