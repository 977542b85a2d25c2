"""Distance to the k nearest neighbours (Ramaswamy, Rastogi and Shim, 2000; Angiulli and Pizzuti, 2002).

The score is a distance in the units of X: standardise the columns first.
"""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils._param_validation import Interval, StrOptions

from skerry.core.detector import Detector
from skerry.kernels.neighbours import NeighbourIndex

__all__ = ["KNN", "NeighbourDetector"]


class NeighbourDetector(Detector):
    """What detectors on exact neighbours share: the table they keep, and its index, rebuilt when loaded."""

    _parameter_constraints: dict[str, list[Any]] = {"n_neighbors": [Interval(Integral, 1, None, closed="left")]}

    def _fit_index(self, X: NDArray) -> None:
        X = np.array(X, dtype=np.float64, order="C")
        self.data_ = X if len(X) > 1 else np.repeat(X, 2, axis=0)  # one row is its own neighbour
        self.n_neighbors_ = min(self.n_neighbors, len(self.data_) - 1)
        self._index = NeighbourIndex(self.data_, self.n_neighbors_ + 1)
        self.algorithm_ = self._index.algorithm

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in super().__getstate__().items() if k != "_index"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "data_" in state:
            self._index = NeighbourIndex(self.data_, self.n_neighbors_ + 1, self.algorithm_)


class KNN(NeighbourDetector):
    """Distance to the k-th nearest other row, or the mean or median distance to the k nearest.

    Parameters
    ----------
    n_neighbors : int, default 5
    method : {"largest", "mean", "median"}, default "largest"
    threshold : str, float or Threshold, default "auto"

    Attributes
    ----------
    algorithm_ : {"tree", "brute"}
        Chosen by timing both on some of the rows; the scores are the same.
    data_ : ndarray of shape (n, d), float64
        The training rows; a row to score that equals one of them counts as it, not as its neighbour.

    Notes
    -----
    When not to use: outliers that come in groups larger than ``n_neighbors``.

    Examples
    --------
    >>> KNN(n_neighbors=1).fit([[0.0], [1.0], [9.0]]).anomaly_score([[0.0], [9.0], [2.5]])
    array([1. , 8. , 1.5])
    """

    _parameter_constraints = NeighbourDetector._parameter_constraints | {
        "method": [StrOptions({"largest", "mean", "median"})]
    }

    def __init__(self, n_neighbors=5, method="largest", threshold="auto"):
        self.n_neighbors = n_neighbors
        self.method = method
        self.threshold = threshold

    def _fit(self, X: NDArray) -> None:
        self._fit_index(X)

    def _reduce(self, values: NDArray) -> NDArray[np.float64]:
        if self.method == "largest":
            return values[:, -1]
        return values.mean(axis=1) if self.method == "mean" else np.median(values, axis=1)

    def _score(self, X: NDArray) -> NDArray[np.float64]:
        return self._reduce(self._index.query_others(X, self.n_neighbors_)[0])

    def _explain(self, X: NDArray) -> NDArray[np.float64]:
        """Squared coordinate differences to the neighbours, scaled so that rows sum to the score."""
        X = np.asarray(X, dtype=np.float64)
        distance, index = self._index.query_others(X, self.n_neighbors_)
        parts = np.zeros(X.shape)
        for k in range(index.shape[1]):
            parts += (X - self.data_[index[:, k]]) ** 2
        total = parts.sum(axis=1)
        return parts * (self._reduce(distance) / np.where(total > 0, total, 1.0))[:, None]
