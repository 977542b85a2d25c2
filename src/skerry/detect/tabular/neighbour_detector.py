"""What the detectors that look at nearest rows share: the distinct rows, their index, and their scores."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from skerry.core.detector import Detector
from skerry.kernels.neighbours import NeighbourIndex, RowTable

__all__ = ["NeighbourDetector"]

BLOCK = 16_384  # rows scored at once: bounds what is held beside the neighbour lists


class NeighbourDetector(Detector):
    """Base of detectors that score a row by its nearest distinct training rows.

    A row equal to a training row counts as that row, so ``fit`` searches the table among itself once, keeps one score
    for each distinct row, and hands it out again whenever that row is scored. A method writes ``_score_rows(distances,
    numbers)`` for the lists of all distinct training rows and ``_score_lists(distances, numbers)`` for those of a block
    of other rows; a list holds ``n_neighbors + 1`` rows, nearest first, of which the first is the row itself where its
    distance is 0.

    Attributes
    ----------
    algorithm_ : str
        How neighbours are found, "tree" or "tiles"; both are exact.
    distinct_ : ndarray of shape (u, d), float64
    counts_ : ndarray of shape (u,), int64
        The distinct training rows and how often each occurs.
    scores_ : ndarray of shape (u,), float64
        Their scores.
    """

    def _score_rows(self, distances: NDArray, numbers: NDArray) -> NDArray[np.float64]:
        raise NotImplementedError

    def _score_lists(self, distances: NDArray, numbers: NDArray) -> NDArray[np.float64]:
        raise NotImplementedError

    def _fit(self, X: NDArray) -> None:
        self._table = RowTable(X)
        self.distinct_, self.counts_ = self._table.rows, self._table.counts
        self._index = NeighbourIndex(self.distinct_)
        self.algorithm_ = self._index.algorithm_
        self.scores_ = self._score_rows(*self._index.query_self(self.n_neighbors + 1))

    def _score(self, X: NDArray) -> NDArray[np.float64]:
        number = self._table.find(X)
        out = self.scores_[np.maximum(number, 0)]
        new = np.flatnonzero(number < 0)
        for at in range(0, new.size, BLOCK):
            part = new[at : at + BLOCK]
            out[part] = self._score_lists(*self._lists(X[part]))
        return out

    def _lists(self, X: NDArray) -> tuple[NDArray, NDArray]:
        return self._index.query(X, self.n_neighbors + 1)

    @staticmethod
    def _blocks(n: int) -> Iterator[slice]:
        for at in range(0, n, BLOCK):
            yield slice(at, min(at + BLOCK, n))

    def __getstate__(self):
        return {k: v for k, v in super().__getstate__().items() if k not in ("_index", "_table")}

    def __setstate__(self, state):
        super().__setstate__(state)
        if "distinct_" in state:
            self._table = RowTable(self.distinct_)
            self._index = NeighbourIndex(self.distinct_, self.algorithm_)
