"""Distance to the k-th nearest of a small reference set, by plain differences over a transposed reference.

With m reference rows this costs n m d multiplications and n selections, whatever the shape of the data: a linear
stand-in for an exact neighbour search where k is a fair share of m. The inner loop runs along the m references, so
it vectorises without reordering any sum, and no distance is the difference of two large numbers.
"""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from skerry.kernels.compiled import njit
from skerry.kernels.selection import kth_smallest
from skerry.kernels.threads import threads_for

__all__ = ["kth_reference_distance"]


@njit(cache=True, parallel=True, nogil=True)
def _kth_distance(X, transposed, k):
    n, d = X.shape
    m = transposed.shape[1]
    out = np.empty(n)
    for i in prange(n):
        squared = np.zeros(m)
        for j in range(d):
            x = X[i, j]
            column = transposed[j]
            for r in range(m):
                difference = x - column[r]
                squared[r] += difference * difference
        out[i] = np.sqrt(kth_smallest(squared, m, k))
    return out


def kth_reference_distance(X: NDArray[np.float64], reference: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Return the Euclidean distance of each row of ``X`` (n, d) to its k-th nearest of ``reference`` (m, d).

    >>> kth_reference_distance(np.array([[0.0]]), np.array([[3.0], [1.0], [2.0]]), 2)
    array([2.])
    """
    with threads_for(X.size * len(reference) / 4):  # four squares a step
        return _kth_distance(np.ascontiguousarray(X), np.ascontiguousarray(reference.T), k)
