"""Local outlier factor: how much sparser a row lies than its neighbours (Breunig et al., 2000).

About 1 for a row as densely surrounded as its neighbours; higher is more anomalous.
"""

from __future__ import annotations

from numbers import Integral

import numpy as np
from numpy.typing import NDArray
from sklearn.utils._param_validation import Interval

from skerry.core.detector import Detector
from skerry.kernels.neighbours import NeighbourIndex, distinct_rows

__all__ = ["LOF"]

BLOCK = 8192  # rows scored at once: bounds the neighbour lists held in memory


class LOF(Detector):
    """Ratio of the neighbours' local density to the row's own.

    Parameters
    ----------
    n_neighbors : int, default 20
        Distinct rows compared with; where the table has fewer, all of them.
    threshold : str, float or Threshold, default "auto"

    Attributes
    ----------
    algorithm_ : str
        How neighbours are found, "tree" or "boxes"; both are exact.
    distinct_ : ndarray of shape (u, d), float64
    reach_, density_ : ndarray of shape (u,), float64
        Distance to the k-th neighbour and local reachability density (Definition 6) of each distinct row.

    Notes
    -----
    Neighbours are *distinct* rows, the paper's k-distinct-distance remark: with copies counted, k copies of
    one row
    have infinite density. Mean reachability distances below 1e-10 of the usual distance to the k-th
    neighbour are
    raised to it, which keeps every score finite. A row equal to a training row counts as that row. When not
    to use:
    columns of different scales, or mostly repeated rows, where the counts are the signal.

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

    def _fit(self, X: NDArray) -> None:
        self.distinct_, _, inverse = distinct_rows(X)
        self._build()
        n = self.distinct_.shape[0]
        k = max(1, min(self.n_neighbors, n - 1))
        distances, numbers = np.empty((n, k)), np.empty((n, k), dtype=np.int64)
        for at in range(0, n, BLOCK):
            part = slice(at, at + BLOCK)
            distances[part], numbers[part] = self._neighbours(self.distinct_[part])
        self.reach_ = distances[:, -1].copy()
        usual = float(np.median(self.reach_))
        self.floor_ = 1e-10 * usual if usual > 0.0 else 1e-10
        self.density_ = self._density(distances, numbers)
        ratio = self.density_[numbers].mean(axis=1) / self.density_
        self._fit_scores = ratio[inverse]

    def _build(self) -> None:
        self._index = NeighbourIndex(self.distinct_)
        self.algorithm_ = self._index.algorithm_

    def _neighbours(self, X: NDArray) -> tuple[NDArray, NDArray]:
        """Distances and numbers of the k nearest distinct rows other than the row itself."""
        n = self.distinct_.shape[0]
        distances, numbers = self._index.query(X, self.n_neighbors + 1)
        width = min(self.n_neighbors, n - 1)
        if width == 0:  # a single distinct row is its own only neighbour
            return distances, numbers
        first = (distances[:, 0] == 0.0).astype(np.int64)
        take = first[:, None] + np.arange(width)
        return np.take_along_axis(distances, take, axis=1), np.take_along_axis(numbers, take, axis=1)

    def _density(self, distances: NDArray, numbers: NDArray) -> NDArray[np.float64]:
        mean_reach = np.maximum(distances, self.reach_[numbers]).mean(axis=1)
        return 1.0 / np.maximum(mean_reach, self.floor_)

    def _score(self, X: NDArray) -> NDArray[np.float64]:
        out = np.empty(X.shape[0])
        for at in range(0, X.shape[0], BLOCK):
            distances, numbers = self._neighbours(X[at : at + BLOCK])
            own = self._density(distances, numbers)
            out[at : at + BLOCK] = self.density_[numbers].mean(axis=1) / own
        return out

    def _score_training(self, X: NDArray, rows: NDArray) -> NDArray[np.float64]:
        """The neighbour lists of fit already gave the scores; they are handed over once and not kept."""
        return self.__dict__.pop("_fit_scores")[rows]

    def _explain(self, X: NDArray) -> NDArray[np.float64]:
        """Split the score by squared coordinate difference to the neighbours; rows sum to the score."""
        out = np.empty(X.shape)
        scores = self._score(X)
        for at in range(0, X.shape[0], BLOCK):
            block = X[at : at + BLOCK].astype(np.float64)
            _, numbers = self._neighbours(block)
            squares = np.zeros(block.shape)
            for c in range(numbers.shape[1]):
                squares += (block - self.distinct_[numbers[:, c]]) ** 2
            total = squares.sum(axis=1, keepdims=True)
            share = np.where(total > 0.0, squares / np.where(total > 0.0, total, 1.0), 1.0 / X.shape[1])
            out[at : at + BLOCK] = share * scores[at : at + BLOCK, None]
        return out

    def __getstate__(self):
        return {k: v for k, v in super().__getstate__().items() if k not in ("_index", "_fit_scores")}

    def __setstate__(self, state):
        super().__setstate__(state)
        if "distinct_" in state:
            self._build()
