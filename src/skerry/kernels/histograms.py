"""Equal-width histograms of every column, counted and looked up in one pass over the rows."""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from skerry.kernels.compiled import njit
from skerry.kernels.threads import threads_for

__all__ = ["column_range", "count_bins", "look_up", "look_up_terms"]

N_PARTS = 16  # a fixed number, so that memory and results do not depend on the threads


@njit(cache=True, parallel=True, nogil=True)
def _column_range(X):
    n, d = X.shape
    lows, highs = np.full((N_PARTS, d), np.inf), np.full((N_PARTS, d), -np.inf)
    for part in prange(N_PARTS):
        low, high = lows[part], highs[part]
        for i in range(part * n // N_PARTS, (part + 1) * n // N_PARTS):
            for j in range(d):
                v = np.float64(X[i, j])
                low[j] = min(low[j], v)
                high[j] = max(high[j], v)
    low, high = lows[0].copy(), highs[0].copy()
    for part in range(1, N_PARTS):
        for j in range(d):
            low[j] = min(low[j], lows[part, j])
            high[j] = max(high[j], highs[part, j])
    return low, high


@njit(cache=True, parallel=True, nogil=True)
def _count_bins(X, low, per_unit, n_bins):
    n, d = X.shape
    counts = np.zeros((N_PARTS, d, n_bins.max()), dtype=np.int64)
    last = n_bins - 1.0
    for part in prange(N_PARTS):
        own = counts[part]
        for i in range(part * n // N_PARTS, (part + 1) * n // N_PARTS):
            for j in range(d):
                at = (np.float64(X[i, j]) - low[j]) * per_unit[j]
                own[np.uint64(j), np.uint64(min(max(at, 0.0), last[j]))] += 1  # unsigned: no test for negatives
    return counts.sum(axis=0)


@njit(cache=True, nogil=True, inline="always")
def _term(v, j, low, high, per_unit, n_bins, terms, empty):
    if v < low[j]:
        return empty[j] + np.log1p(min((low[j] - v) * per_unit[j], 1e300))
    if v > high[j]:
        return empty[j] + np.log1p(min((v - high[j]) * per_unit[j], 1e300))
    return terms[np.uint64(j), np.uint64(min((v - low[j]) * per_unit[j], n_bins[j] - 1.0))]


@njit(cache=True, parallel=True, nogil=True)
def _look_up(X, low, high, per_unit, n_bins, terms, empty):
    n, d = X.shape
    out = np.empty(n)
    for i in prange(n):
        total = 0.0
        for j in range(d):
            total += _term(np.float64(X[i, j]), j, low, high, per_unit, n_bins, terms, empty)
        out[i] = total
    return out


@njit(cache=True, parallel=True, nogil=True)
def _look_up_terms(X, low, high, per_unit, n_bins, terms, empty):
    n, d = X.shape
    out = np.empty((n, d))
    for i in prange(n):
        for j in range(d):
            out[i, j] = _term(np.float64(X[i, j]), j, low, high, per_unit, n_bins, terms, empty)
    return out


def column_range(X: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return minima and maxima of the columns of ``X`` (n, d), each of shape (d,)."""
    with threads_for(X.size):
        return _column_range(np.ascontiguousarray(X))


def count_bins(X: NDArray, low: NDArray, per_unit: NDArray, n_bins: NDArray) -> NDArray[np.int64]:
    """Return counts (d, max(n_bins)); a value of ``X`` (n, d) falls in bin ``(x - low) * per_unit``, clipped.

    ``low`` and ``per_unit`` are float64 of shape (d,), ``n_bins`` int64 of shape (d,).
    """
    with threads_for(2 * X.size):
        return _count_bins(np.ascontiguousarray(X), low, per_unit, n_bins)


def look_up(
    X: NDArray, low: NDArray, high: NDArray, per_unit: NDArray, n_bins: NDArray, terms: NDArray, empty: NDArray
) -> NDArray[np.float64]:
    """Return the sum over columns of the term of each value's bin, shape (n,).

    Outside [low, high] the term is ``empty + log(1 + distance in bins)``.
    """
    with threads_for(2 * X.size):
        return _look_up(np.ascontiguousarray(X), low, high, per_unit, n_bins, terms, empty)


def look_up_terms(
    X: NDArray, low: NDArray, high: NDArray, per_unit: NDArray, n_bins: NDArray, terms: NDArray, empty: NDArray
) -> NDArray[np.float64]:
    """Return the terms that :func:`look_up` sums, shape (n, d)."""
    with threads_for(2 * X.size):
        return _look_up_terms(np.ascontiguousarray(X), low, high, per_unit, n_bins, terms, empty)
