"""The k-th smallest of a row, by quickselect: compiled, in place, the same on every machine."""

from __future__ import annotations

from skerry.kernels.compiled import njit

__all__ = ["kth_smallest"]


@njit(cache=True, nogil=True)
def kth_smallest(row, size, k):
    """Return the k-th smallest (k from 1) of the first ``size`` entries of ``row``, which are reordered.

    >>> import numpy as np
    >>> kth_smallest(np.array([5.0, 1.0, 3.0, 0.0]), 3, 2)
    3.0
    """
    low, high = 0, size - 1
    while low < high:
        pivot = row[(low + high) // 2]
        a, b = low, high
        while a <= b:
            while row[a] < pivot:
                a += 1
            while row[b] > pivot:
                b -= 1
            if a <= b:
                row[a], row[b] = row[b], row[a]
                a += 1
                b -= 1
        if k - 1 <= b:
            high = b
        elif k - 1 >= a:
            low = a
        else:
            break
    return row[k - 1]
