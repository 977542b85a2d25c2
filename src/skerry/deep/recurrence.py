"""The linear recurrence of state space models, ``h_t = a_t h_{t-1} + b_t``, step by step and with a cheap gradient.

Gu & Dao (2023), "Mamba" (arXiv 2312.00752), eq. 2a with diagonal A. Autograd through the steps would keep every
intermediate and walk a graph of thousands of nodes; the gradient is the same recurrence backwards:
``g_t = dh_t + a_{t+1} g_{t+1}``, ``da_t = g_t h_{t-1}``, ``db_t = g_t``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["linear_recurrence"]


def linear_recurrence(a: Tensor, b: Tensor, initial: Tensor | None = None) -> Tensor:
    """Return all states (steps, ...) of ``h_t = a_t * h_{t-1} + b_t``.

    Parameters
    ----------
    a, b : Tensor of shape (steps, ...)
        Of one floating dtype.
    initial : Tensor of shape (...), optional
        ``h_{-1}``; zeros by default.

    Returns
    -------
    Tensor of shape (steps, ...)
        Differentiable in all three.

    Examples
    --------
    >>> linear_recurrence(torch.tensor([0.5, 0.5, 2.0]), torch.tensor([1.0, 1.0, 0.0])).tolist()
    [1.0, 1.5, 3.0]
    """
    if initial is None:
        initial = torch.zeros_like(b[0])
    return _Recurrence.apply(a, b, initial)


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, initial: Tensor) -> Tensor:
        h = b.clone(memory_format=torch.contiguous_format)
        last = initial
        for step, decay in zip(h.unbind(0), a.unbind(0), strict=True):
            last = step.addcmul_(decay, last)
        ctx.save_for_backward(a, h, initial)
        return h

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, h, initial = ctx.saved_tensors
        g = gradients[0].clone(memory_format=torch.contiguous_format)
        steps, decays = g.unbind(0), a.unbind(0)
        for t in range(len(steps) - 1, 0, -1):
            steps[t - 1].addcmul_(decays[t], steps[t])
        da = torch.empty_like(h)
        torch.mul(g[1:], h[:-1], out=da[1:])
        torch.mul(g[0], initial, out=da[0])
        return da, g, a[0] * g[0]
