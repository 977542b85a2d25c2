"""Local outlier factor (Breunig, Kriegel, Ng and Sander, SIGMOD 2000): sparse beside its own neighbours.

The score is about 1 where a row is as densely surrounded as its neighbours, larger where it is sparser.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from skerry.detect.tabular.knn import NeighbourDetector

__all__ = ["LOF"]


class LOF(NeighbourDetector):
    """Mean ratio of the neighbours' local reachability density to the row's own.

    Parameters
    ----------
    n_neighbors : int, default 20
    threshold : str, float or Threshold, default "auto"

    Attributes
    ----------
    density_ : ndarray of shape (n,)
        Local reachability density of the training rows (definition 6).
    floor_ : float
        Smallest reachability distance that counts, 1e-3 of the median one that is not zero: rows repeated more
        than ``n_neighbors`` times have a large finite density and a factor of 1, instead of an infinite one.

    Examples
    --------
    >>> X = np.r_[np.linspace(0, 1, 30), 3.0].reshape(-1, 1)
    >>> int(LOF(n_neighbors=5).fit(X).anomaly_score(X).argmax())
    30
    """

    def __init__(self, n_neighbors=20, threshold="auto"):
        self.n_neighbors = n_neighbors
        self.threshold = threshold

    def _fit(self, X: NDArray) -> None:
        self._fit_index(X)
        distance, index = self._index.query_others(self.data_, self.n_neighbors_)
        self.k_distance_ = distance[:, -1].copy()
        positive = self.k_distance_[self.k_distance_ > 0]
        self.floor_ = 1e-3 * float(np.median(positive)) if positive.size else 1.0
        self.density_ = self._density(distance, index)

    def _density(self, distance: NDArray, index: NDArray) -> NDArray[np.float64]:
        reach = np.maximum(distance, self.k_distance_[index])
        return 1.0 / np.maximum(reach.mean(axis=1), self.floor_)

    def _score(self, X: NDArray) -> NDArray[np.float64]:
        distance, index = self._index.query_others(X, self.n_neighbors_)
        return self.density_[index].mean(axis=1) / self._density(distance, index)

    def _explain(self, X: NDArray) -> NDArray[np.float64]:
        """Squared coordinate differences to the neighbours, scaled so that rows sum to the score."""
        X = np.asarray(X, dtype=np.float64)
        distance, index = self._index.query_others(X, self.n_neighbors_)
        score = self.density_[index].mean(axis=1) / self._density(distance, index)
        parts = np.zeros(X.shape)
        for k in range(index.shape[1]):
            parts += (X - self.data_[index[:, k]]) ** 2
        total = parts.sum(axis=1)
        return parts * (score / np.where(total > 0, total, 1.0))[:, None]
