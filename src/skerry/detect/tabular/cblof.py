"""Cluster-based local outlier factor (He, Xu and Deng, 2003): distance to the nearest large cluster.

Rows are clustered by k-means; small clusters count as outlying, and their rows are compared with large ones.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from numbers import Integral, Real

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils._param_validation import Interval
from threadpoolctl import threadpool_limits

from skerry.core.detector import Detector
from skerry.kernels.neighbours import distinct_rows

__all__ = ["CBLOF"]

BLOCK_VALUES = 1 << 15  # values compared at once: they stay in the second-level cache


class CBLOF(Detector):
    """Distance to the row's cluster centre, or, in a small cluster, to the nearest large one.

    Parameters
    ----------
    n_clusters : int, default 8
        At most the number of distinct rows.
    alpha : float in (0, 1], default 0.9
        Clusters, largest first, are large until they hold this share of the rows...
    beta : float > 1, default 5
        ...or until a cluster is this many times the size of the next (Definition 2).
    use_weights : bool, default False
        Multiply by the size of the row's cluster as in the paper (Definition 3). Off by default: the factor makes rows
        of large clusters look anomalous.
    threshold : str, float or Threshold, default "auto"
    random_state : int, RandomState or None, default None

    Attributes
    ----------
    centers_ : ndarray of shape (c, d), float64, largest cluster first
    sizes_ : ndarray of shape (c,), int64
    n_large_ : int
        How many of the clusters are large.

    Notes
    -----
    The training table is not kept. When not to use: columns of different scales, groups that are not round.

    Examples
    --------
    >>> X = np.r_[np.zeros(20), np.ones(20), 9.0].reshape(-1, 1)
    >>> CBLOF(n_clusters=3, random_state=0).fit(X).anomaly_score([[9.0]])
    array([8.])
    """

    _parameter_constraints = {
        "n_clusters": [Interval(Integral, 1, None, closed="left")],
        "alpha": [Interval(Real, 0, 1, closed="right")],
        "beta": [Interval(Real, 1, None, closed="neither")],
        "use_weights": ["boolean"],
    }

    def __init__(self, n_clusters=8, alpha=0.9, beta=5.0, use_weights=False, threshold="auto", random_state=None):
        self.n_clusters = n_clusters
        self.alpha = alpha
        self.beta = beta
        self.use_weights = use_weights
        self.threshold = threshold
        self.random_state = random_state

    def _fit(self, X: NDArray) -> None:
        rows, counts, _ = distinct_rows(X)
        shift = rows.mean(axis=0)
        scale = max(float(np.abs(rows - shift).max()), 1e-300)  # k-means squares: keep them near 1
        model = KMeans(min(self.n_clusters, rows.shape[0]), n_init=1, random_state=self.random_state)
        # on more threads k-means adds up its centres in the order in which they end
        with threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # fewer clusters than asked: dropped below
            labels = model.fit((rows - shift) / scale, sample_weight=counts).labels_
        sizes = np.bincount(labels, weights=counts, minlength=model.n_clusters).astype(np.int64)
        order = np.argsort(-sizes, kind="stable")
        order = order[sizes[order] > 0]
        self.sizes_ = sizes[order]
        self.centers_ = model.cluster_centers_[order] * scale + shift
        share = np.cumsum(self.sizes_) >= self.alpha * X.shape[0]
        drop = np.r_[self.sizes_[:-1] >= self.beta * self.sizes_[1:], True]
        self.n_large_ = int(np.argmax(share | drop)) + 1

    def _compared(self, X: NDArray) -> Iterator[tuple[slice, NDArray, NDArray, NDArray]]:
        """Yield rows, squared differences to the centre compared with, their root sum, and the own cluster's size."""
        step = max(1, BLOCK_VALUES // X.shape[1])
        for at in range(0, X.shape[0], step):
            rows = slice(at, at + step)
            block = X[rows].astype(np.float64)
            squares = np.empty((self.sizes_.size, block.shape[0]))
            for c, centre in enumerate(self.centers_):
                gap = block - centre
                np.einsum("ij,ij->i", gap, gap, out=squares[c])
            own = squares.argmin(axis=0)
            target = np.where(own < self.n_large_, own, squares[: self.n_large_].argmin(axis=0))
            parts = (block - self.centers_[target]) ** 2
            yield rows, parts, np.sqrt(parts.sum(axis=1)), self.sizes_[own]

    def _score(self, X: NDArray) -> NDArray[np.float64]:
        out = np.empty(X.shape[0])
        for rows, _, distance, size in self._compared(X):
            out[rows] = distance * size if self.use_weights else distance
        return out

    def _explain(self, X: NDArray) -> NDArray[np.float64]:
        """Split the distance by squared coordinate difference to the centre; rows sum to the score."""
        out = np.empty(X.shape)
        for rows, parts, distance, size in self._compared(X):
            out[rows] = parts / np.where(distance > 0.0, distance, 1.0)[:, None]
            if self.use_weights:
                out[rows] *= size[:, None]
        return out
