"""Exact k-means of numbers on a line, by dynamic programming over the sorted distinct values: O(k n log n)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from skerry.kernels.compiled import njit

__all__ = ["kmeans_1d"]


def kmeans_1d(values: NDArray, k: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the centres and boundaries of the best split of ``values`` into at most ``k`` clusters.

    Parameters
    ----------
    values : ndarray of any shape, finite
    k : int >= 1

    Returns
    -------
    centres : ndarray of shape (k',), ascending; k' < k where there are fewer distinct values
    boundaries : ndarray of shape (k' - 1,)
        Midpoints between neighbouring centres.

    Examples
    --------
    >>> kmeans_1d(np.array([0.0, 9.0, 0.5, 10.0, 5.0]), 3)
    (array([0.25, 5.  , 9.5 ]), array([2.625, 7.25 ]))
    """
    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    k = min(k, len(distinct))
    if k == 0:
        return np.empty(0), np.empty(0)
    middle = distinct[len(distinct) // 2]  # sums of squares about a near point lose no digits
    cuts = _cuts(distinct - middle, counts.astype(np.float64), k)
    edges = np.r_[0, cuts, len(distinct)]
    centres = np.array(
        [np.average(distinct[a:b], weights=counts[a:b]) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    )
    return centres, (centres[1:] + centres[:-1]) / 2


@njit(cache=True, nogil=True)
def _cuts(x, w, k):
    """Return the k - 1 places where the sorted values are cut."""
    n = len(x)
    s0, s1, s2 = np.zeros(n + 1), np.zeros(n + 1), np.zeros(n + 1)
    for i in range(n):
        s0[i + 1], s1[i + 1], s2[i + 1] = s0[i] + w[i], s1[i] + w[i] * x[i], s2[i] + w[i] * x[i] * x[i]
    best = np.empty((k, n + 1))
    source = np.zeros((k, n + 1), dtype=np.int64)
    for j in range(n + 1):
        best[0, j] = _cost(s0, s1, s2, 0, j)
    stack = np.empty((4 * 64 + 8, 4), dtype=np.int64)
    for layer in range(1, k):
        best[layer, :] = np.inf
        # the best cut moves right as the end moves right: divide the ends, conquer the cuts
        top = 0
        stack[0] = np.array([layer + 1, n, layer, n - 1])
        while top >= 0:
            lo, hi, left, right = stack[top]
            top -= 1
            if lo > hi:
                continue
            mid = (lo + hi) // 2
            least, at = np.inf, left
            for i in range(left, min(right, mid - 1) + 1):
                value = best[layer - 1, i] + _cost(s0, s1, s2, i, mid)
                if value < least:
                    least, at = value, i
            best[layer, mid], source[layer, mid] = least, at
            top += 1
            stack[top] = np.array([lo, mid - 1, left, at])
            top += 1
            stack[top] = np.array([mid + 1, hi, at, right])
    cuts = np.empty(k - 1, dtype=np.int64)
    end = n
    for layer in range(k - 1, 0, -1):
        end = source[layer, end]
        cuts[layer - 1] = end
    return cuts


@njit(cache=True, nogil=True, inline="always")
def _cost(s0, s1, s2, i, j):
    """Sum of squared distances to the mean of values i .. j - 1."""
    weight = s0[j] - s0[i]
    if weight <= 0.0:
        return 0.0
    total = s1[j] - s1[i]
    return max(s2[j] - s2[i] - total * total / weight, 0.0)
