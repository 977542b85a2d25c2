"""Hyperspheres around sampled rows, each reaching to the nearest other row of its sample (INNE).

A block of rows lies transposed in the first-level cache, so that one ball is measured against many rows at once.
Radii come from the same loop as the distances to them: a centre lies exactly on the ball of its nearest neighbour.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
from numpy.typing import NDArray

from skerry.kernels.compiled import njit
from skerry.kernels.threads import in_parts

__all__ = ["attribute_isolation", "grow_balls", "isolation"]

BLOCK = 128  # rows measured at once


@njit(cache=True, nogil=True, fastmath={"contract"})
def _squares(columns, centre, out):
    """Write squared distances of the block ``columns`` (d, BLOCK) to ``centre`` (d,); sums run in column order."""
    d = centre.size
    out[:] = 0.0
    whole = d - d % 4
    for j in range(0, whole, 4):
        c0, c1, c2, c3 = centre[j], centre[j + 1], centre[j + 2], centre[j + 3]
        l0, l1, l2, l3 = columns[j], columns[j + 1], columns[j + 2], columns[j + 3]
        for t in range(BLOCK):
            g0, g1, g2, g3 = l0[t] - c0, l1[t] - c1, l2[t] - c2, l3[t] - c3
            total = out[t] + g0 * g0
            total += g1 * g1
            total += g2 * g2
            out[t] = total + g3 * g3
    for j in range(whole, d):
        c, line = centre[j], columns[j]
        for t in range(BLOCK):
            gap = line[t] - c
            out[t] += gap * gap


@njit(cache=True, nogil=True)
def _transpose(X, start, size, columns):
    for i in range(size):
        for j in range(X.shape[1]):
            columns[j, i] = X[start + i, j]


@njit(cache=True, nogil=True)
def _grow_balls(centres, radii, terms, first, last):
    m, d = centres.shape[1:]
    for s in range(first, last):
        columns, squares = np.zeros((d, BLOCK)), np.empty(BLOCK)
        nearest = np.zeros(m, dtype=np.int64)
        best = np.full(m, np.inf)
        for start in range(0, m, BLOCK):
            size = min(BLOCK, m - start)
            _transpose(centres[s], start, size, columns)
            for a in range(m):
                _squares(columns, centres[s, a], squares)
                for b in range(size):
                    if start + b != a and squares[b] < best[a]:
                        best[a] = squares[b]
                        nearest[a] = start + b
        for a in range(m):
            radii[s, a] = math.sqrt(best[a]) if m > 1 else 0.0
        for a in range(m):
            if 0.0 < radii[s, a] < math.inf:
                terms[s, a] = 1.0 - radii[s, nearest[a]] / radii[s, a]


@njit(cache=True, nogil=True)
def _largest_square(radius):
    """Return the largest number whose root is not above ``radius``."""
    square = radius * radius
    if square == math.inf:
        return square
    while math.sqrt(square) > radius:
        square = np.nextafter(square, 0.0)
    while True:
        above = np.nextafter(square, np.inf)
        if math.sqrt(above) > radius:
            return square
        square = above


@njit(cache=True, nogil=True)
def _largest_squares(radii):
    found = np.empty(radii.size)
    for a in range(radii.size):
        found[a] = _largest_square(radii[a])
    return found


def _by_size(radii):
    """Return each sample's balls, largest first (of equals the last), and their squared radii."""
    order = np.argsort(radii, axis=1, kind="stable")[:, ::-1]
    largest_first = np.take_along_axis(radii, order, axis=1)
    return np.ascontiguousarray(order), _largest_squares(largest_first.ravel()).reshape(radii.shape)


