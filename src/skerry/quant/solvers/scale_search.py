"""AWQ's searches: scales of input channels that protect the active ones, and ranges of groups (arXiv 2306.00978).

The one place for both uses: a solver stores ``Q(W s) / s`` of a single weight, a transform folds ``1 / s`` into the
layer before and hands in the error of the whole group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from skerry.core.errors import ModelError
from skerry.quant.numerics import AffineGrid
from skerry.quant.parts import Format

__all__ = ["FoundScale", "channel_importance", "search_ranges", "search_scale"]

LEAST = 1e-4


@dataclass(frozen=True)
class FoundScale:
    """The scale of least error.

    Attributes
    ----------
    scale : float32 Tensor of shape (in,)
        Multiplies the weight's columns.
    ratio : float
        The exponent it came from; 0 may mean that no scaling is best.
    error : float
    unscaled : float
        The error without scaling.
    """

    scale: Tensor
    ratio: float
    error: float
    unscaled: float


def channel_importance(weights: Sequence[Tensor], grid: Format) -> Tensor:
    """Return the mean over rows of ``|W_ij| / max |W|`` of its group, float32 (in,)."""
    means = []
    for W in weights:
        size = (
            grid.group_size if isinstance(grid, AffineGrid) and grid.axis == 1 and grid.group_size > 0 else W.shape[1]
        )
        size = size if W.shape[1] % size == 0 else W.shape[1]
        view = W.detach().float().abs().reshape(len(W), -1, size)
        means.append((view / view.amax(-1, keepdim=True).clamp(min=1e-12)).reshape(W.shape))
    return torch.cat(means).mean(0)


def search_scale(
    mean_abs: Tensor,
    loss: Callable[[Tensor], float],
    *,
    importance: Tensor | None = None,
    steps: int = 20,
) -> FoundScale:
    """Try ``s = mean_abs^r`` for r = 0, 1/steps, ... and keep the one of least error; no scaling is tried first.

    Parameters
    ----------
    mean_abs : Tensor of shape (in,)
        Mean absolute value of every input.
    loss : callable
        Error of the layers with ``Q(W s) / s`` for W.
    importance : Tensor of shape (in,), optional
        As :func:`channel_importance` returns: the scale is then ``mean_abs^r / importance^(1 - r)``.
    steps : int, default 20

    Raises
    ------
    ModelError
        If the statistic is not finite.

    Examples
    --------
    >>> found = search_scale(torch.tensor([4.0, 1.0]), lambda s: abs(float(s[0] / s[1]) - 2.0))
    >>> found.ratio, (found.scale[0] / found.scale[1]).item()
    (0.5, 2.0)
    """
    mean_abs = mean_abs.detach().float()
    if not bool(torch.isfinite(mean_abs).all()):
        raise ModelError("mean absolute inputs hold NaN or infinite values")
    ones = torch.ones_like(mean_abs)
    unscaled = loss(ones)
    best = FoundScale(ones, 0.0, unscaled, unscaled)
    for i in range(steps):
        ratio = i / steps
        scale = mean_abs.clamp(min=1e-12) ** ratio
        if importance is not None:
            scale = scale / (importance ** (1.0 - ratio) + LEAST)
        scale = scale.clamp(min=LEAST)
        # by half exponents: the product of the extremes may overflow
        scale = scale / (scale.max().sqrt() * scale.min().sqrt())
        if not bool(torch.isfinite(scale).all()):
            continue
        error = loss(scale)
        if error < best.error:
            best = FoundScale(scale, ratio, error, unscaled)
    return best


def search_ranges(
    W: Tensor, grid: AffineGrid, gram: Tensor, *, steps: int = 20, least: float = 0.5
) -> tuple[Tensor, Tensor | None]:
    """Return the grid whose groups' ranges, shrunk to no less than a share ``least``, give the least output error.

    The error of a group is that of its own columns, ``e G_gg e^T``. Grids along columns or of the whole tensor are
    left at minimum and maximum.

    Parameters
    ----------
    W : Tensor of shape (out, in)
    grid : AffineGrid
    gram : Tensor of shape (in, in)
    steps : int, default 20
        Shares tried are ``1 - i / steps``.
    least : float, default 0.5
    """
    scale, zero = grid.fit(W)
    if grid.axis == 0 or grid.group_size == 0:
        return scale, zero
    size = grid.group_of(tuple(W.shape))  # type: ignore[arg-type]
    groups = W.shape[1] // size
    view = W.reshape(len(W), groups, size)
    low, high = view.amin(-1), view.amax(-1)
    at = torch.arange(groups)
    own = gram.float().reshape(groups, size, groups, size)[at, :, at, :]  # the diagonal blocks (groups, size, size)

    def errors(s: Tensor, z: Tensor | None) -> Tensor:
        e = (grid.values(grid.codes(W, s, z), s, z) - W).reshape(len(W), groups, size).transpose(0, 1)
        return ((e @ own) * e).sum(-1).T

    best = errors(scale, zero)
    for i in range(1, int(steps * (1.0 - least)) + 1):
        share = 1.0 - i / steps
        s, z = grid.fit(W, low=low * share, high=high * share)
        error = errors(s, z)
        better = error < best
        best, scale = torch.where(better, error, best), torch.where(better, s, scale)
        zero = None if zero is None or z is None else torch.where(better, z, zero)
    return scale, zero
