"""Stage-wise mean shift of a table and of new rows (Tan, Yang, Chen and Rahardja, 2023, MSS).

Each row moves to the mean of its k nearest rows, itself included, ``n_shifts`` times; the tables of all stages are
kept, so that new rows are shifted against the table of the same stage and one by one.
"""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import NDArray

from skerry.kernels.neighbours import NeighbourIndex, RowTable, distinct_rows, multiplicities

__all__ = ["MeanShifter"]

BLOCK = 8192  # rows shifted at once: bounds the copies of neighbours held in memory


class MeanShifter:
    """Shift rows towards the crowd. The table is taken as it is: standardise it first.

    Parameters
    ----------
    n_neighbors : int, default 30
        Rows averaged, the row itself among them; 1 moves nothing. Beyond the table's rows, all are used.
    n_shifts : int, default 3
        Times the shift is repeated; 0 moves nothing.

    Attributes
    ----------
    stages_ : list of ndarray of shape (n, d), float64
        Training tables before each shift.
    training_shift_ : ndarray of shape (n, d), float64
        The training table after the last shift.

    Notes
    -----
    A row equal to a training row counts as that row, so ``transform(X)`` of the training table equals
    ``training_shift_``. Rows tied for the last place are chosen by their order in the table.

    Examples
    --------
    >>> shifter = MeanShifter(n_neighbors=3, n_shifts=1).fit(np.array([[0.0], [1.0], [2.0]]))
    >>> shifter.transform(np.array([[4.0]]))
    array([[2.33333333]])
    """

    def __init__(self, n_neighbors: int = 30, n_shifts: int = 3) -> None:
        self.n_neighbors = n_neighbors
        self.n_shifts = n_shifts

    def fit(self, X: NDArray) -> Self:
        """Learn the stages from ``X`` of shape (n, d), finite."""
        table = np.array(X, dtype=np.float64, order="C")
        self.stages_, self._indices, self._known = [], [], None
        for _ in range(self.n_shifts if self.n_neighbors > 1 else 0):
            inverse = self._append(table)
            index, rows, counts = self._indices[-1]
            shifted = np.empty_like(rows)
            distances, numbers = index.query_self(self.n_neighbors)
            for at in range(0, rows.shape[0], BLOCK):
                part = slice(at, at + BLOCK)
                shifted[part] = self._mean(rows[part], distances[part], numbers[part], rows, counts)
            table = shifted[inverse]
        if self.stages_:
            first = RowTable(self.stages_[0])
            last = np.empty_like(first.rows)
            last[first.inverse] = table
            self._known = (first, last)
        self.training_shift_ = table
        return self

    def transform(self, X: NDArray) -> NDArray[np.float64]:
        """Return rows of shape (m, d) after all shifts; each is moved without regard to the others."""
        z = np.array(X, dtype=np.float64, order="C")
        if not self.stages_:
            return z
        new = np.ones(z.shape[0], dtype=bool)
        if self._known is not None:  # rows of the table have been moved already
            table, shifted = self._known
            number = table.find(z)
            new = number < 0
            z[~new] = shifted[number[~new]]
        moved = z[new]
        for stage in range(len(self.stages_)):
            moved = self._shift(moved, stage)
        z[new] = moved
        return z

    def _append(self, table: NDArray) -> NDArray[np.int64]:
        self.stages_.append(table)
        rows, counts, inverse = distinct_rows(table)
        self._indices.append((NeighbourIndex(rows), rows, counts))
        return inverse

    def _shift(self, z: NDArray, stage: int) -> NDArray[np.float64]:
        index, rows, counts = self._indices[stage]
        out = np.empty_like(z)
        for at in range(0, z.shape[0], BLOCK):
            block = z[at : at + BLOCK]
            out[at : at + BLOCK] = self._mean(block, *index.query(block, self.n_neighbors), rows, counts)
        return out

    def _mean(self, z: NDArray, distances: NDArray, numbers: NDArray, rows: NDArray, counts: NDArray) -> NDArray:
        """Return the mean of each row of ``z`` and its nearest, of which it is one where its distance is 0."""
        weights = multiplicities(distances, counts[numbers], self.n_neighbors - 1)
        total = z.copy()
        for c in range(numbers.shape[1]):
            total += weights[:, c, None] * rows[numbers[:, c]]
        return total / (1 + weights.sum(axis=1))[:, None]

    def __getstate__(self) -> dict:
        return {k: v for k, v in self.__dict__.items() if k not in ("_indices", "_known")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._known = None
        if "stages_" in state:
            stages, self.stages_, self._indices = state["stages_"], [], []
            for table in stages:
                self._append(table)
