"""Isolation forest (Liu, Ting and Zhou, ICDM 2008): rows that random splits isolate early are outliers.

Scores are 2^(-E[h] / c(psi)) in (0, 1]: about 0.5 for ordinary rows, towards 1 for outliers.
"""

from __future__ import annotations

import math
from numbers import Integral, Real

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval
from sklearn.utils.random import sample_without_replacement

from skerry.core.detector import Detector
from skerry.kernels.trees import attribute_paths, average_path_length, grow_trees, path_lengths

__all__ = ["IsolationForest"]


class IsolationForest(Detector):
    """Mean depth at which random axis-parallel splits isolate a row.

    Parameters
    ----------
    n_estimators : int, default 100
        Trees.
    max_samples : int or float, default 256
        Rows that a tree is grown on, drawn without replacement; a float is a share of all rows. Depth is limited
        to ceil(log2(max_samples)).
    random_state : int, RandomState or None, default None
    threshold : str, float or Threshold, default "auto"

    Attributes
    ----------
    max_samples_ : int
        Rows per tree (psi).

    Notes
    -----
    When not to use: outliers that are odd only in their combination of values, all of them ordinary alone, in many
    dimensions; use :class:`KNN` or :class:`RobustCovariance` there.

    ``explain`` splits the score above that of a row with the expected path length among the features along the
    paths, so rows sum to ``score - 2^(-E[h at root] / c(psi))``.

    References
    ----------
    F. T. Liu, K. M. Ting, Z.-H. Zhou, "Isolation Forest", ICDM 2008, eq. 2.

    Examples
    --------
    >>> X = np.r_[np.random.default_rng(0).normal(size=(200, 2)), [[8.0, 8.0]]]
    >>> int(IsolationForest(random_state=0).fit(X).anomaly_score(X).argmax())
    200
    """

    _parameter_constraints = {
        "n_estimators": [Interval(Integral, 1, None, closed="left")],
        "max_samples": [
            Interval(Integral, 2, 1 << 16, closed="both"),
            Interval(Real, 0, 1, closed="neither"),
        ],
    }

    def __init__(self, n_estimators=100, max_samples=256, random_state=None, threshold="auto"):
        self.n_estimators = n_estimators
        self.max_samples = max_samples
        self.random_state = random_state
        self.threshold = threshold

    def _fit(self, X: NDArray) -> None:
        rng = check_random_state(self.random_state)
        n = X.shape[0]
        wanted = self.max_samples if isinstance(self.max_samples, Integral) else round(self.max_samples * n)
        self.max_samples_ = int(min(max(wanted, 1), n, 1 << 16))
        self.depth_ = max(1, math.ceil(math.log2(max(self.max_samples_, 2))))
        rows = np.empty((self.n_estimators, self.max_samples_), dtype=np.int64)
        for t in range(self.n_estimators):
            rows[t] = sample_without_replacement(n, self.max_samples_, random_state=rng)
        seeds = rng.randint(0, 2**32, size=self.n_estimators, dtype=np.uint64)
        self.feature_, self.cut_, self.leaf_, self.mean_ = grow_trees(X, rows, self.depth_, seeds)

    def _unit(self) -> float:
        return max(average_path_length(self.max_samples_), 1e-12)

    def _score(self, X: NDArray) -> NDArray[np.float64]:
        depth = path_lengths(X, self.feature_, self.cut_, self.leaf_, self.depth_)
        return np.exp2(-depth / self._unit())

    def _explain(self, X: NDArray) -> NDArray[np.float64]:
        parts = attribute_paths(X, self.feature_, self.cut_, self.mean_, self.depth_)
        saved = parts.sum(axis=1)
        root = float(self.mean_[:, 0].mean())
        gain = np.exp2(-(root - saved) / self._unit()) - np.exp2(-root / self._unit())
        slope = np.log(2.0) / self._unit() * np.exp2(-root / self._unit())  # the limit where nothing was saved
        safe = np.where(np.abs(saved) > 1e-9, saved, 1.0)
        return parts * np.where(np.abs(saved) > 1e-9, gain / safe, slope)[:, None]
