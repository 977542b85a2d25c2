"""Local outlier factor: how much sparser a row lies than its neighbours (Breunig et al., 2000).

About 1 for a row as densely surrounded as its neighbours; higher is more anomalous.
"""

from __future__ import annotations

from numbers import Integral

import numpy as np
from numpy.typing import NDArray
from sklearn.utils._param_validation import Interval

from skerry.detect.tabular.neighbour_detector import NeighbourDetector

__all__ = ["LOF"]


class LOF(NeighbourDetector):
    """Ratio of the neighbours' local density to the row's own.

    Parameters
    ----------
    n_neighbors : int, default 20
        Distinct rows compared with; where the table has fewer, all of them.
    threshold : str, float or Threshold, default "auto"

    Attributes
    ----------
    reach_, density_ : ndarray of shape (u,), float64
        Distance to the k-th neighbour and local reachability density (Definition 6) of each distinct row.

    Notes
    -----
    How rows are found and what else is kept (``algorithm_``, ``distinct_``, ``counts_``, ``scores_``) is said of
    :class:`~skerry.detect.tabular.neighbour_detector.NeighbourDetector`. Neighbours are *distinct* rows, the paper's
    k-distinct-distance remark: with copies counted, k copies of one row have infinite density. Mean reachability
    distances below 1e-10 of the usual distance to the k-th neighbour are raised to it, which keeps every score finite.
    When not to use: columns of different scales, or mostly repeated rows, where the counts are the signal.

    Examples
    --------
    >>> X = np.r_[np.arange(9.0), 30.0].reshape(-1, 1)
    >>> bool(LOF(n_neighbors=3).fit(X).anomaly_score([[30.0]])[0] > 5)
    True
    """

    _parameter_constraints = {"n_neighbors": [Interval(Integral, 1, None, closed="left")]}

    def __init__(self, n_neighbors=20, threshold="auto"):
        self.n_neighbors = n_neighbors
        self.threshold = threshold

    def _score_rows(self, distances: NDArray, numbers: NDArray) -> NDArray[np.float64]:
        n = distances.shape[0]
        self.reach_, self.density_, out = np.empty(n), np.empty(n), np.empty(n)
        for part in self._blocks(n):
            self.reach_[part] = self._others(distances[part], numbers[part])[0][:, -1]
        usual = float(np.median(self.reach_))
        self.floor_ = 1e-10 * usual if usual > 0.0 else 1e-10
        for part in self._blocks(n):
            self.density_[part] = self._density(*self._others(distances[part], numbers[part]))
        for part in self._blocks(n):
            _, near = self._others(distances[part], numbers[part])
            out[part] = self.density_[near].mean(axis=1) / self.density_[part]
        return out

    def _others(self, distances: NDArray, numbers: NDArray) -> tuple[NDArray, NDArray]:
        """Distances and numbers of the k nearest distinct rows other than the row itself."""
        width = min(self.n_neighbors, self.distinct_.shape[0] - 1)
        if width == 0:  # a single distinct row is its own only neighbour
            return distances, numbers
        first = (distances[:, 0] == 0.0).astype(np.int64)
        take = first[:, None] + np.arange(width)
        return np.take_along_axis(distances, take, axis=1), np.take_along_axis(numbers, take, axis=1)

    def _density(self, distances: NDArray, numbers: NDArray) -> NDArray[np.float64]:
        mean_reach = np.maximum(distances, self.reach_[numbers]).mean(axis=1)
        return 1.0 / np.maximum(mean_reach, self.floor_)

    def _score_lists(self, distances: NDArray, numbers: NDArray) -> NDArray[np.float64]:
        distances, numbers = self._others(distances, numbers)
        return self.density_[numbers].mean(axis=1) / self._density(distances, numbers)

    def _explain(self, X: NDArray) -> NDArray[np.float64]:
        """Split the score by squared coordinate difference to the neighbours; rows sum to the score."""
        out = np.empty(X.shape)
        scores = self._score(X)
        for part in self._blocks(X.shape[0]):
            block = X[part].astype(np.float64)
            _, numbers = self._others(*self._lists(block))
            squares = np.zeros(block.shape)
            for c in range(numbers.shape[1]):
                squares += (block - self.distinct_[numbers[:, c]]) ** 2
            total = squares.sum(axis=1, keepdims=True)
            share = np.where(total > 0.0, squares / np.where(total > 0.0, total, 1.0), 1.0 / X.shape[1])
            out[part] = share * scores[part, None]
        return out
