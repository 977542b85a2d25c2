"""RMSNorm with one gain for all channels, so that training has no channel to prefer.

Park et al., "Outlier-Safe Pre-Training for Robust 4-Bit Quantization of Large Language Models", ACL 2025
(arXiv 2506.19697), where it is called SSNorm. With a scalar gain the norm commutes with rotations of the residual
stream, so that rotating quantizers have no gain to fold.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from skerry.core.errors import ModelError
from skerry.train.nn.replace import set_module

__all__ = ["SingleScaleRMSNorm", "expand_single_scale"]


class SingleScaleRMSNorm(nn.Module):
    """``scale * x / rms(x)`` with one trainable number; leave it out of weight decay.

    On its own it changes little: the paper needs it together with Muon and the embedding projection.

    Parameters
    ----------
    dim : int
    eps : float, default 1e-6
    init : float, default 1.0
        Where ``scale`` starts.

    Examples
    --------
    >>> import torch
    >>> SingleScaleRMSNorm(2)(torch.tensor([3.0, 4.0])) * 5 / 2**0.5
    tensor([3.0000, 4.0000], grad_fn=<DivBackward0>)
    """

    def __init__(self, dim: int, eps: float = 1e-6, init: float = 1.0) -> None:
        super().__init__()
        self.dim, self.eps = dim, eps
        self.scale = nn.Parameter(torch.full((1,), float(init)))

    def forward(self, x: Tensor) -> Tensor:
        """Return the norm of ``x`` (..., dim), in its dtype."""
        return (self.scale * rms_norm(x, (self.dim,), None, self.eps)).to(x.dtype)

    def to_rms_norm(self) -> nn.RMSNorm:
        """Return ``torch.nn.RMSNorm`` with a vector of equal gains, for loaders that know no other."""
        norm = nn.RMSNorm(self.dim, eps=self.eps, device=self.scale.device, dtype=self.scale.dtype)
        norm.weight.data.fill_(self.scale.item())
        return norm.train(self.training)

    def extra_repr(self) -> str:
        """Return the arguments."""
        return f"{self.dim}, eps={self.eps}"


def expand_single_scale(model: nn.Module) -> nn.Module:
    """Replace every :class:`SingleScaleRMSNorm` of a trained model by the equal ``torch.nn.RMSNorm``, in place.

    The weights then have the names and shapes that loaders of Llama-like models expect.

    Parameters
    ----------
    model : Module

    Returns
    -------
    Module
        The same object.

    Raises
    ------
    ModelError
        If there is none.

    Examples
    --------
    >>> from torch import nn
    >>> expand_single_scale(nn.Sequential(SingleScaleRMSNorm(4), nn.Linear(4, 2)))[0].weight.tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    places = [(n, m) for n, m in model.named_modules(remove_duplicate=False) if isinstance(m, SingleScaleRMSNorm)]
    if not places or not places[0][0]:
        raise ModelError(f"no SingleScaleRMSNorm inside {type(model).__name__}: nothing to expand")
    plain = {id(module): module.to_rms_norm() for _, module in places}
    for name, module in places:
        set_module(model, name, plain[id(module)])
    return model
