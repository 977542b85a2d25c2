"""k nearest neighbours: a row is as anomalous as its neighbours are far (Ramaswamy, Rastogi and Shim, 2000).

The mean and median forms are those of Angiulli and Pizzuti (2002). Scores are Euclidean distances in the units of
the table, so columns should share a scale.
"""

from __future__ import annotations

from numbers import Integral

import numpy as np
from numpy.typing import NDArray
from sklearn.utils._param_validation import Interval, StrOptions

from skerry.detect.tabular.neighbour_detector import NeighbourDetector
from skerry.kernels.neighbours import multiplicities

__all__ = ["KNN"]


class KNN(NeighbourDetector):
    """Distance to the k-th neighbour, or the mean or median distance to the k nearest.

    Parameters
    ----------
    n_neighbors : int, default 5
        Rows compared with; where the table has fewer, all of them.
    method : {"largest", "mean", "median"}, default "largest"
    threshold : str, float or Threshold, default "auto"

    Notes
    -----
    How rows are found and what is kept (``algorithm_``, ``distinct_``, ``counts_``, ``scores_``) is said of
    :class:`~skerry.detect.tabular.neighbour_detector.NeighbourDetector`. Copies of a row are its neighbours, but one
    copy of it is not its own. When not to use: dense groups of more than ``n_neighbors`` anomalies hide each other.

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

    def _weights(self, distances: NDArray, numbers: NDArray) -> NDArray[np.float64]:
        """Return how much each neighbour's distance enters the score."""
        times = multiplicities(distances, self.counts_[numbers], self.n_neighbors)
        total = times.sum(axis=1)
        upto = np.cumsum(times, axis=1)
        weights = np.zeros(distances.shape)
        row = np.arange(distances.shape[0])
        if self.method == "mean":
            weights = times / np.maximum(total, 1)[:, None]
        elif self.method == "largest":
            weights[row, np.argmax(upto >= total[:, None], axis=1)] = 1.0
        else:
            for middle in ((total - 1) // 2, total // 2):
                weights[row, np.argmax(upto > middle[:, None], axis=1)] += 0.5
        return weights

    def _score_rows(self, distances: NDArray, numbers: NDArray) -> NDArray[np.float64]:
        out = np.empty(distances.shape[0])
        for part in self._blocks(out.size):
            out[part] = self._score_lists(distances[part], numbers[part])
        return out

    def _score_lists(self, distances: NDArray, numbers: NDArray) -> NDArray[np.float64]:
        return (distances * self._weights(distances, numbers)).sum(axis=1)

    def _explain(self, X: NDArray) -> NDArray[np.float64]:
        """Split each neighbour's distance by squared coordinate difference; rows sum to the score."""
        out = np.zeros(X.shape)
        for part in self._blocks(X.shape[0]):
            block = X[part].astype(np.float64)
            distances, numbers = self._lists(block)
            weights = self._weights(distances, numbers)
            for c in range(distances.shape[1]):
                apart = distances[:, c] > 0.0
                ratio = (block[apart] - self.distinct_[numbers[apart, c]]) / distances[apart, c, None]
                share = ratio**2
                share /= share.sum(axis=1, keepdims=True)
                out[part][apart] += share * (weights[:, c] * distances[:, c])[apart, None]
        return out
