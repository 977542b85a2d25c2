"""Integer grids of feature maps: ranges from calibration images, rounding, and the entropy that a width leaves.

Maps are asymmetric and unsigned, one scale for a map of a branch; 0 is exact, so padding is. At 2 bits the range leaves
out a tail at both ends (the 99.9th percentile, as in the brief of QuantMCU, arXiv 2401.13714). Operands of one addition
share a range: then the scale at a lower width is a whole multiple of that at a higher one, and sums stay integer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from skerry.quant.numerics import AffineGrid

__all__ = ["MapRange", "entropy", "entropy_after", "range_of", "round_map"]


@dataclass(frozen=True)
class MapRange:
    """Range of a map's calibration values.

    Attributes
    ----------
    low, high : float
        Minimum and maximum.
    low_tail, high_tail : float
        The same with a tail left out, for 2 bits.
    """

    low: float
    high: float
    low_tail: float
    high_tail: float

    def at(self, bits: int) -> tuple[float, float]:
        """Return the range that a grid of ``bits`` covers."""
        return (self.low_tail, self.high_tail) if bits <= 2 else (self.low, self.high)

    def joined(self, other: MapRange) -> MapRange:
        """Return the range that holds both."""
        return MapRange(
            min(self.low, other.low),
            max(self.high, other.high),
            min(self.low_tail, other.low_tail),
            max(self.high_tail, other.high_tail),
        )


def range_of(values: Tensor, tail: float = 0.001) -> MapRange:
    """Return the range of values, and that without the share ``tail`` at either end.

    Examples
    --------
    >>> range_of(torch.arange(1001.0), tail=0.01)
    MapRange(low=0.0, high=1000.0, low_tail=10.0, high_tail=990.0)
    """
    flat = values.detach().flatten()
    low, high = (float(v) for v in torch.aminmax(flat))
    cut = int(math.floor(tail * (len(flat) - 1)))
    if cut == 0:
        return MapRange(low, high, low, high)
    ends = cut, len(flat) - 1 - cut
    low_tail, high_tail = (float(v) for v in np.partition(flat.cpu().numpy(), ends)[list(ends)])
    return MapRange(low, high, low_tail, high_tail)


def round_map(x: Tensor, span: tuple[float, float], bits: int) -> Tensor:
    """Return a map rounded to an asymmetric grid of ``2^bits`` levels over ``span`` (made to contain 0), float32.

    Examples
    --------
    >>> round_map(torch.tensor([0.0, 0.4, 1.0]), (0.0, 1.0), 2)
    tensor([0.0000, 0.3333, 1.0000])
    """
    grid = AffineGrid(bits, symmetric=False, group_size=0)
    ends = torch.tensor([span])
    scale, zero = grid.fit(ends, low=ends[:, :1], high=ends[:, 1:])
    codes = torch.round(x / scale.item()).add_(zero.item()).clamp_(grid.qmin, grid.qmax)
    return codes.sub_(zero.item()).mul_(scale.item())


def entropy(values: Tensor, low: float, high: float, bins: int = 256) -> float:
    """Return the entropy, in bits, of a histogram of equal bins over [low, high]; values outside go to its ends.

    Examples
    --------
    >>> round(entropy(torch.linspace(0, 1, 1001), 0.0, 1.0), 4)
    7.9958
    """
    if not high > low:
        return 0.0
    # counting integers is several times faster on a processor than torch.histc
    places = (values.detach().float().flatten().clamp(low, high) - low).mul_(bins / (high - low))
    counts = np.bincount(places.to(torch.int32).clamp_(max=bins - 1).cpu().numpy(), minlength=bins)
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum())


def entropy_after(
    values: Tensor, span: MapRange, bits: int, own: tuple[float, float] | None = None, bins: int = 256
) -> float:
    """Return the entropy that is left after rounding to ``bits``, on the fixed histogram over ``own`` (or the range).

    Examples
    --------
    >>> x = torch.linspace(0, 1, 1001)
    >>> [round(entropy_after(x, range_of(x, tail=0), b), 4) for b in (8, 4, 2)]
    [7.9949, 3.9748, 1.9186]
    """
    low, high = own or (span.low, span.high)
    return entropy(round_map(values, span.at(bits), bits), low, high, bins)
