"""Distinct rows of a table, and the rows of another table found again among them, by one hash table.

Rows are compared by value (-0.0 equals 0.0), so the answer is that of a sort; the table costs n d reads, one probe
per row and 8 to 16 bytes per row.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from skerry.kernels.compiled import njit
from skerry.kernels.threads import in_parts

__all__ = ["RowTable", "distinct_rows", "multiplicities"]


@njit(cache=True, nogil=True, inline="always")
def _mix(code):
    code ^= code >> np.uint64(32)
    code *= np.uint64(0x9E3779B97F4A7C15)
    code ^= code >> np.uint64(29)
    return code


@njit(cache=True, nogil=True)
def _hash(bits, out, start, stop):
    d = bits.shape[1]
    for i in range(start, stop):
        code = np.uint64(d)
        for j in range(d):
            code = _mix((code ^ bits[i, j]) * np.uint64(0xD6E8FEB86659FD93))
        out[i] = code


@njit(cache=True, nogil=True, inline="always")
def _same(A, a, B, b):
    for j in range(A.shape[1]):
        if A[a, j] != B[b, j]:
            return False
    return True


@njit(cache=True, nogil=True)
def _enter(X, codes, slots):
    """Number the distinct rows in order of appearance; ``slots`` (a power of two, -1) receives the first rows."""
    n = X.shape[0]
    mask = np.uint64(slots.size - 1)
    inverse = np.empty(n, dtype=np.int64)
    first = np.empty(n, dtype=np.int64)
    u = 0
    for i in range(n):
        at = codes[i] & mask
        while True:
            number = slots[at]
            if number < 0:
                slots[at] = u
                first[u] = i
                inverse[i] = u
                u += 1
                break
            if codes[first[number]] == codes[i] and _same(X, first[number], X, i):
                inverse[i] = number
                break
            at = (at + np.uint64(1)) & mask
    return first[:u].copy(), inverse


@njit(cache=True, nogil=True)
def _find(Q, codes, rows, row_codes, slots, out, start, stop):
    mask = np.uint64(slots.size - 1)
    for i in range(start, stop):
        at = codes[i] & mask
        found = np.int64(-1)
        while True:
            number = slots[at]
            if number < 0:
                break
            if row_codes[number] == codes[i] and _same(rows, number, Q, i):
                found = np.int64(number)
                break
            at = (at + np.uint64(1)) & mask
        out[i] = found


def _codes(X: NDArray[np.float64]) -> NDArray[np.uint64]:
    """Return one code per row of ``X`` (n, d); rows that share a code need not be equal."""
    out = np.empty(len(X), dtype=np.uint64)
    in_parts(partial(_hash, X.view(np.uint64), out), len(X), 4 * X.size)
    return out


def _plain(X: NDArray) -> NDArray[np.float64]:
    return np.ascontiguousarray(X, dtype=np.float64) + 0.0  # -0.0 and 0.0 are one value


class RowTable:
    """The distinct rows of a table, in order of first appearance.

    Parameters
    ----------
    X : ndarray of shape (n, d)

    Attributes
    ----------
    rows : ndarray of shape (u, d), float64
    counts : ndarray of shape (u,), int64
        How often each row occurs.
    inverse : ndarray of shape (n,), int64
        ``rows[inverse]`` equals ``X``.

    Examples
    --------
    >>> table = RowTable(np.array([[2.0], [1.0], [2.0]]))
    >>> table.rows.ravel().tolist(), table.find(np.array([[1.0], [3.0]])).tolist()
    ([2.0, 1.0], [1, -1])
    """

    def __init__(self, X: NDArray) -> None:
        X = _plain(X)
        codes = _codes(X)
        size = 1 << max(4, int(2 * X.shape[0] - 1).bit_length())  # at most half full
        self._slots = np.full(size, -1, dtype=np.int32 if X.shape[0] < 1 << 31 else np.int64)
        first, self.inverse = _enter(X, codes, self._slots)
        self._codes = codes[first]
        self.rows = X if first.size == X.shape[0] else X[first]
        self.counts = np.bincount(self.inverse, minlength=first.size).astype(np.int64)

    def find(self, Q: NDArray) -> NDArray[np.int64]:
        """Return for each row of ``Q`` (m, d) the number of the equal row in ``rows``, or -1."""
        Q = _plain(Q)
        out = np.empty(len(Q), dtype=np.int64)
        in_parts(partial(_find, Q, _codes(Q), self.rows, self._codes, self._slots, out), len(Q), 4 * Q.size)
        return out


def distinct_rows(X: NDArray) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the distinct rows of ``X`` in order of first appearance, their counts, and each row's number.

    Parameters
    ----------
    X : ndarray of shape (n, d)

    Returns
    -------
    rows : ndarray of shape (u, d), float64
    counts : ndarray of shape (u,), int64
    inverse : ndarray of shape (n,), int64
        ``rows[inverse]`` equals ``X``.

    Examples
    --------
    >>> rows, counts, inverse = distinct_rows(np.array([[2.0], [1.0], [2.0]]))
    >>> rows.ravel().tolist(), counts.tolist(), inverse.tolist()
    ([2.0, 1.0], [2, 1], [0, 1, 0])
    """
    table = RowTable(X)
    return table.rows, table.counts, table.inverse


def multiplicities(distances: NDArray, counts: NDArray, k: int) -> NDArray[np.int64]:
    """Return how often each distinct neighbour stands among the k nearest rows.

    Parameters
    ----------
    distances : ndarray of shape (m, c), float64, ascending
        A first distance of 0 is the query itself in the table: one copy of it is not a neighbour.
    counts : ndarray of shape (m, c), int64
        Copies of each distinct neighbour in the table.
    k : int

    Returns
    -------
    ndarray of shape (m, c), int64
        Rows sum to k, or to the number of rows there are.
    """
    counts = counts.copy()
    if counts.shape[1]:
        counts[:, 0] -= distances[:, 0] == 0.0
    before = np.cumsum(counts, axis=1) - counts
    return np.clip(k - before, 0, counts)
