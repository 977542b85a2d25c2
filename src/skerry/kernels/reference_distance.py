"""Distance to the k-th nearest of a small reference set, in blocks: BLAS for the products, numba for selection.

With m reference rows this costs n m d multiplications and n selections, whatever the shape of the data: a linear
stand-in for an exact neighbour search where k is a fair share of m. Rows are centred on the reference before the
expansion ``|a|^2 - 2ab + |b|^2``, which keeps its rounding below the distances that a large k selects.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

__all__ = ["kth_reference_distance"]

BLOCK = 2048


@njit(cache=True, parallel=True, nogil=True)
def _kth(squared, k, out):
    """Write the k-th smallest entry of each row (k from 1), by quickselect on a copy of the row."""
    for i in prange(squared.shape[0]):
        row = squared[i].copy()
        low, high = 0, row.size - 1
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
        out[i] = row[k - 1]


def kth_reference_distance(
    X: NDArray[np.float64], reference: NDArray[np.float64], k: int
) -> NDArray[np.float64]:
    """Return the Euclidean distance of each row of ``X`` (n, d) to its k-th nearest of ``reference`` (m, d).

    A row does not depend on the rest of ``X``: blocks are padded to one size, so that BLAS adds in one order.
    """
    centre = reference.mean(axis=0)
    R = np.ascontiguousarray(reference - centre)
    norms = np.einsum("ij,ij->i", R, R)
    out = np.empty(X.shape[0])
    block = np.zeros((min(BLOCK, max(X.shape[0], 64)), X.shape[1]))
    for start in range(0, X.shape[0], block.shape[0]):
        stop = min(X.shape[0], start + block.shape[0])
        block[: stop - start] = X[start:stop] - centre
        squared = block @ R.T
        squared *= -2.0
        squared += norms
        squared += np.einsum("ij,ij->i", block, block)[:, None]
        _kth(squared[: stop - start], k, out[start:stop])
    return np.sqrt(np.maximum(out, 0.0))
