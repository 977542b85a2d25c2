"""What every estimator of mutual information does first to a pair of columns: complete cases, robust scaling."""

from __future__ import annotations

import numpy as np

from skerry.kernels.compiled import njit

__all__ = ["complete", "plogp", "quantile", "scaled"]

TAIL = 10.0  # values beyond this many interquartile ranges are clipped: one spike must not eat the grid


@njit(cache=True, nogil=True)
def quantile(s, share):
    """Linear quantile of the sorted ``s``."""
    position = share * (s.size - 1)
    low = int(position)
    high = min(low + 1, s.size - 1)
    return s[low] + (position - low) * (s[high] - s[low])


@njit(cache=True, nogil=True)
def scaled(v):
    """Return (v scaled by median and IQR and clipped, spread for the bandwidth rule); spread 0 if constant."""
    s = np.sort(v)
    if s[0] == s[-1]:
        return np.zeros_like(v), 0.0
    middle = quantile(s, 0.5)
    iqr = quantile(s, 0.75) - quantile(s, 0.25)
    unit = iqr
    if unit <= 1e-12 * (s[-1] - s[0]):  # more than half the values are ties: fall back on the range
        unit = s[-1] - s[0]
        iqr = 0.0
    out = np.empty_like(v)
    mean = 0.0
    for i in range(v.size):
        z = (v[i] - middle) / unit
        out[i] = min(max(z, -TAIL), TAIL)
        mean += out[i]
    mean /= v.size
    var = 0.0
    for i in range(v.size):
        var += (out[i] - mean) ** 2
    spread = np.sqrt(var / max(1, v.size - 1))
    if iqr > 0.0:
        spread = min(spread, 1.0 / 1.349)
    return out, spread


@njit(cache=True, nogil=True)
def complete(x, y):
    """Return the values of both where neither is NaN."""
    n = 0
    for i in range(x.size):
        if not (np.isnan(x[i]) or np.isnan(y[i])):
            n += 1
    a = np.empty(n)
    b = np.empty(n)
    n = 0
    for i in range(x.size):
        if not (np.isnan(x[i]) or np.isnan(y[i])):
            a[n] = x[i]
            b[n] = y[i]
            n += 1
    return a, b


@njit(cache=True, nogil=True)
def plogp(v):
    """Return v ln v, 0 at 0."""
    return v * np.log(v) if v > 0.0 else 0.0
