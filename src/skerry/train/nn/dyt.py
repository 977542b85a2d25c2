"""DyT, a tanh in place of a norm, and GatedDyT, the same with a low-rank gate behind it.

DyT (Zhu et al., "Transformers without Normalization", CVPR 2025) rescales nothing, so it grows no outliers and trains
worse; with the gate most of the loss comes back ("Outlier-Driven Rescaling", arXiv 2601.22966: +0.259 becomes +0.018).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from skerry.train.nn.gated_norm import LowRankGate

__all__ = ["DyT", "GatedDyT"]


class DyT(nn.Module):
    """``weight * tanh(alpha * x) + bias`` with one trainable number ``alpha``.

    It needs a smaller learning rate than norms do, and is above all a control: removing the norm removes the outliers.

    Parameters
    ----------
    dim : int
    alpha : float, default 0.5
        Where ``alpha`` starts.

    Examples
    --------
    >>> import torch
    >>> DyT(3)(torch.tensor([-100.0, 0.0, 100.0])).tolist()
    [-1.0, 0.0, 1.0]
    """

    def __init__(self, dim: int, alpha: float = 0.5) -> None:
        super().__init__()
        self.dim = dim
        self.alpha = nn.Parameter(torch.full((1,), float(alpha)))
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` (..., dim) squashed, in its dtype."""
        return (self.weight * torch.tanh(self.alpha * x) + self.bias).to(x.dtype)

    def extra_repr(self) -> str:
        """Return the width."""
        return f"{self.dim}"


class GatedDyT(nn.Module):
    """``y = DyT(x)``, then ``g(y) * y`` with the gate of :class:`skerry.train.nn.GatedNorm`.

    Parameters
    ----------
    dim : int
    rank : int, default 16
    init : {"half", "identity"}, default "half"
    alpha : float, default 0.5

    Examples
    --------
    >>> import torch
    >>> GatedDyT(3, rank=1)(torch.tensor([-100.0, 0.0, 100.0])).tolist()
    [-0.5, 0.0, 0.5]
    """

    def __init__(self, dim: int, rank: int = 16, *, init: str = "half", alpha: float = 0.5) -> None:
        super().__init__()
        self.dim = dim
        self.norm = DyT(dim, alpha)
        self.gate = LowRankGate(dim, rank, init=init)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` (..., dim) squashed and gated."""
        y = self.norm(x)
        return self.gate(y) * y
