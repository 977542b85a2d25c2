"""PCA: distance from the centre measured along principal components.

Shyu, Chen, Sarinnapakorn and Chang (2003), "A novel anomaly detection scheme based on principal component
classifier", ICDM workshops. The score is a sum of squared component scores (dimensionless).
"""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils._param_validation import Interval, StrOptions

from skerry.core.detector import Detector
from skerry.core.threshold import Threshold

__all__ = ["PCA"]

BLOCK_VALUES = 1 << 15  # standardised values held at a time: they stay in the second-level cache
FAR = 1e70  # standardised values are held within +-FAR, so that squares stay finite


class PCA(Detector):
    """Principal component classifier.

    Parameters
    ----------
    components : {"all", "major", "minor"}, default "all"
        ``"major"``: the first components that explain half of the variance, where extreme values show.
        ``"minor"``: those whose eigenvalue is below ``minor_below``, where broken correlations show. Where no
        component qualifies, the last one is taken. ``"all"``: every component.
    weighted : bool, default True
        Divide each squared component score by its eigenvalue (eq. 5 of the paper). ``False`` sums plain
        squares; with ``components="minor"`` that is the reconstruction error.
    minor_below : float > 0, default 0.2
        In units of the variance of one standardised feature.
    threshold : str, float or Threshold, default "auto"

    Attributes
    ----------
    mean_, scale_ : ndarray of shape (n_features,), float64
        Standardisation; the scale of a constant feature is infinite, which drops it.
    eigenvalues_ : ndarray of shape (r,), float64, descending
        Of the correlation matrix, of the used components.
    components_ : ndarray of shape (r, n_features), float64
    dropped_ : int
        Directions without variance, which are left out (their weight would be infinite).

    Notes
    -----
    With z the standardised row, ``e_k`` and ``lambda_k`` the eigenvectors and values of the correlation
    matrix, the score is ``sum_k (e_k . z)^2 / lambda_k``. Directions with ``lambda_k <= 1e-10 lambda_1``
    are dropped; a row off a plane on which all training rows lie is not seen by them. :meth:`explain`
    returns ``z_j (A z)_j`` with A the matrix of that form: the terms sum to the score, and single ones may
    be negative.

    The mean and the correlations are not robust; see RobustCovariance where more than a few per cent are
    outliers.

    Examples
    --------
    >>> X = np.r_[np.random.default_rng(0).normal(size=(200, 2)), [[6.0, 6.0]]]
    >>> int(PCA().fit(X).anomaly_score(X).argmax())
    200
    """

    _parameter_constraints: dict[str, list[Any]] = {
        "components": [StrOptions({"all", "major", "minor"})],
        "weighted": ["boolean"],
        "minor_below": [Interval(Real, 0, None, closed="neither")],
    }

    def __init__(
        self,
        components: str = "all",
        *,
        weighted: bool = True,
        minor_below: float = 0.2,
        threshold: str | float | Threshold = "auto",
    ) -> None:
        self.components = components
        self.weighted = weighted
        self.minor_below = minor_below
        self.threshold = threshold

    def _fit(self, X: NDArray) -> None:
        n, d = X.shape
        self.mean_ = X.mean(axis=0, dtype=np.float64)
        reach = np.maximum(X.max(axis=0) - self.mean_, self.mean_ - X.min(axis=0)).astype(np.float64)
        # rounding of the mean is not variance
        constant = reach <= 1e-12 * np.abs(self.mean_)
        reach = np.where(constant, np.inf, np.maximum(reach, 1e-290))
        second = np.zeros((d, d))
        for start in range(0, n, self._block(d)):
            z = X[start : start + self._block(d)] - self.mean_
            z /= reach
            second += z.T @ z
        deviation = np.sqrt(np.diag(second) / n)
        constant |= deviation == 0.0
        safe = np.where(constant, 1.0, deviation)
        self.scale_ = np.where(constant, np.inf, safe * np.where(constant, 1.0, reach))
        values, vectors = np.linalg.eigh(second / n / np.outer(safe, safe))
        values, vectors = values[::-1], vectors[:, ::-1].T
        kept = values > 1e-10 * max(values[0], 1e-300)
        values, vectors = values[kept], vectors[kept]
        self.dropped_ = int(d - values.size)
        chosen = np.ones(values.size, dtype=bool)
        if self.components == "major" and values.size:
            share = np.cumsum(values) / values.sum()
            chosen = np.r_[True, share[:-1] < 0.5]
        elif self.components == "minor" and values.size:
            chosen = values < self.minor_below
            chosen[-1] = True
        self.eigenvalues_ = np.ascontiguousarray(values[chosen])
        self.components_ = np.ascontiguousarray(vectors[chosen])

    @staticmethod
    def _block(d: int) -> int:
        return max(1, BLOCK_VALUES // d)

    def _projection(self) -> NDArray[np.float64]:
        """Return B of shape (d, r) with score = |z B|^2."""
        weights = 1.0 / np.sqrt(self.eigenvalues_) if self.weighted else np.ones(self.eigenvalues_.size)
        return self.components_.T * weights

    def _standardised(self, X: NDArray) -> NDArray[np.float64]:
        z = X - self.mean_
        z /= self.scale_
        return np.clip(z, -FAR, FAR, out=z)

    def _score(self, X: NDArray) -> NDArray[np.float64]:
        projection, step = self._projection(), self._block(X.shape[1])
        out = np.empty(X.shape[0])
        for start in range(0, X.shape[0], step):
            y = self._standardised(X[start : start + step]) @ projection
            out[start : start + step] = np.einsum("ij,ij->i", y, y)
        return out

    def _explain(self, X: NDArray) -> NDArray[np.float64]:
        """Return ``z_j (A z)_j``; the terms add up to the score."""
        projection, step = self._projection(), self._block(X.shape[1])
        form = projection @ projection.T
        out = np.empty(X.shape)
        for start in range(0, X.shape[0], step):
            z = self._standardised(X[start : start + step])
            np.multiply(z, z @ form, out=out[start : start + step])
        return out
