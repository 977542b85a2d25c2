"""Sparse projections of rows, and their histograms: each direction names its few columns and their weights.

A block of rows lies transposed in the first-level cache; a direction is a few multiplications along it, and its range,
its counts or its terms are taken there and then, so that the projections themselves are never stored. A row's sums
run in one order, so they depend neither on the rows beside it nor on the kernel.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
from numpy.typing import NDArray

from skerry.kernels.compiled import njit
from skerry.kernels.threads import in_parts

__all__ = ["projection_contrasts", "projection_counts", "projection_range", "projection_scores"]

BLOCK = 256  # rows projected at once
N_PARTS = 16  # a fixed number, so that memory and results do not depend on the threads


@njit(cache=True, nogil=True)
def _transpose(X, start, size, block):
    for i in range(size):
        for j in range(X.shape[1]):
            block[j, i] = X[start + i, j]


@njit(cache=True, nogil=True)
def _along(block, columns, weights, p, z):
    """Write the projections of a block (d, BLOCK) on direction ``p``."""
    z[:] = 0.0
    for j in range(columns.shape[1]):
        line, w = block[columns[p, j]], weights[p, j]
        for i in range(BLOCK):
            z[i] += w * line[i]


@njit(cache=True, nogil=True, fastmath={"nnan", "nsz", "reassoc"})
def _extremes(z, size):
    low = high = z[0]
    for i in range(size):
        v = z[i]
        low = v if v < low else low
        high = v if v > high else high
    return low, high


@njit(cache=True, nogil=True)
def _projection_range(X, columns, weights, lows, highs, begin, stop):
    n, d = X.shape
    k = columns.shape[0]
    for part in range(begin, stop):
        block, z = np.zeros((d, BLOCK)), np.empty(BLOCK)
        last = (part + 1) * n // N_PARTS
        for start in range(part * n // N_PARTS, last, BLOCK):
            size = min(BLOCK, last - start)
            _transpose(X, start, size, block)
            for p in range(k):
                _along(block, columns, weights, p, z)
                low, high = _extremes(z, size)
                lows[part, p] = min(lows[part, p], low)
                highs[part, p] = max(highs[part, p], high)


@njit(cache=True, nogil=True)
def _bins(z, low, per_unit, last, out):
    for i in range(BLOCK):
        at = (z[i] - low) * per_unit
        at = at if at > 0.0 else 0.0
        out[i] = np.int32(at if at < last else last)


@njit(cache=True, nogil=True)
def _projection_counts(X, columns, weights, low, per_unit, n_bins, counts, begin, stop):
    n, d = X.shape
    k = columns.shape[0]
    most = counts.shape[1] // k
    for part in range(begin, stop):
        own = counts[part]
        block, z, at = np.zeros((d, BLOCK)), np.empty(BLOCK), np.empty(BLOCK, dtype=np.int32)
        last = (part + 1) * n // N_PARTS
        for start in range(part * n // N_PARTS, last, BLOCK):
            size = min(BLOCK, last - start)
            _transpose(X, start, size, block)
            for p in range(k):
                _along(block, columns, weights, p, z)
                _bins(z, low[p], per_unit[p], n_bins[p] - 1.0, at)
                for i in range(size):
                    own[np.uint64(p * most + at[i])] += 1


@njit(cache=True, nogil=True)
def _terms(z, size, p, low, high, per_unit, n_bins, flat, most, empty, at, out):
    """Write the terms of a block's projections ``z`` on direction ``p``, which has ``most`` of the terms ``flat``."""
    _bins(z, low[p], per_unit[p], n_bins[p] - 1.0, at)
    least, largest = _extremes(z, size)
    if least >= low[p] and largest <= high[p]:
        for i in range(size):
            out[i] = flat[np.uint64(p * most + at[i])]
        return
    for i in range(size):
        beyond = max(low[p] - z[i], z[i] - high[p])
        if beyond > 0.0:
            out[i] = empty[p] + np.log1p(min(beyond * per_unit[p], 1e300))
        else:
            out[i] = flat[np.uint64(p * most + at[i])]


@njit(cache=True, nogil=True)
def _projection_scores(X, columns, weights, low, high, per_unit, n_bins, flat, empty, out, begin, stop):
    n, d = X.shape
    k = columns.shape[0]
    most = flat.size // k
    for b in range(begin, stop):
        start = b * BLOCK
        size = min(BLOCK, n - start)
        block, z, at = np.zeros((d, BLOCK)), np.empty(BLOCK), np.empty(BLOCK, dtype=np.int32)
        total, term = np.zeros(BLOCK), np.zeros(BLOCK)
        _transpose(X, start, size, block)
        for p in range(k):
            _along(block, columns, weights, p, z)
            _terms(z, size, p, low, high, per_unit, n_bins, flat, most, empty, at, term)
            for i in range(BLOCK):
                total[i] += term[i]
        for i in range(size):
            out[start + i] = total[i]


