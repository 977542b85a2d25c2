"""PreAffineRMSNorm: a trainable scale in front of the norm, which takes the residual stream's outlier into a parameter.

"A Unified View of Attention and Residual Sinks: Outlier-Driven Rescaling" (arXiv 2601.22966). The stream stays small,
but the normalised input, which is what a quantizer sees, keeps the outlier: the paper's 4-bit loss grew with it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

__all__ = ["PreAffineRMSNorm"]


class PreAffineRMSNorm(nn.Module):
    """``RMSNorm(pre_weight * x)``, both vectors trainable and 1 at first.

    Parameters
    ----------
    dim : int
    eps : float, default 1e-6

    Examples
    --------
    >>> import torch
    >>> x = torch.randn(2, 8)
    >>> torch.equal(PreAffineRMSNorm(8)(x), torch.nn.RMSNorm(8, eps=1e-6)(x))
    True
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.dim, self.eps = dim, eps
        self.pre_weight = nn.Parameter(torch.ones(dim))
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Return the norm of ``x`` (..., dim), in its dtype."""
        return rms_norm((self.pre_weight * x).to(x.dtype), (self.dim,), self.weight.to(x.dtype), self.eps)

    def extra_repr(self) -> str:
        """Return the arguments."""
        return f"{self.dim}, eps={self.eps}"
