"""Equal-width histograms of every column, counted and looked up in one pass over the rows."""

from __future__ import annotations

import numpy as np
from numba import prange

from skerry.kernels.compiled import njit

__all__ = ["column_range", "count_bins", "look_up", "look_up_terms"]

N_PARTS = 16  # a fixed number, so that memory and results do not depend on the threads


@njit(cache=True, parallel=True, nogil=True)
def column_range(X):
    """Return (minima, maxima) of the columns of ``X`` (n, d), each (d,) float64."""
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
def count_bins(X, low, per_unit, n_bins):
    """Return counts (d, max(n_bins)) int64; a value falls in bin ``(x - low) * per_unit``, clipped.

    ``low``, ``per_unit`` float64 (d,), ``n_bins`` int64 (d,).
    """
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
def look_up(X, low, high, per_unit, n_bins, terms, empty):
    """Return the sum over columns of the term of each value's bin, (n,) float64.

    Outside [low, high] the term is ``empty + log(1 + distance in bins)``.
    """
    n, d = X.shape
    out = np.empty(n)
    for i in prange(n):
        total = 0.0
        for j in range(d):
            total += _term(np.float64(X[i, j]), j, low, high, per_unit, n_bins, terms, empty)
        out[i] = total
    return out


@njit(cache=True, parallel=True, nogil=True)
def look_up_terms(X, low, high, per_unit, n_bins, terms, empty):
    """Return the terms that :func:`look_up` sums, (n, d) float64."""
    n, d = X.shape
    out = np.empty((n, d))
    for i in prange(n):
        for j in range(d):
            out[i, j] = _term(np.float64(X[i, j]), j, low, high, per_unit, n_bins, terms, empty)
    return out
