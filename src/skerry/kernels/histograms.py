"""Equal-width histograms of every column, counted and looked up in one pass over the rows."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from skerry.kernels.compiled import njit
from skerry.kernels.threads import in_parts

__all__ = ["column_range", "count_bins", "look_up", "look_up_terms"]

N_PARTS = 16  # a fixed number, so that memory and results do not depend on the threads


@njit(cache=True, nogil=True)
def _column_range(X, lows, highs, start, stop):
    n, d = X.shape
    for part in range(start, stop):
        low, high = lows[part], highs[part]
        for i in range(part * n // N_PARTS, (part + 1) * n // N_PARTS):
            for j in range(d):
                v = np.float64(X[i, j])
                low[j] = min(low[j], v)
                high[j] = max(high[j], v)


@njit(cache=True, nogil=True)
def _count_bins(X, low, per_unit, last, counts, start, stop):
    n, d = X.shape
    for part in range(start, stop):
        own = counts[part]
        for i in range(part * n // N_PARTS, (part + 1) * n // N_PARTS):
            for j in range(d):
                at = (np.float64(X[i, j]) - low[j]) * per_unit[j]
                own[np.uint64(j), np.uint64(min(max(at, 0.0), last[j]))] += 1  # unsigned: no test for negatives


@njit(cache=True, nogil=True, inline="always")
def _term(v, j, low, high, per_unit, n_bins, terms, empty):
    if v < low[j]:
        return empty[j] + np.log1p(min((low[j] - v) * per_unit[j], 1e300))
    if v > high[j]:
        return empty[j] + np.log1p(min((v - high[j]) * per_unit[j], 1e300))
    return terms[np.uint64(j), np.uint64(min((v - low[j]) * per_unit[j], n_bins[j] - 1.0))]


@njit(cache=True, nogil=True)
def _look_up(X, low, high, per_unit, n_bins, terms, empty, out, start, stop):
    for i in range(start, stop):
        total = 0.0
        for j in range(X.shape[1]):
            total += _term(np.float64(X[i, j]), j, low, high, per_unit, n_bins, terms, empty)
        out[i] = total


@njit(cache=True, nogil=True)
def _look_up_terms(X, low, high, per_unit, n_bins, terms, empty, out, start, stop):
    for i in range(start, stop):
        for j in range(X.shape[1]):
            out[i, j] = _term(np.float64(X[i, j]), j, low, high, per_unit, n_bins, terms, empty)


def column_range(X: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return minima and maxima of the columns of ``X`` (n, d), each of shape (d,)."""
    lows, highs = np.full((N_PARTS, X.shape[1]), np.inf), np.full((N_PARTS, X.shape[1]), -np.inf)
    in_parts(partial(_column_range, np.ascontiguousarray(X), lows, highs), N_PARTS, X.size)
    return lows.min(axis=0), highs.max(axis=0)


def count_bins(X: NDArray, low: NDArray, per_unit: NDArray, n_bins: NDArray) -> NDArray[np.int64]:
    """Return counts (d, max(n_bins)); a value of ``X`` (n, d) falls in bin ``(x - low) * per_unit``, clipped.

    ``low`` and ``per_unit`` are float64 of shape (d,), ``n_bins`` int64 of shape (d,).
    """
    counts = np.zeros((N_PARTS, X.shape[1], n_bins.max()), dtype=np.int64)
    run = partial(_count_bins, np.ascontiguousarray(X), low, per_unit, n_bins - 1.0, counts)
    in_parts(run, N_PARTS, 2 * X.size)
    return counts.sum(axis=0)


def look_up(
    X: NDArray, low: NDArray, high: NDArray, per_unit: NDArray, n_bins: NDArray, terms: NDArray, empty: NDArray
) -> NDArray[np.float64]:
    """Return the sum over columns of the term of each value's bin, shape (n,).

    Outside [low, high] the term is ``empty + log(1 + distance in bins)``.
    """
    X, out = np.ascontiguousarray(X), np.empty(len(X))
    in_parts(partial(_look_up, X, low, high, per_unit, n_bins, terms, empty, out), len(X), 2 * X.size)
    return out


def look_up_terms(
    X: NDArray, low: NDArray, high: NDArray, per_unit: NDArray, n_bins: NDArray, terms: NDArray, empty: NDArray
) -> NDArray[np.float64]:
    """Return the terms that :func:`look_up` sums, shape (n, d)."""
    X, out = np.ascontiguousarray(X), np.empty(X.shape)
    in_parts(partial(_look_up_terms, X, low, high, per_unit, n_bins, terms, empty, out), len(X), 2 * X.size)
    return out
