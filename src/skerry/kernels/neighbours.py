"""Exact k nearest neighbours with float64 distances: blocks of rows multiplied in float32, or a kd-tree.

Both forms answer as the naive loop does. The blocks (:mod:`skerry.kernels.neighbour_tiles`) skip whatever a bounding
box puts out of reach, multiply the rest near the processor's peak, half of it when a table is searched among its own
rows, and measure again in float64 what the float32 error bound cannot exclude. The tree is better in few dimensions.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from skerry.kernels import neighbour_tiles as tiles
from skerry.kernels.distinct import RowTable, distinct_rows, multiplicities
from skerry.kernels.neighbour_blocks import cut_blocks, find_axes

__all__ = ["NeighbourIndex", "RowTable", "distinct_rows", "multiplicities"]

SAMPLE = 64  # rows whose search is counted to choose the form
TREE_VALUES = 1 << 16  # neighbours asked of the tree at once: bounds what is held beside the lists
TIE = 1.0 + 1e-12  # distances closer than this are ties to the tree, which sums in an order of its own
TREE_WORK = 55_000  # multiplications per query above which the blocks beat the tree (measured at d = 4 and 6)


class NeighbourIndex:
    """Index of distinct rows for exact nearest-neighbour queries.

    Parameters
    ----------
    rows : ndarray of shape (u, d), float64
        Preferably distinct (:func:`distinct_rows`).
    algorithm : {"auto", "tree", "tiles"}, default "auto"
        "auto" counts the multiplications that 64 of the rows cost in blocks; where they are many, or d is above 12,
        pruning fails and blocks win; else the tree does. Counting, unlike timing, repeats exactly.

    Attributes
    ----------
    algorithm_ : str
        "tree" or "tiles".
    work_ : float or None
        What "auto" counted per row.

    Examples
    --------
    >>> index = NeighbourIndex(np.array([[0.0], [1.0], [5.0]]))
    >>> distances, numbers = index.query(np.array([[1.5]]), 2)
    >>> distances.tolist(), numbers.tolist()
    ([[0.5, 1.5]], [[1, 0]])
    """

    def __init__(self, rows: NDArray, algorithm: str = "auto") -> None:
        rows = np.ascontiguousarray(rows, dtype=np.float64)
        self.n_rows, d = rows.shape
        self._rows = rows
        self._tree = None
        self.work_ = None
        self.algorithm_ = algorithm
        if algorithm == "tree" or (algorithm == "auto" and d <= 3 and self.n_rows > tiles.TILE):
            self._plant()
            return
        self.algorithm_ = "tiles"
        if self.n_rows == 0:
            return
        self._axes = find_axes(rows)
        self._blocks = cut_blocks(rows, self._axes)
        if algorithm == "auto" and d <= 12 and self.n_rows > 8 * tiles.TILE:
            sample = rows[np.linspace(0, self.n_rows - 1, SAMPLE).astype(np.int64)]
            self.work_ = float(self._search(sample, min(6, self.n_rows))[2].sum() / SAMPLE)
            if self.work_ < TREE_WORK:
                del self._blocks, self._axes
                self._plant()

    def _plant(self) -> None:
        self._tree = cKDTree(self._rows, leafsize=16, balanced_tree=False, compact_nodes=True)
        self.algorithm_ = "tree"

    def _state(self, parts: int) -> tuple:
        blocks, axes = self._blocks, self._axes
        place = (axes.place, axes.head, axes.haze)
        return (*blocks.as_queries(), blocks.half, *place, *tiles.scratch(axes.lines, parts))

    def _search(self, Q: NDArray, k: int) -> tuple[NDArray, NDArray, NDArray]:
        queries = cut_blocks(Q, self._axes)
        parts = min(tiles.PARTS, queries.first.size - 1)
        return tiles.search_others(Q, k, queries.as_queries(), self._rows, *self._state(parts))

    def query(self, Q: NDArray, k: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return distances and row numbers of the ``min(k, u)`` nearest rows, nearest first.

        Parameters
        ----------
        Q : ndarray of shape (m, d)
        k : int

        Returns
        -------
        distances : ndarray of shape (m, min(k, u)), float64
        numbers : ndarray of shape (m, min(k, u)), int64
            Of rows equally far the first.
        """
        Q = np.ascontiguousarray(Q, dtype=np.float64)
        k = min(k, self.n_rows)
        if Q.shape[0] == 0 or k == 0:
            return np.zeros((Q.shape[0], k)), np.zeros((Q.shape[0], k), dtype=np.int64)
        if self._tree is None:
            distances, numbers, _ = self._search(Q, k)
            return distances, numbers
        distances, numbers = np.empty((Q.shape[0], k)), np.empty((Q.shape[0], k), dtype=np.int64)
        step = max(1, TREE_VALUES // (k + 1))
        for at in range(0, Q.shape[0], step):
            part = slice(at, at + step)
            distances[part], numbers[part] = self._ask_tree(Q[part], k, k + 1)
        return distances, numbers

    def _ask_tree(self, Q: NDArray, k: int, width: int) -> tuple[NDArray, NDArray]:
        """Return the lists of a few rows; ``width`` > k neighbours are fetched, and more where the k-th is tied."""
        width = min(width, self.n_rows)
        near, numbers = self._tree.query(Q, k=np.arange(1, width + 1), workers=numba.get_num_threads())
        tied = np.flatnonzero(near[:, -1] <= near[:, k - 1] * TIE)
        squares = tiles.squared_distances(Q, self._rows, numbers)
        loose = np.flatnonzero((squares[:, 1:] <= squares[:, :-1]).any(axis=1))  # equal, or in another order
        if loose.size:
            order = np.lexsort((numbers[loose], squares[loose]))
            squares[loose] = np.take_along_axis(squares[loose], order, axis=1)
            numbers[loose] = np.take_along_axis(numbers[loose], order, axis=1)
        near, numbers = np.sqrt(squares[:, :k]), numbers[:, :k]
        if width == self.n_rows:
            return near, numbers
        wider = 2 * width + 8
        step = max(1, TREE_VALUES // wider)
        for at in range(0, tied.size, step):
            rows = tied[at : at + step]
            near[rows], numbers[rows] = self._ask_tree(Q[rows], k, wider)
        return near, numbers

    def query_self(self, k: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return ``query(rows, k)`` in half the time where the blocks are used, in 16 u k bytes."""
        k = min(k, self.n_rows)
        if self._tree is not None or k == 0:
            return self.query(self._rows, k)
        return tiles.search_self(self._rows, k, *self._state(tiles.PARTS))
