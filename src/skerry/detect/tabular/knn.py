"""k nearest neighbours: a row is as anomalous as its neighbours are far (Ramaswamy, Rastogi and Shim, 2000).

The mean and median forms are those of Angiulli and Pizzuti (2002). Scores are Euclidean distances in the
units of
the table, so columns should share a scale.
"""

from __future__ import annotations

from numbers import Integral

import numpy as np
from numpy.typing import NDArray
from sklearn.utils._param_validation import Interval, StrOptions

from skerry.core.detector import Detector
from skerry.kernels.neighbours import NeighbourIndex, distinct_rows, multiplicities

__all__ = ["KNN"]

BLOCK = 16_384  # rows scored at once: bounds the neighbour lists held in memory


class KNN(Detector):
    """Distance to the k-th neighbour, or the mean or median distance to the k nearest.

    Parameters
    ----------
    n_neighbors : int, default 5
        Rows compared with; where the table has fewer, all of them.
    method : {"largest", "mean", "median"}, default "largest"
    threshold : str, float or Threshold, default "auto"

    Attributes
    ----------
    algorithm_ : str
        How neighbours are found, "tree" or "boxes"; both are exact.
    distinct_ : ndarray of shape (u, d), float64
    counts_ : ndarray of shape (u,), int64
        The distinct training rows and how often each occurs.

    Notes
    -----
    A row equal to a training row counts as that row: one copy of it is not its own neighbour. When not to
    use: dense
    groups of more than ``n_neighbors`` anomalies hide each other.

    Examples
    --------
    >>> KNN(n_neighbors=1).fit([[0.0], [1.0], [3.0]]).anomaly_score([[3.0], [7.0]])
    array([2., 4.])
    """

    _parameter_constraints = {
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
        "method": [StrOptions({"largest", "mean", "median"})],
    }

    def __init__(self, n_neighbors=5, method="largest", threshold="auto"):
        self.n_neighbors = n_neighbors
        self.method = method
        self.threshold = threshold

    def _fit(self, X: NDArray) -> None:
        self.distinct_, self.counts_, _ = distinct_rows(X)
        self._build()

    def _build(self) -> None:
        self._index = NeighbourIndex(self.distinct_)
        self.algorithm_ = self._index.algorithm_

    def _neighbours(self, X: NDArray) -> tuple[NDArray, NDArray, NDArray]:
        """Distances, numbers and weights of the neighbours; weights say how each enters the score."""
        distances, numbers = self._index.query(X, self.n_neighbors + 1)
        times = multiplicities(distances, self.counts_[numbers], self.n_neighbors)
        total = times.sum(axis=1)
        upto = np.cumsum(times, axis=1)
        weights = np.zeros(distances.shape)
        row = np.arange(X.shape[0])
        if self.method == "mean":
            weights = times / np.maximum(total, 1)[:, None]
        elif self.method == "largest":
            weights[row, np.argmax(upto >= total[:, None], axis=1)] = 1.0
        else:
            for middle in ((total - 1) // 2, total // 2):
                weights[row, np.argmax(upto > middle[:, None], axis=1)] += 0.5
        return distances, numbers, weights

    def _score(self, X: NDArray) -> NDArray[np.float64]:
        out = np.empty(X.shape[0])
        for at in range(0, X.shape[0], BLOCK):
            distances, _, weights = self._neighbours(X[at : at + BLOCK])
            out[at : at + BLOCK] = (distances * weights).sum(axis=1)
        return out

    def _explain(self, X: NDArray) -> NDArray[np.float64]:
        """Split each neighbour's distance by squared coordinate difference; rows sum to the score."""
        out = np.zeros(X.shape)
        for at in range(0, X.shape[0], BLOCK):
            block = X[at : at + BLOCK].astype(np.float64)
            distances, numbers, weights = self._neighbours(block)
            for c in range(distances.shape[1]):
                apart = distances[:, c] > 0.0
                ratio = (block[apart] - self.distinct_[numbers[apart, c]]) / distances[apart, c, None]
                share = ratio**2
                share /= share.sum(axis=1, keepdims=True)
                out[at : at + BLOCK][apart] += share * (weights[:, c] * distances[:, c])[apart, None]
        return out

    def __getstate__(self):
        return {k: v for k, v in super().__getstate__().items() if k != "_index"}

    def __setstate__(self, state):
        super().__setstate__(state)
        if "distinct_" in state:
            self._build()
