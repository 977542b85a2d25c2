"""Sparse projections of rows: each direction names its few columns and their weights."""

from __future__ import annotations

import numpy as np
from numba import njit, prange

__all__ = ["project"]


@njit(cache=True, parallel=True, nogil=True)
def project(X, columns, weights):
    """Return (n, k) float64: ``sum_j weights[p, j] * X[i, columns[p, j]]``.

    ``X`` float64 (n, d), ``columns`` int64 and ``weights`` float64 (k, m). A row's sums are added in one order,
    so they do not depend on the rows beside it.
    """
    n = X.shape[0]
    k, m = columns.shape
    out = np.empty((n, k))
    for i in prange(n):
        for p in range(k):
            total = 0.0
            for j in range(m):
                total += weights[p, j] * X[i, columns[p, j]]
            out[i, p] = total
    return out
