"""8-bit weights times few whole-number inputs, exact: for processors whose own 8-bit products saturate.

A row of the weight is read once for all tokens. The loop is what compilers turn into pairs of 16-bit products added in
32 bits, so nothing saturates: 65,000 columns of 255 x 128 fit.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from skerry.kernels.compiled import njit

__all__ = ["WIDEST", "int8_dot"]

WIDEST = 2**31 // (255 * 128) - 1  # columns whose sum fits 32 bits
OPERATIONS_PER_THREAD = 1_000_000  # below, waking a thread takes longer than the work


@njit(cache=True, nogil=True)
def _dot(W, x, out):
    """Write ``x W^T`` (m, n) into ``out``; W (n, k) int8, x (m, k) int16."""
    n, k = W.shape
    for i in range(n):
        for t in range(x.shape[0]):
            total = np.int32(0)
            for j in range(k):
                total = np.int32(total + np.int32(np.int32(W[i, j]) * np.int32(x[t, j])))
            out[t, i] = total


def int8_dot(W: NDArray[np.int8], x: NDArray[np.int16], *, threads: int = 1) -> NDArray[np.int32]:
    """Return ``x W^T`` exactly.

    Parameters
    ----------
    W : int8 array of shape (out, in)
        At most :data:`WIDEST` columns.
    x : int16 array of shape (tokens, in)
        Of -255 .. 255.
    threads : int, default 1
        At most; the result does not depend on it.

    Returns
    -------
    int32 array of shape (tokens, out)

    Raises
    ------
    ValueError
        If the shapes do not fit, or a sum might not.

    Examples
    --------
    >>> int8_dot(np.array([[127, -128]], dtype=np.int8), np.array([[255, 255], [1, 0]], dtype=np.int16)).tolist()
    [[-255], [127]]
    """
    if W.shape[1] != x.shape[1] or W.shape[1] > WIDEST:
        raise ValueError(f"weights of shape {W.shape} and inputs of shape {x.shape} cannot be multiplied here")
    out = np.empty((len(x), len(W)), dtype=np.int32)
    threads = min(threads, W.size * len(x) // OPERATIONS_PER_THREAD)
    if threads < 2:
        _dot(W, x, out)
        return out
    cuts = np.linspace(0, len(W), threads + 1).astype(int)
    parts = [(W[a:b], x, out[:, a:b]) for a, b in zip(cuts[:-1], cuts[1:], strict=True)]
    waiting = [_pool(threads).submit(_dot, *part) for part in parts[1:]]
    _dot(*parts[0])
    for part in waiting:
        part.result()
    return out


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    # numba's own threads must not be called from two threads at once, as those of a server may
    return ThreadPoolExecutor(threads - 1, thread_name_prefix="int8-dot")
