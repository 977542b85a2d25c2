"""Smoothing: part of every channel's range moves from the activations into the weights.

Xiao et al. (ICML 2023), "SmoothQuant" (arXiv 2211.10438), eq. 4: ``s_j = max|X_j|^a / max|W_j|^(1 - a)``.
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

__all__ = ["Smooth", "smoothing_scale"]

FLOOR = 1e-5


@dataclass(frozen=True)
class Smooth:
    """Divide every input channel by ``max|X_j|^alpha / max|W_j|^(1 - alpha)`` and multiply the weights by it.

    Parameters
    ----------
    alpha : float in [0, 1], default 0.5
    folded_only : bool, default True
        Leave groups alone whose division would have to stay at run time.

    Raises
    ------
    ParameterError
        For alpha outside [0, 1].
    """

    alpha: float = 0.5
    folded_only: bool = True

    needs = frozenset({"absmax"})

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise ParameterError(f"alpha must be in [0, 1], got {self.alpha}")

    def apply(self, group: Group, statistics: LayerStatistics, context: GroupContext) -> Mapping[str, Any]:
        """Smooth one group; see :class:`~skerry.quant.parts.Transform`."""
        if self.folded_only and not group.folds:
            return {}
        assert statistics.absmax is not None
        scale = smoothing_scale(statistics.absmax, group.weight().abs().amax(0), self.alpha)
        group.rescale(context.model, scale)
        return {"largest_scale": float(scale.max()), "smallest_scale": float(scale.min())}


def smoothing_scale(activation: Tensor, weight: Tensor, alpha: float, beta: float | None = None) -> Tensor:
    """Return ``activation^alpha / weight^beta`` (in,), ``beta = 1 - alpha`` by default; 1 where a range is zero.

    Parameters
    ----------
    activation, weight : Tensor of shape (in,)
        Largest absolute value of every input channel and of its weights.

    Examples
    --------
    >>> smoothing_scale(torch.tensor([4.0, 0.0]), torch.tensor([1.0, 2.0]), 0.5).tolist()
    [2.0, 1.0]
    """
    beta = 1.0 - alpha if beta is None else beta
    scale = activation.clamp(min=FLOOR) ** alpha / weight.clamp(min=FLOOR) ** beta
    usable = (activation > 0) & (weight > 0) & torch.isfinite(scale) & (scale > 0)
    return torch.where(usable, scale.clamp(min=FLOOR), torch.ones_like(scale))