@njit(cache=True, nogil=True)
def _isolation(X, centres, terms, order, reach, out, first, last):
    n, d = X.shape
    t, m = order.shape
    for block in range(first, last):
        start = block * BLOCK
        size = min(BLOCK, n - start)
        columns, squares = np.zeros((d, BLOCK)), np.empty(BLOCK)
        value, total = np.empty(BLOCK), np.zeros(BLOCK)
        _transpose(X, start, size, columns)
        for s in range(t):
            value[:] = 1.0
            for a in range(m):  # smaller balls overwrite larger ones
                ball = order[s, a]
                _squares(columns, centres[s, ball], squares)
                term, limit = terms[s, ball], reach[s, a]
                for i in range(BLOCK):
                    value[i] = term if squares[i] <= limit else value[i]
            for i in range(BLOCK):
                total[i] += value[i]
        for i in range(size):
            out[start + i] = total[i] / t


@njit(cache=True, nogil=True)
def _attribute_isolation(X, centres, terms, order, reach, out, first, last):
    n, d = X.shape
    t, m = order.shape
    for block in range(first, last):
        start = block * BLOCK
        size = min(BLOCK, n - start)
        columns, squares = np.zeros((d, BLOCK)), np.empty(BLOCK)
        least, parts = np.empty(BLOCK), np.empty(d)
        nearest, chosen = np.empty(BLOCK, dtype=np.int64), np.empty(BLOCK, dtype=np.int64)
        _transpose(X, start, size, columns)
        for s in range(t):
            least[:] = np.inf
            nearest[:] = 0
            chosen[:] = -1
            for a in range(m):
                ball = order[s, a]
                _squares(columns, centres[s, ball], squares)
                for i in range(size):
                    if squares[i] < least[i] or (squares[i] == least[i] and ball < nearest[i]):
                        least[i] = squares[i]
                        nearest[i] = ball
                    if squares[i] <= reach[s, a]:
                        chosen[i] = ball
            for i in range(size):
                value = (1.0 if chosen[i] < 0 else terms[s, chosen[i]]) / t
                at = nearest[i] if chosen[i] < 0 else chosen[i]
                largest, total = 0.0, 0.0
                for j in range(d):
                    largest = max(largest, abs(columns[j, i] - centres[s, at, j]))
                for j in range(d):
                    parts[j] = ((columns[j, i] - centres[s, at, j]) / largest) ** 2 if largest > 0.0 else 1.0
                    total += parts[j]
                for j in range(d):
                    out[start + i, j] += value * parts[j] / total


def _plain(X: NDArray) -> NDArray[np.float64]:
    return np.ascontiguousarray(X, dtype=np.float64)


def grow_balls(centres: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return radii and terms, each of shape (t, m), of ``centres`` (t, m, d).

    A radius is the distance to the nearest other centre of the same sample; a term is
    ``1 - radius of that centre / own radius``. A ball without reach (copies, a sample of one row) or with one that
    overflows has term 0.
    """
    radii, terms = np.zeros(centres.shape[:2]), np.zeros(centres.shape[:2])
    in_parts(partial(_grow_balls, _plain(centres), radii, terms), len(centres), centres.size * centres.shape[1])
    return radii, terms


def isolation(X: NDArray, centres: NDArray, radii: NDArray, terms: NDArray) -> NDArray[np.float64]:
    """Return the mean isolation of the rows of ``X`` (n, d) over the samples, shape (n,)."""
    out = np.empty(len(X))
    run = partial(_isolation, _plain(X), _plain(centres), terms, *_by_size(radii), out)
    in_parts(run, -(-len(X) // BLOCK), len(X) * centres.size / 4)  # four squares a step
    return out


def attribute_isolation(X: NDArray, centres: NDArray, radii: NDArray, terms: NDArray) -> NDArray[np.float64]:
    """Return the parts (n, d) of :func:`isolation`, split by squared difference to the ball's centre.

    A row that no ball covers is compared with the nearest centre; a row on its centre is split evenly.
    """
    out = np.zeros(X.shape)
    run = partial(_attribute_isolation, _plain(X), _plain(centres), terms, *_by_size(radii), out)
    in_parts(run, -(-len(X) // BLOCK), len(X) * centres.size / 4)
    return out
