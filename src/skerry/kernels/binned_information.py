"""Compiled plug-in mutual information of binned columns, parallel over columns.

Columns come as the rows of a C-ordered float64 array ``Xt`` of shape (p, n); NaN marks a missing value and is
dropped pairwise. Every kernel returns p values in nats and depends on no other column, so the result is the same
on any number of threads. The number of equal-width bins follows L. Birgé and Y. Rozenholc, ESAIM: Probability
and Statistics 10, 2006.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from skerry.kernels.compiled import njit
from skerry.kernels.pairs import plogp
from skerry.kernels.threads import in_parts

__all__ = ["MAX_BINS", "bin_columns", "binned_information"]

MAX_BINS = 99


@njit(cache=True, nogil=True)
def _bin(v, out):
    """Write codes (float64, NaN kept) of equal-width bins, their number by Birge and Rozenholc's penalty."""
    n = 0
    low = np.inf
    high = -np.inf
    for i in range(v.size):
        if not np.isnan(v[i]):
            n += 1
            low = min(low, v[i])
            high = max(high, v[i])
    best = -np.inf
    chosen = 1
    if n > 0 and high > low:
        counts = np.zeros(MAX_BINS, dtype=np.int64)
        for bins in range(2, MAX_BINS + 1):
            counts[:] = 0
            for i in range(v.size):
                if not np.isnan(v[i]):
                    counts[min(int((v[i] - low) / (high - low) * bins), bins - 1)] += 1
            value = n * np.log(bins) - (bins - 1 + np.log(bins) ** 2.5)
            for b in range(bins):
                value += plogp(float(counts[b]))
            if value > best:
                best = value
                chosen = bins
    for i in range(v.size):
        if not np.isnan(v[i]):
            out[i] = 0.0
            if chosen > 1:
                out[i] = min(int((v[i] - low) / (high - low) * chosen), chosen - 1)


@njit(cache=True, nogil=True)
def _bin_rows(Xt, out, start, stop):
    for j in range(start, stop):
        _bin(Xt[j], out[j])


def bin_columns(Xt: NDArray) -> NDArray[np.float64]:
    """Bin each row of ``Xt``; same shape, float64 codes, NaN kept."""
    out = np.full(Xt.shape, np.nan)
    in_parts(partial(_bin_rows, Xt, out), len(Xt), Xt.size * MAX_BINS)
    return out


@njit(cache=True, nogil=True)
def _information(codes, y, n_classes, miller_madow, out, start, stop):
    for j in range(start, stop):
        table = np.zeros((MAX_BINS, n_classes))
        n = 0.0
        for i in range(y.size):
            if not (np.isnan(codes[j, i]) or np.isnan(y[i])):
                table[int(codes[j, i]), int(y[i])] += 1.0
                n += 1.0
        if n > 0.0:
            value = np.log(n)
            cells = 0
            for a in range(MAX_BINS):
                total = 0.0
                for b in range(n_classes):
                    value += plogp(table[a, b]) / n
                    total += table[a, b]
                    cells += table[a, b] > 0.0
                value -= plogp(total) / n
                cells -= total > 0.0
            for b in range(n_classes):
                total = table[:, b].sum()
                value -= plogp(total) / n
                cells -= total > 0.0
            if miller_madow:
                value -= (cells + 1) / (2.0 * n)
            out[j] = value


def binned_information(codes: NDArray, y: NDArray, n_classes: int, miller_madow: bool) -> NDArray[np.float64]:
    """Plug-in MI of each row of codes (< 99) with codes ``y``; optionally with Miller and Madow's term."""
    out = np.zeros(len(codes))
    run = partial(_information, codes, y, n_classes, miller_madow, out)
    in_parts(run, len(codes), 4 * codes.size + len(codes) * MAX_BINS * n_classes)
    return out
