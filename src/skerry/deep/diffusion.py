"""The noise schedule of denoising diffusion (Ho et al., 2020) with the quadratic steps of CSDI and ImDiffusion."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["DiffusionSchedule"]


class DiffusionSchedule:
    """``beta_t`` rises quadratically; ``abar_t`` is the product of ``1 - beta``.

    Parameters
    ----------
    n_steps : int, default 50
    beta_start, beta_end : float, default 1e-4 and 0.5
    dtype : torch.dtype, default float32
    device : str, default "cpu"

    Attributes
    ----------
    beta, alpha, abar : Tensor of shape (n_steps,)

    Examples
    --------
    >>> round(float(DiffusionSchedule(50).abar[0]), 4)
    0.9999
    """

    def __init__(
        self,
        n_steps: int = 50,
        beta_start: float = 1e-4,
        beta_end: float = 0.5,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> None:
        # computed in float64: a product of fifty factors
        root = torch.linspace(beta_start**0.5, beta_end**0.5, n_steps, dtype=torch.float64)
        beta = root**2
        self.beta, self.alpha = (v.to(device, dtype) for v in (beta, 1.0 - beta))
        self.abar = torch.cumprod(1.0 - beta, 0).to(device, dtype)

    def __len__(self) -> int:
        return len(self.beta)

    def noised(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return ``sqrt(abar_t) x + sqrt(1 - abar_t) noise``; x (B, ...), t (B,)."""
        abar = self.abar[t].reshape(-1, *[1] * (x.dim() - 1))
        return abar.sqrt() * x + (1.0 - abar).sqrt() * noise

    def chain(self, x: Tensor, draw) -> list[Tensor]:
        """Return x noised step by step, one tensor for each t; ``draw(x)`` gives unit noise of x's shape."""
        out = []
        for t in range(len(self)):
            x = self.alpha[t].sqrt() * x + self.beta[t].sqrt() * draw(x)
            out.append(x)
        return out

    def bounded(self, x: Tensor, noise: Tensor, t: int, low: float, high: float) -> Tensor:
        """Return the noise that would have led to x_t from data between ``low`` and ``high``.

        In the noisiest steps an error of the predicted noise is multiplied by ``sqrt((1 - abar) / abar)``, up to 170:
        data far outside of what was seen in training are such errors.

        >>> s = DiffusionSchedule(50)
        >>> x, noise = torch.tensor([0.0, 0.0]), torch.tensor([-0.05, -1.0])
        >>> [round(float(v), 2) for v in s.bounded(x, noise, 49, 0.0, 20.0)]
        [-0.05, -0.12]
        """
        root, rest = self.abar[t].sqrt(), (1.0 - self.abar[t]).sqrt()
        return (x - root * ((x - rest * noise) / root).clamp(low, high)) / rest

    def reverse(self, x: Tensor, noise: Tensor, t: int, draw) -> Tensor:
        """Return ``x_{t-1}`` from x_t and its predicted noise; no noise is added at t = 0."""
        x = (x - self.beta[t] / (1.0 - self.abar[t]).sqrt() * noise) / self.alpha[t].sqrt()
        if t > 0:
            x = x + ((1.0 - self.abar[t - 1]) / (1.0 - self.abar[t]) * self.beta[t]).sqrt() * draw(x)
        return x
