"""Empirical tail probabilities of every column, compressed and searched in near-constant time.

``-log P(X <= z)`` and ``-log P(X >= z)`` are all that ECOD and COPOD need. Sorting gives them exactly;
keeping the sorted table costs as much as the input. Here only those order statistics are kept whose rank,
counted from the nearer end, grows by at most 0.2 % per step: every rank up to 500 is kept, so that small
tables and the extremes of large ones are exact, and in between both tail probabilities are off by a factor
within 1 +- 0.001.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from skerry.kernels.compiled import njit
from skerry.kernels.threads import in_parts

__all__ = ["RANK_STEP", "TailTable", "explain_tails", "fit_tails", "score_tails", "tail_terms"]

RANK_STEP = 2e-3  # ratio of neighbouring kept ranks, minus one
N_CELLS = 2048  # cells of the search grid of a column
SLAB_BYTES = 1 << 25  # columns are transposed in slabs of at most this size
BLOCK_ROWS = 1024
EXPLAIN_VALUES = 1 << 18  # terms held at once by explain_tails

TOTAL, EITHER, MEAN = 0, 1, 2  # how score_tails joins the two tails


@dataclass(frozen=True, eq=False)
class TailTable:
    """Kept order statistics of d columns and what they say.

    Attributes
    ----------
    knots : ndarray of shape (total,), float64
        Kept distinct values, ascending within a column; column j owns ``knots[first[j]:first[j + 1]]``.
    first : ndarray of shape (d + 1,), int64
    left, right : ndarray of shape (2 * total + d,), float32
        ``-log P(X <= z)`` and ``-log P(X >= z)``. Column j starts at ``2 * first[j] + j``; entry ``2k + 1``
        is for z equal to knot k, entry ``2k`` for z strictly between knots k - 1 and k.
    cells : ndarray of shape (d, N_CELLS + 1), int32
        First knot (within the column) of each grid cell.
    origin, per_unit : ndarray of shape (d,), float64
        A value falls in cell ``(z - origin) * per_unit``, clipped.
    scale : ndarray of shape (d,), float64
        Standard deviation, the unit in which values beyond the range are measured (1 for a constant column).
    skewness : ndarray of shape (d,), float64
        Third standardised moment, 0 for a constant column.
    """

    knots: NDArray[np.float64]
    first: NDArray[np.int64]
    left: NDArray[np.float32]
    right: NDArray[np.float32]
    cells: NDArray[np.int32]
    origin: NDArray[np.float64]
    per_unit: NDArray[np.float64]
    scale: NDArray[np.float64]
    skewness: NDArray[np.float64]

    def arrays(self) -> tuple[NDArray, ...]:
        """Return what the kernels read, in their order."""
        return (
            self.knots,
            self.first,
            self.left,
            self.right,
            self.cells,
            self.origin,
            self.per_unit,
            self.scale,
        )


def kept_ranks(n: int) -> NDArray[np.int64]:
    """Return the positions kept of 0..n-1, ascending: all near the ends, geometric towards the middle."""
    half = (n + 1) // 2
    exact = min(half, int(1.0 / RANK_STEP))
    steps = np.arange(1, 2 + max(0, int(np.log(half / exact) / np.log1p(RANK_STEP))))
    far = np.floor(exact * (1.0 + RANK_STEP) ** steps).astype(np.int64)
    lower = np.r_[np.arange(exact), far[far < half]]
    return np.unique(np.r_[lower, n - 1 - lower])


def _moments(column: NDArray[np.float64]) -> tuple[float, float]:
    """Return (standard deviation, skewness) of a sorted column, scaled so that nothing overflows."""
    if column[0] == column[-1]:
        return 1.0, 0.0
    z = column - column.mean()
    top = max(-z[0], z[-1])
    z /= top
    z -= z.mean()
    square = z * z
    variance = square.mean()
    third = float(np.dot(square, z)) / z.size
    scale = top * np.sqrt(variance)
    return (scale if scale > 0 else 1.0), third / variance**1.5


def _column(column: NDArray[np.float64], ranks: NDArray[np.int64]):
    n = column.size
    knots = np.unique(column[ranks])
    below = np.searchsorted(column, knots, side="left")
    up_to = np.searchsorted(column, knots, side="right")
    m = knots.size
    left, right = np.empty(2 * m + 1), np.empty(2 * m + 1)
    left[1::2], right[1::2] = up_to, n - below
    # strictly between two knots: the middle of the counts that are possible there
    left[2:-1:2] = 0.5 * (up_to[:-1] + below[1:])
    right[2:-1:2] = n - left[2:-1:2]
    left[0] = right[-1] = 1.0  # beyond the range: the floor, to which the kernel adds the distance
    left[-1] = right[0] = n
    low, high = knots[int(0.005 * m)], knots[m - 1 - int(0.005 * m)]
    span = high - low
    per_unit = N_CELLS / span if span > 1e-290 else 0.0
    cell = np.clip((knots - low) * per_unit, 0.0, N_CELLS - 1.0).astype(np.int64)
    cells = np.searchsorted(cell, np.arange(N_CELLS + 1)).astype(np.int32)
    return knots, np.log(n / left), np.log(n / right), cells, low, per_unit


def fit_tails(X: NDArray) -> TailTable:
    """Return the tail table of ``X`` of shape (n, d), float32 or float64, finite. O(n d log n) time.

    Needs 32 MiB beside the input (or four columns, whichever is more), whatever n and d are.
    """
    n, d = X.shape
    ranks = kept_ranks(n)
    width = min(d, max(1, SLAB_BYTES // (8 * n)))
    parts, moments = [], []
    for start in range(0, d, width):
        slab = np.array(X[:, start : start + width].T, dtype=np.float64, order="C")
        for column in slab:
            column.sort()
            parts.append(_column(column, ranks))
            moments.append(_moments(column))
    knots, left, right, cells, origin, per_unit = zip(*parts, strict=True)
    scale, skewness = zip(*moments, strict=True)
    return TailTable(
        knots=np.concatenate(knots),
        first=np.r_[0, np.cumsum([k.size for k in knots])].astype(np.int64),
        left=np.concatenate(left).astype(np.float32),
        right=np.concatenate(right).astype(np.float32),
        cells=np.stack(cells),
        origin=np.array(origin),
        per_unit=np.array(per_unit),
        scale=np.array(scale),
        skewness=np.array(skewness),
    )


@njit(cache=True, nogil=True, inline="always")
def _terms(z, j, knots, first, left, right, cells, origin, per_unit, scale):
    """Return (-log P(X <= z), -log P(X >= z)) in column j."""
    base = first[j]
    m = first[j + 1] - base
    table = 2 * base + j
    if z < knots[base]:
        far = np.log1p(min((knots[base] - z) / scale[j], 1e300))
        return left[table] + far, np.float64(right[table])
    if z > knots[base + m - 1]:
        far = np.log1p(min((z - knots[base + m - 1]) / scale[j], 1e300))
        return np.float64(left[table + 2 * m]), right[table + 2 * m] + far
    cell = np.int64(min(max((z - origin[j]) * per_unit[j], 0.0), cells.shape[1] - 2.0))
    low, high = base + cells[j, cell], base + cells[j, cell + 1]
    while low < high:  # first knot >= z
        middle = (low + high) >> 1
        if knots[middle] < z:
            low = middle + 1
        else:
            high = middle
    k = low - base
    at = table + 2 * k
    if k < m and knots[low] == z:
        at += 1
    return np.float64(left[at]), np.float64(right[at])


@njit(cache=True, nogil=True)
def _score(X, use_right, rule, knots, first, left, right, cells, origin, per_unit, scale, out, begin, stop):
    d = X.shape[1]
    for start in range(begin, stop, BLOCK_ROWS):
        rows = min(BLOCK_ROWS, stop - start)
        sums = np.zeros((3, rows))
        for j in range(d):  # a column's table stays in cache for a whole block
            chosen_right = use_right[j]
            for i in range(rows):
                lo, hi = _terms(
                    np.float64(X[start + i, j]), j, knots, first, left, right, cells, origin, per_unit, scale
                )
                chosen = hi if chosen_right else lo
                if rule == TOTAL:
                    sums[0, i] += lo
                    sums[1, i] += hi
                    sums[2, i] += chosen
                elif rule == EITHER:
                    sums[0, i] += max(lo, hi)
                else:
                    sums[0, i] += max(0.5 * (lo + hi), chosen)
        for i in range(rows):
            out[start + i] = max(sums[0, i], sums[1, i], sums[2, i])


@njit(cache=True, nogil=True)
def _all_terms(X, knots, first, left, right, cells, origin, per_unit, scale, lows, highs, start, stop):
    for i in range(start, stop):
        for j in range(X.shape[1]):
            lows[i, j], highs[i, j] = _terms(
                np.float64(X[i, j]), j, knots, first, left, right, cells, origin, per_unit, scale
            )


def score_tails(X: NDArray, table: TailTable, use_right: NDArray[np.bool_], rule: int) -> NDArray[np.float64]:
    """Return one number per row of ``X`` of shape (n, d), joined from the 2 d tail terms.

    Parameters
    ----------
    X : ndarray of shape (n, d), float32 or float64, C-ordered, finite
    table : TailTable
    use_right : ndarray of shape (d,), bool
        Which tail the skewness chooses.
    rule : int
        ``TOTAL``: the largest of the three sums (left, right, chosen). ``EITHER``: sum of the larger tail of
        each column. ``MEAN``: sum over columns of max(mean of both tails, chosen tail).

    Returns
    -------
    ndarray of shape (n,), float64
    """
    X, out = np.ascontiguousarray(X), np.empty(len(X))
    in_parts(partial(_score, X, use_right, np.int64(rule), *table.arrays(), out), len(X), 8 * X.size)
    return out


def tail_terms(X: NDArray, table: TailTable) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return ``-log P(X <= z)`` and ``-log P(X >= z)`` of every value, each of shape (n, d), float64."""
    X, lows, highs = np.ascontiguousarray(X), np.empty(X.shape), np.empty(X.shape)
    in_parts(partial(_all_terms, X, *table.arrays(), lows, highs), len(X), 8 * X.size)
    return lows, highs


def explain_tails(X: NDArray, table: TailTable, use_right: NDArray[np.bool_], rule: int) -> NDArray[np.float64]:
    """Return the terms (n, d) that :func:`score_tails` sums; with ``TOTAL`` those of the largest sum."""
    out = np.empty(X.shape)
    step = max(1, EXPLAIN_VALUES // X.shape[1])
    for start in range(0, X.shape[0], step):
        rows = slice(start, start + step)
        left, right = tail_terms(X[rows], table)
        chosen = np.where(use_right, right, left)
        if rule == EITHER:
            out[rows] = np.maximum(left, right)
        elif rule == MEAN:
            out[rows] = np.maximum(0.5 * (left + right), chosen)
        else:
            won = np.argmax([left.sum(axis=1), right.sum(axis=1), chosen.sum(axis=1)], axis=0)[:, None]
            out[rows] = np.where(won == 0, left, np.where(won == 1, right, chosen))
    return out
