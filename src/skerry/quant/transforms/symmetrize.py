"""OutlierTune: shift channels to their mid-range, then execute the dequantization of activations in advance.

Wang et al. (2024), "OutlierTune" (arXiv 2406.18832). :class:`Symmetrize` subtracts the mean of the sequences'
mid-ranges; :class:`PreDequant` gives every channel its own step ``s_j = max|X_j| / q`` and multiplies the weights'
columns by it, so that the norm emits ``X / s``, rounding and clamping are all that is left to do at run time
(:class:`~skerry.quant.activation.RoundClamp`), and an integer product carries no activation scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from skerry.core.errors import ParameterError
from skerry.quant.groups import Group
from skerry.quant.probe import GroupContext
from skerry.quant.statistics import LayerStatistics

__all__ = ["PreDequant", "Symmetrize"]

FLOOR = 1e-5
SHRINKS = tuple(1.0 - 0.01 * i for i in range(80))  # 1, 0.99 ... 0.21


@dataclass(frozen=True)
class Symmetrize:
    """Shift the channels of norm-fed groups by the mean mid-range of the calibration sequences.

    Parameters
    ----------
    rms : {"bias", "drop"}, default "bias"
        Give an RMSNorm a bias, or leave groups behind one alone: the older release, which folds the norm's gain into
        the weights then; :class:`PreDequant` gives the same whether it is folded or not.
    minimum : float in [0, 1], default 0.0
        Shift only channels whose absolute shift is at least this share of the largest one.

    Raises
    ------
    ParameterError
        For settings out of range.
    """

    rms: str = "bias"
    minimum: float = 0.0

    needs = frozenset({"mid_range"})

    def __post_init__(self) -> None:
        if self.rms not in ("bias", "drop"):
            raise ParameterError(f"rms must be 'bias' or 'drop', got {self.rms!r}")
        if not 0.0 <= self.minimum <= 1.0:
            raise ParameterError(f"minimum must be in [0, 1], got {self.minimum}")

    def apply(self, group: Group, statistics: LayerStatistics, context: GroupContext) -> Mapping[str, Any]:
        """Shift one group; see :class:`~skerry.quant.parts.Transform`."""
        if not group.can_shift():
            return {}
        norm = context.model.get_submodule(group.producer or "")
        if self.rms == "drop" and getattr(norm, "bias", None) is None:
            return {}
        z = statistics.mid_range
        assert z is not None
        if self.minimum > 0.0:
            z = torch.where(z.abs() >= self.minimum * z.abs().max(), z, torch.zeros_like(z))
        group.rescale(context.model, torch.ones_like(z), z)
        return {"largest_shift": float(z.abs().max())}


@dataclass(frozen=True)
class PreDequant:
    """Fold each channel's step into the norm before and the weights behind, for norm-fed groups.

    Use it with :class:`~skerry.quant.activation.RoundClamp` of the same bits on these groups.

    Parameters
    ----------
    bits : int, default 8
    range : {"absmax", "mse"}, default "absmax"
        The channel's range: its largest absolute value, or the shrunk one that rounds best (sum of |error|^2.4).

    Raises
    ------
    ParameterError
        For another range or bits outside 2 to 16.
    """

    bits: int = 8
    range: str = "absmax"

    needs = frozenset({"absmax", "sample"})

    def __post_init__(self) -> None:
        if self.range not in ("absmax", "mse"):
            raise ParameterError(f"range must be 'absmax' or 'mse', got {self.range!r}")
        if not 2 <= self.bits <= 16:
            raise ParameterError(f"bits must be 2 to 16, got {self.bits}")

    def apply(self, group: Group, statistics: LayerStatistics, context: GroupContext) -> Mapping[str, Any]:
        """Fold one group's steps; see :class:`~skerry.quant.parts.Transform`."""
        if group.kind != "norm" or not group.folds:
            return {}
        top = statistics.absmax
        assert top is not None
        q = 2 ** (self.bits - 1) - 1
        if self.range == "mse":
            assert statistics.sample is not None
            top = top * _best_shrink(statistics.sample, top, q)
        step = top.clamp(min=FLOOR) / q
        group.rescale(context.model, step)
        return {"largest_step": float(step.max()), "median_step": float(step.median())}


def _best_shrink(X: Tensor, top: Tensor, q: int) -> Tensor:
    """Return for every channel the share of its range with the least sum of |rounding error|^2.4."""
    best, least = torch.ones_like(top), torch.full_like(top, torch.inf)
    for share in SHRINKS:
        step = (top * share).clamp(min=FLOOR) / q
        error = (X - torch.round(X / step).clamp(-q - 1, q) * step).abs().pow(2.4).sum(0)
        better = error < least
        best, least = torch.where(better, torch.full_like(best, share), best), torch.where(better, error, least)
    return best
