"""VDPC of QuantMCU (arXiv 2401.13714): which patches hold outliers and must keep the highest width.

Values of the image are taken as Gaussian with the calibration images' mean and deviation; a value is an outlier
beyond ``tau = sigma * Phi^-1((1 + phi) / 2)``. The paper's code was never published, and this is a reconstruction: of
thousands of values some always lie beyond tau, so a patch is of class O if MORE than the share ``rho`` does. Patches
are disjoint cells of the image, one for each tile of the stage's output; windows of neighbours overlap, cells do not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm
from torch import Tensor

from skerry.core.errors import DataError, ParameterError
from skerry.quant.patches.receptive import tiles

__all__ = ["VDPC", "outlier_threshold"]


def outlier_threshold(phi: float) -> float:
    """Return how many deviations from the mean hold the central mass ``phi`` of a Gaussian.

    Examples
    --------
    >>> round(outlier_threshold(0.96), 4), round(outlier_threshold(0.9999), 4)
    (2.0537, 3.8906)
    """
    if not 0.0 <= phi < 1.0:
        raise ParameterError(f"phi is {phi}: give a central mass from 0 to below 1")
    return float(norm.isf((1.0 - phi) / 2.0))


class VDPC:
    """Value-driven patch classification.

    Parameters
    ----------
    phi : float, default 0.96
        Central mass of the Gaussian whose outside counts as outliers.
    rho : float or None, default None
        Share of outliers above which a patch is of class O; None is ``1 - phi``, what the Gaussian itself predicts.
        0 is the literal rule (any outlier), for use with ``phi`` near 1.

    Attributes
    ----------
    mean_, std_, tau_ : float
    share_ : array (P, P)
        Of calibration images whose patch is of class O.
    classes_ : array (P, P) of "O" or "N"
        The majority; a tie is O.

    Examples
    --------
    >>> images = torch.randn(64, 1, 12, 12, generator=torch.Generator().manual_seed(0)) * 0.5
    >>> vdpc = VDPC().fit(images, patches=3)
    >>> planted = torch.zeros(1, 1, 12, 12)
    >>> planted[..., 4:8, 8:] = 10.0
    >>> vdpc.outlier(planted).nonzero()
    (array([0]), array([1]), array([2]))
    """

    def __init__(self, phi: float = 0.96, rho: float | None = None) -> None:
        outlier_threshold(phi)
        if rho is not None and not 0.0 <= rho < 1.0:
            raise ParameterError(f"rho is {rho}: give a share from 0 to below 1, or None for 1 - phi")
        self.phi, self.rho = phi, rho

    def fit(self, images: Tensor, patches: int) -> VDPC:
        """Learn mean, deviation and the majority classes from calibration images (N, C, H, W).

        Raises
        ------
        DataError
            If all values are equal: there is no deviation to measure outliers by.
        """
        self.mean_ = float(images.double().mean())
        self.std_ = float(images.double().std(correction=0))
        if not self.std_ > 1e-12 * max(abs(self.mean_), 1e-12):
            raise DataError(
                f"all values of the {len(images)} calibration images are {self.mean_:.4g}: patches cannot be told "
                "apart by constant images; give real ones"
            )
        self.patches_ = patches
        self.tau_ = self.std_ * outlier_threshold(self.phi)
        self.share_ = self.outlier(images).mean(0)
        self.classes_ = np.where(self.share_ >= 0.5, "O", "N")
        return self

    def fractions(self, images: Tensor) -> NDArray[np.float64]:
        """Return the share of outliers in every patch, (N, P, P)."""
        beyond = (images.double() - self.mean_).abs() > self.tau_
        height, width = images.shape[2:]
        cells = [beyond[:, :, a:b, c:d].double().mean((1, 2, 3)) for a, b, c, d in tiles(height, width, self.patches_)]
        return torch.stack(cells, 1).reshape(len(images), self.patches_, self.patches_).numpy()

    def outlier(self, images: Tensor) -> NDArray[np.bool_]:
        """Return which patches are of class O, (N, P, P)."""
        return self.fractions(images) > (1.0 - self.phi if self.rho is None else self.rho)

    def state(self) -> dict[str, Any]:
        """Return what JSON must keep to classify at run time."""
        return {
            "phi": self.phi,
            "rho": self.rho,
            "mean": self.mean_,
            "std": self.std_,
            "tau": self.tau_,
            "patches": self.patches_,
            "share": self.share_.tolist(),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> VDPC:
        """Rebuild what :meth:`state` described."""
        vdpc = cls(state["phi"], state["rho"])
        vdpc.mean_, vdpc.std_, vdpc.tau_ = state["mean"], state["std"], state["tau"]
        vdpc.patches_, vdpc.share_ = state["patches"], np.array(state["share"], dtype=float)
        vdpc.classes_ = np.where(vdpc.share_ >= 0.5, "O", "N")
        return vdpc
