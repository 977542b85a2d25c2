"""Distance to the k-th nearest of a small reference set, by plain differences over a transposed reference.

With m reference rows this costs n m d multiplications and n selections, whatever the shape of the data: a linear
stand-in for an exact neighbour search where k is a fair share of m. The inner loop runs along the m references, so
it vectorises without reordering any sum, and no distance is the difference of two large numbers.

Of wide rows a product of matrices in single precision first says which references can be the k-th nearest, within the
bound of its rounding; only those few are measured. The answer is that of plain differences to the last bit, and the
library that multiplies may round as it likes.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from skerry.kernels.compiled import njit
from skerry.kernels.selection import kth_smallest
from skerry.kernels.threads import in_parts

__all__ = ["kth_reference_distance", "reference_column_squares"]

FEW = 8  # rows that are not worth a product
GROUP = 8  # distances of which the least stands for all
WIDE = 64  # columns from which the product pays
PRODUCT_ROWS = 1024  # rows of one product
UNIT, LEAST = 2.0**-24, 2.0**-126  # of single precision: its rounding, and below what it is 0 at worst


@njit(cache=True, nogil=True)
def _by_rank(values, size, k):
    """Return the k-th smallest of a few values by counting those under each: quadratic, but without a guess to miss."""
    for a in range(size):
        below, up_to = 0, 0
        for b in range(size):
            below += values[b] < values[a]
            up_to += values[b] <= values[a]
        if below < k <= up_to:
            return values[a]
    return np.nan


@njit(cache=True, nogil=True)
def _kth(squared, k, least, kept):
    """Return the k-th smallest of ``squared``; ``least`` and ``kept`` are work space.

    The k-th smallest of the minima of groups is an upper bound of it, under which few others lie.
    """
    m, groups = squared.size, squared.size // GROUP
    if 2 * k > groups:
        return kth_smallest(squared, m, k)
    for q in range(groups):
        least[q] = squared[q]
    for t in range(1, GROUP):
        for q in range(groups):
            v = squared[t * groups + q]
            least[q] = v if v < least[q] else least[q]
    bound = _by_rank(least, groups, k)
    found = 0
    for r in range(m):
        kept[found] = squared[r]
        found += np.int64(squared[r] <= bound)
    return _by_rank(kept, found, k)


@njit(cache=True, nogil=True)
def _squares(X, i, transposed, out):
    """Write the squared distances of row ``i`` of ``X`` to the references."""
    d, m = transposed.shape
    whole = d - d % 4
    out[:] = 0.0
    for j in range(0, whole, 4):
        x0, x1, x2, x3 = X[i, j], X[i, j + 1], X[i, j + 2], X[i, j + 3]
        c0, c1, c2, c3 = transposed[j], transposed[j + 1], transposed[j + 2], transposed[j + 3]
        for r in range(m):
            g0, g1, g2, g3 = x0 - c0[r], x1 - c1[r], x2 - c2[r], x3 - c3[r]
            total = out[r] + g0 * g0
            total += g1 * g1
            total += g2 * g2
            out[r] = total + g3 * g3
    for j in range(whole, d):
        x, column = X[i, j], transposed[j]
        for r in range(m):
            gap = x - column[r]
            out[r] += gap * gap


@njit(cache=True, nogil=True)
def _kth_of_rows(X, transposed, k, out, start, stop):
    m = transposed.shape[1]
    squared, least, kept = np.empty(m), np.empty(m), np.empty(m + 1)
    for i in range(start, stop):
        _squares(X, i, transposed, squared)
        out[i] = np.sqrt(_kth(squared, k, least, kept))


@njit(cache=True, nogil=True)
def _refined(X, products, reference, transposed, own, k, out, start, stop):
    d, m = transposed.shape
    squared, copy, least, kept = np.empty(m), np.empty(m), np.empty(m), np.empty(m + 1)
    largest = np.sqrt(own.max())
    slack = 2.0 * UNIT * (d + 4)  # rounding of both sides and of a sum of d products in any order
    for i in range(start, stop):
        size, total = 0.0, 0.0
        for j in range(d):
            size += X[i, j] * X[i, j]
        for r in range(m):
            squared[r] = size + own[r] - 2.0 * products[i, r]
            total += squared[r]
        near = m
        if np.isfinite(total):
            for r in range(m):
                copy[r] = squared[r]
            # order statistics move by no more than their values do
            norm = np.sqrt(size)
            reach = 2.0 * (slack * norm * largest + 1e-12 * (size + largest * largest))
            reach += 4.0 * LEAST * (np.sqrt(d) * (norm + largest) + d)
            about = _kth(copy, k, least, kept)
            near, below = 0, 0
            for r in range(m):
                below += squared[r] < about - reach
                kept[near] = r
                near += np.int64(abs(squared[r] - about) <= reach)
        if 4 * near > m:  # too large for single precision, or all alike
            _squares(X, i, transposed, squared)
            out[i] = np.sqrt(_kth(squared, k, least, kept))
            continue
        for q in range(near):
            row, copy[q] = reference[int(kept[q])], 0.0
            for j in range(d):
                gap = X[i, j] - row[j]
                copy[q] += gap * gap
        out[i] = np.sqrt(_by_rank(copy, near, k - below))


def _by_products(X, reference, transposed, k):
    out = np.empty(len(X))
    reference = np.ascontiguousarray(reference)
    with np.errstate(over="ignore", invalid="ignore"):
        single, own = transposed.astype(np.float32), np.einsum("ij,ij->i", reference, reference)
        for start in range(0, len(X), PRODUCT_ROWS):
            rows = X[start : start + PRODUCT_ROWS]
            products = rows.astype(np.float32) @ single
            part = out[start : start + PRODUCT_ROWS]
            refine = partial(_refined, rows, products, reference, transposed, own, k, part)
            in_parts(refine, len(rows), rows.size + 4 * products.size)
    return out


@njit(cache=True, nogil=True)
def _column_squares(X, reference, transposed, k, out, start, stop):
    m, d = reference.shape
    squared, copy, least, kept = np.empty(m), np.empty(m), np.empty(m), np.empty(m + 1)
    for i in range(start, stop):
        _squares(X, i, transposed, squared)
        for r in range(m):  # an assignment of slices takes numba seconds to compile: it can fail in words
            copy[r] = squared[r]
        bound = _kth(copy, k, least, kept)
        ties = k  # of those exactly at the bound, how many still count
        for r in range(m):
            ties -= squared[r] < bound
        for r in range(m):
            near = squared[r] < bound
            if squared[r] == bound and ties > 0:
                near = True
                ties -= 1
            if near:
                for j in range(d):
                    gap = X[i, j] - reference[r, j]
                    out[i, j] += gap * gap
        for j in range(d):
            out[i, j] /= k


def kth_reference_distance(X: NDArray[np.float64], reference: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Return the Euclidean distance of each row of ``X`` (n, d) to its k-th nearest of ``reference`` (m, d).

    A reference in Fortran's order is not copied, which counts where rows come one by one.

    >>> kth_reference_distance(np.array([[0.0]]), np.array([[3.0], [1.0], [2.0]]), 2)
    array([2.])
    """
    X, transposed = np.ascontiguousarray(X), np.ascontiguousarray(reference.T)
    if X.shape[1] >= WIDE and len(X) > FEW:
        return _by_products(X, reference, transposed, k)
    out = np.empty(len(X))
    in_parts(partial(_kth_of_rows, X, transposed, k, out), len(X), X.size * len(reference) / 4)  # four squares a step
    return out


def reference_column_squares(X: NDArray[np.float64], reference: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Return the mean squared difference (n, d) of each row to its k nearest references, column by column.

    Of references equally far the first count.

    >>> reference_column_squares(np.array([[0.0, 0.0]]), np.array([[3.0, 0.0], [1.0, 2.0], [9.0, 9.0]]), 2)
    array([[5., 2.]])
    """
    rows, out = np.ascontiguousarray(reference), np.zeros(X.shape)
    run = partial(_column_squares, np.ascontiguousarray(X), rows, np.ascontiguousarray(rows.T), k, out)
    in_parts(run, len(X), X.size * len(reference) / 4)
    return out