@njit(cache=True, nogil=True)
def _projection_contrasts(X, columns, weights, low, high, per_unit, n_bins, flat, empty, within, out, begin, stop):
    n, d = X.shape
    k = columns.shape[0]
    most = flat.size // k
    for b in range(begin, stop):
        start = b * BLOCK
        size = min(BLOCK, n - start)
        block, z, at = np.zeros((d, BLOCK)), np.empty(BLOCK), np.empty(BLOCK, dtype=np.int32)
        term, first = np.zeros(BLOCK), np.zeros(BLOCK)
        total, squares = np.zeros((d, BLOCK)), np.zeros((d, BLOCK))  # of the directions with a column
        whole, all_squares = np.zeros(BLOCK), np.zeros(BLOCK)
        _transpose(X, start, size, block)
        for p in range(k):
            _along(block, columns, weights, p, z)
            _terms(z, size, p, low, high, per_unit, n_bins, flat, most, empty, at, term)
            if p == 0:
                for i in range(BLOCK):
                    first[i] = term[i]
            for i in range(BLOCK):
                term[i] -= first[i]  # keeps the differences of squares below accurate
                whole[i] += term[i]
                all_squares[i] += term[i] * term[i]
            for j in range(columns.shape[1]):
                line, square = total[columns[p, j]], squares[columns[p, j]]
                for i in range(BLOCK):
                    line[i] += term[i]
                    square[i] += term[i] * term[i]
        for j in range(d):
            a, c = within[j], k - within[j]
            for i in range(size):
                mean_a, mean_c = total[j, i] / a, (whole[i] - total[j, i]) / c
                error_a = max(squares[j, i] / a - mean_a * mean_a, 0.0) / (a - 1.0)
                error_c = max((all_squares[i] - squares[j, i]) / c - mean_c * mean_c, 0.0) / (c - 1.0)
                out[start + i, j] = (mean_a - mean_c) / math.sqrt(max(error_a + error_c, 1e-12))


def projection_range(X: NDArray, columns: NDArray, weights: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the least and the largest projection on each direction, each of shape (k,).

    Parameters
    ----------
    X : ndarray of shape (n, d)
    columns : ndarray of shape (k, m), int64
    weights : ndarray of shape (k, m), float64
        The projection on direction p is ``sum_j weights[p, j] * X[:, columns[p, j]]``.
    """
    lows, highs = np.full((N_PARTS, len(columns)), np.inf), np.full((N_PARTS, len(columns)), -np.inf)
    run = partial(_projection_range, np.ascontiguousarray(X), columns, weights, lows, highs)
    in_parts(run, N_PARTS, len(X) * weights.size)
    return lows.min(axis=0), highs.max(axis=0)


def projection_counts(
    X: NDArray, columns: NDArray, weights: NDArray, low: NDArray, per_unit: NDArray, n_bins: NDArray
) -> NDArray[np.int64]:
    """Return counts (k, max(n_bins)); a projection falls in bin ``(z - low) * per_unit``, clipped."""
    counts = np.zeros((N_PARTS, len(columns) * n_bins.max()), dtype=np.int64)
    run = partial(_projection_counts, np.ascontiguousarray(X), columns, weights, low, per_unit, n_bins, counts)
    in_parts(run, N_PARTS, len(X) * weights.size)
    return counts.sum(axis=0).reshape(len(columns), -1)


def projection_scores(
    X: NDArray, columns: NDArray, weights: NDArray, low: NDArray, high: NDArray, per_unit: NDArray,
    n_bins: NDArray, terms: NDArray, empty: NDArray,
) -> NDArray[np.float64]:  # fmt: skip
    """Return the sum over directions of the term of each projection's bin, shape (n,).

    Outside [low, high] the term is ``empty + log(1 + distance in bins)``.
    """
    X, flat, out = np.ascontiguousarray(X), np.ascontiguousarray(terms).ravel(), np.empty(len(X))
    run = partial(_projection_scores, X, columns, weights, low, high, per_unit, n_bins, flat, empty, out)
    in_parts(run, -(-len(X) // BLOCK), len(X) * weights.size)
    return out


def projection_contrasts(
    X: NDArray, columns: NDArray, weights: NDArray, low: NDArray, high: NDArray, per_unit: NDArray,
    n_bins: NDArray, terms: NDArray, empty: NDArray,
) -> NDArray[np.float64]:  # fmt: skip
    """Return Welch's t of the terms of the directions with a column against those without it, shape (n, d).

    The terms are those that :func:`projection_scores` sums; every column needs two directions on each side.
    """
    X, flat, out = np.ascontiguousarray(X), np.ascontiguousarray(terms).ravel(), np.empty(X.shape)
    within = np.bincount(columns.ravel(), minlength=X.shape[1]).astype(np.float64)
    run = partial(_projection_contrasts, X, columns, weights, low, high, per_unit, n_bins, flat, empty, within, out)
    in_parts(run, -(-len(X) // BLOCK), len(X) * weights.size)
    return out
