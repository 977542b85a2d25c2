"""Outlier Suppression+: shift every channel to its mid-range, then bring the wide ones down to one threshold.

Wei et al. (EMNLP 2023), "Outlier Suppression+" (arXiv 2304.09145). ``X~ = (X - z) / s``, ``W~ = W s``, ``b~ = b + W z``
with ``z_j = (max_j + min_j) / 2`` and ``s_j = max(1, max|X_j - z_j| / t)``; the threshold t is searched from the
largest range down, by the error of the output that matters (attention, gated MLP) with weights AND inputs rounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from skerry.core.errors import ParameterError
from skerry.quant.activation import TensorStatic, TokenClip
from skerry.quant.groups import Group
from skerry.quant.parts import ActivationQuantizer
from skerry.quant.probe import GroupContext
from skerry.quant.statistics import LayerStatistics

__all__ = ["ShiftScale"]

COARSE = 20  # steps of the first look at a grid


@dataclass(frozen=True)
class ShiftScale:
    """Channel-wise shift and threshold scale.

    Parameters
    ----------
    shift : bool, default True
        Subtract the mid-range where it can be folded. Where it would stay at run time, only if that lowers the error:
        behind a GELU, say, the middle of the range is far from nearly every value, and rounded weights suffer.
    scale : bool, default True
        Search the threshold.
    floor : float, default 1.0
        Smallest threshold tried (the paper's code: 1.0, and 0.1 for Llama).
    n_grid : int or "auto", default "auto"
        Thresholds tried. "auto" has a grid of ``max(100, largest range / 0.5)`` and tries a twentieth of it, then what
        lies around the best, closer and closer; a number tries all of them.
    rms : {"drop", "bias"}, default "drop"
        What a shift becomes behind an RMSNorm, which has no bias: nothing, as in the paper's code, or a bias.
    folded_only : bool, default False
        Leave groups alone whose change would have to stay at run time.

    Raises
    ------
    ParameterError
        For settings out of range.
    """

    shift: bool = True
    scale: bool = True
    floor: float = 1.0
    n_grid: int | str = "auto"
    rms: str = "drop"
    folded_only: bool = False

    needs = frozenset({"range"})

    def __post_init__(self) -> None:
        if self.floor <= 0.0:
            raise ParameterError(f"floor must be positive, got {self.floor}")
        if self.rms not in ("drop", "bias"):
            raise ParameterError(f"rms must be 'drop' or 'bias', got {self.rms!r}")
        if self.n_grid != "auto" and (isinstance(self.n_grid, str) or self.n_grid < 1):
            raise ParameterError(f"n_grid must be 'auto' or a positive number, got {self.n_grid!r}")

    def apply(self, group: Group, statistics: LayerStatistics, context: GroupContext) -> Mapping[str, Any]:
        """Shift and scale one group; see :class:`~skerry.quant.parts.Transform`."""
        if self.folded_only and not group.folds:
            return {}
        low, high = statistics.low, statistics.high
        assert low is not None and high is not None
        z = (low + high) / 2 if self.shift and self._may_shift(group, context) else torch.zeros_like(low)
        found = self._search(group, z, low, high, context)
        if not group.folds and bool(z.any()):
            plain = self._search(group, torch.zeros_like(z), low, high, context)
            found = found if found.error < plain.error else plain
        s = channel_scale(found.half, found.threshold)
        if bool(found.z.any()) or bool((s > 1.0).any()):
            group.rescale(context.model, s, found.z)
        return {
            "threshold": found.threshold,
            "range": float(found.half.max()),
            "scaled_channels": int((s > 1.0).sum()),
            "largest_shift": float(found.z.abs().max()),
            "error": found.error,
            "error_without_scale": found.error_without_scale,
        }

    def _may_shift(self, group: Group, context: GroupContext) -> bool:
        if group.kind == "rows" and group.folds:
            return False
        if group.kind == "norm" and group.folds and self.rms == "drop":
            return getattr(context.model.get_submodule(group.producer or ""), "bias", None) is not None
        return True

    def _search(self, group: Group, z: Tensor, low: Tensor, high: Tensor, context: GroupContext) -> _Found:
        """Return the best threshold for one shift; the largest range where there is nothing to search."""
        half = torch.maximum(high - z, z - low)
        top = float(half.max())
        count = max(100, int(top / 0.5)) if self.n_grid == "auto" else int(self.n_grid)
        weights = {name: layer.weight.float() for name, layer in group.consumers.items()}
        shifted = {name: W @ z for name, W in weights.items()}  # the exact bias, whatever the weights become
        errors: dict[int, float] = {}

        def threshold(step: int) -> float:
            return top - step * (top - self.floor) / count

        def look(steps: Iterable[int]) -> list[int]:
            """Measure at these steps of the grid; return all seen, the best first, of equal ones the first tried."""
            for step in sorted({min(max(step, 0), count) for step in steps} - errors.keys()):
                s = channel_scale(half, t := threshold(step))
                rounded = {
                    n: W if context.weight is None else _rounded(context.weight, W * s) / s for n, W in weights.items()
                }
                biases = {n: shifted[n] - rounded[n] @ z for n in weights}
                errors[step] = context.error(group, rounded, _Moved(z, s, _within(context.activation, t)), biases)
            return sorted(errors, key=lambda step: (errors[step], step))

        if not self.scale or top <= self.floor:
            look([0])
            return _Found(z, half, top, errors[0], errors[0])
        stride = max(1, count // COARSE) if self.n_grid == "auto" else 1
        best = look([*range(0, count + 1, stride), count])
        while stride > 1:
            stride = max(1, stride // 3)
            best = look(centre + k * stride for centre in best[:2] for k in (-2, -1, 1, 2))
        return _Found(z, half, threshold(best[0]), errors[best[0]], errors[0])


@dataclass(frozen=True)
class _Found:
    """What a search ended with: the shift, the half-widths after it, the threshold, errors with and without it."""

    z: Tensor
    half: Tensor
    threshold: float
    error: float
    error_without_scale: float


@dataclass(frozen=True)
class _Moved:
    """Rounds ``(x - z) / s`` and moves the result back, so that weights divided by s see it."""

    z: Tensor
    s: Tensor
    inner: ActivationQuantizer | None
    bits: int = 16

    def calibrated(self, statistics: LayerStatistics) -> _Moved:
        return self

    def fake(self, x: Tensor) -> Tensor:
        z, s = self.z.to(x), self.s.to(x)
        y = (x - z) / s
        return (y if self.inner is None else self.inner.fake(y)) * s + z


def channel_scale(half: Tensor, threshold: float) -> Tensor:
    """Return ``max(1, half / threshold)`` (in,).

    Examples
    --------
    >>> channel_scale(torch.tensor([2.0, 1.5, 0.5]), 1.0).tolist()
    [2.0, 1.5, 1.0]
    """
    return (half / threshold).clamp(min=1.0)


def _within(activation: ActivationQuantizer | None, threshold: float) -> ActivationQuantizer | None:
    if isinstance(activation, TensorStatic):
        return replace(activation, low=-threshold, high=threshold)
    if isinstance(activation, TokenClip):  # its own range is found once the inputs are what they will be
        return TensorStatic(activation.bits, activation.symmetric, -threshold, threshold)
    return activation


def _rounded(weight: Any, W: Tensor) -> Tensor:
    if weight is None:
        return W
    return weight.round(W) if hasattr(weight, "round") else weight.quantize(W).dequantize()
