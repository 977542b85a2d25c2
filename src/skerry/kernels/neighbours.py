"""Exact k nearest neighbours: a k-d tree where it prunes, brute force by BLAS where it does not.

Which is used is decided by timing both on a few hundred of the data's own rows. Brute force ranks candidates by
the centred expansion ``|a|^2 - 2ab + |b|^2``, keeps a few more than asked for, and recomputes their distances from
the differences, so that distances are those of a naive double loop to 1e-12 of the data's scale.
"""

from __future__ import annotations

import time

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray
from scipy.spatial import cKDTree

__all__ = ["NeighbourIndex"]

BLOCK_VALUES = 1 << 23  # products held at once by brute force: 64 MiB
SPARE = 8  # candidates beyond k whose distances are recomputed
PROBE = 128  # rows timed to choose the algorithm
SMALL = 2_000  # below this the tree's build and query cost nothing worth measuring


@njit(cache=True, parallel=True, nogil=True)
def _smallest(squared, k, index):
    """Write the positions of the k smallest entries of each row, in no order, by a bounded max-heap."""
    for i in prange(squared.shape[0]):
        row = squared[i]
        heap = np.empty(k)
        at = np.empty(k, dtype=np.int64)
        size = 0
        for j in range(row.size):
            v = row[j]
            if size < k:
                c = size
                size += 1
                while c > 0 and heap[(c - 1) // 2] < v:
                    heap[c], at[c] = heap[(c - 1) // 2], at[(c - 1) // 2]
                    c = (c - 1) // 2
                heap[c], at[c] = v, j
            elif v < heap[0]:
                c = 0
                while True:
                    child = 2 * c + 1
                    if child >= k:
                        break
                    if child + 1 < k and heap[child + 1] > heap[child]:
                        child += 1
                    if heap[child] <= v:
                        break
                    heap[c], at[c] = heap[child], at[child]
                    c = child
                heap[c], at[c] = v, j
        for j in range(k):
            index[i, j] = at[j]


@njit(cache=True, parallel=True, nogil=True)
def _refine(X, data, candidates, k, distance, index):
    """Recompute candidate distances from differences; keep the k smallest, ties by index."""
    for i in prange(X.shape[0]):
        m = candidates.shape[1]
        d = np.empty(m)
        for c in range(m):
            total = 0.0
            for j in range(X.shape[1]):
                diff = X[i, j] - data[candidates[i, c], j]
                total += diff * diff
            d[c] = total
        for a in range(k):
            best = a
            for c in range(a + 1, m):
                if d[c] < d[best] or (d[c] == d[best] and candidates[i, c] < candidates[i, best]):
                    best = c
            d[a], d[best] = d[best], d[a]
            candidates[i, a], candidates[i, best] = candidates[i, best], candidates[i, a]
            distance[i, a] = np.sqrt(d[a])
            index[i, a] = candidates[i, a]


class NeighbourIndex:
    """Exact neighbours in a fixed table.

    Parameters
    ----------
    data : ndarray of shape (m, d), float64
    k : int
        The number of neighbours that will be asked for, for the choice of algorithm.

    Attributes
    ----------
    algorithm : "tree" or "brute"

    Examples
    --------
    >>> index = NeighbourIndex(np.array([[0.0], [1.0], [5.0]]), 1)
    >>> distance, position = index.query(np.array([[1.5]]), 1)
    >>> float(distance[0, 0]), int(position[0, 0])
    (0.5, 1)
    """

    def __init__(self, data: NDArray[np.float64], k: int, algorithm: str | None = None) -> None:
        self.data = np.ascontiguousarray(data, dtype=np.float64)
        self.centre = self.data.mean(axis=0)
        self._tree: cKDTree | None = None
        self._centred: NDArray[np.float64] | None = None
        self.algorithm = algorithm or self._choose(k)

    def _choose(self, k: int) -> str:
        m, d = self.data.shape
        if m <= SMALL or d <= 3:
            return "tree" if d <= 20 else "brute"
        if d > 60:
            return "brute"
        rows = self.data[np.linspace(0, m - 1, PROBE).astype(np.int64)]
        self._brute(rows[:2], min(k, m))  # compiled outside the clock
        started = time.perf_counter()
        self._brute(rows, min(k, m))
        brute = time.perf_counter() - started
        self._build()
        started = time.perf_counter()
        self._tree.query(rows, k=min(k, m), workers=-1)  # type: ignore[union-attr]
        return "tree" if time.perf_counter() - started < brute else "brute"

    def _build(self) -> cKDTree:
        if self._tree is None:
            self._tree = cKDTree(self.data, leafsize=24, balanced_tree=False, compact_nodes=True)
        return self._tree

    def query(self, X: NDArray[np.float64], k: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return distances and positions of the ``k`` nearest rows, each of shape (n, k), nearest first."""
        X = np.ascontiguousarray(X, dtype=np.float64)
        if self.algorithm == "brute":
            return self._brute(X, k)
        distance, index = self._build().query(X, k=k, workers=-1)
        return distance.reshape(len(X), k), index.reshape(len(X), k).astype(np.int64, copy=False)

    def _brute(self, X: NDArray[np.float64], k: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        if self._centred is None:
            self._centred = self.data - self.centre
            self._norms = np.einsum("ij,ij->i", self._centred, self._centred)
        m = len(self.data)
        wanted = min(k + SPARE, m)
        distance, index = np.empty((len(X), k)), np.empty((len(X), k), dtype=np.int64)
        block = max(1, min(len(X), BLOCK_VALUES // m))
        for start in range(0, len(X), block):
            part = X[start : start + block]
            squared = (part - self.centre) @ self._centred.T
            squared *= -2.0
            squared += self._norms
            candidates = np.empty((len(part), wanted), dtype=np.int64)
            _smallest(squared, wanted, candidates)
            _refine(part, self.data, candidates, k, distance[start : start + block], index[start : start + block])
        return distance, index

    def query_others(self, X: NDArray[np.float64], k: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return the ``k`` nearest *other* rows: a row that coincides with a row of the table counts as it.

        One neighbour at distance zero is dropped, so that scoring the table itself never counts a row as its own
        neighbour, and the answer depends on nothing but the row.
        """
        k = min(k, len(self.data) - 1)
        distance, index = self.query(X, k + 1)
        same = distance[:, 0] == 0.0
        first = np.where(same, 1, 0)[:, None] + np.arange(k)
        return np.take_along_axis(distance, first, axis=1), np.take_along_axis(index, first, axis=1)
