"""Matrix profile: for each window of a series, the correlation with the window most like it.

Yeh et al., "Matrix profile I", ICDM 2016; the recurrence along diagonals is that of Zimmerman et al., "Matrix
profile XIV (SCAMP)", SoCC 2019, equations for cov(i, j) from cov(i - 1, j - 1). Diagonals are walked side by side, a
block at a time, so that the arithmetic runs along contiguous columns; the recurrence starts afresh every 2,048 rows,
so that rounding (of one huge value, say) does not travel.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from skerry.kernels.compiled import njit
from skerry.kernels.threads import in_parts

__all__ = ["join_profile", "self_profile", "window_moments"]

LANES = 256  # diagonals walked side by side
ROWS = 2_048  # rows between two fresh starts
PARTS = 16  # independent results that are joined at the end, whatever the number of threads
FLAT = 1e-7  # a window whose deviation is below this share of its largest value is constant up to rounding


def window_moments(x: NDArray[np.float64], window: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean of each window and 1 / (root of its sum of squared deviations), 0 for a constant one.

    >>> mean, inverse = window_moments(np.array([0.0, 2.0, 2.0, 2.0]), 2)
    >>> mean, inverse
    (array([1., 2., 2.]), array([0.70710678, 0.        , 0.        ]))
    """
    return _moments(np.ascontiguousarray(x, dtype=np.float64), window)


@njit(cache=True, nogil=True)
def _moments(x, window):
    n = x.size - window + 1
    mean, inverse = np.empty(n), np.zeros(n)
    for i in range(n):
        total = 0.0
        for t in range(window):
            total += x[i + t]
        m = total / window
        squares = 0.0
        reach = 0.0
        for t in range(window):
            d = x[i + t] - m
            squares += d * d
            reach = max(reach, abs(x[i + t]))
        mean[i] = m
        if squares > window * (FLAT * reach) ** 2 and squares > 0.0:
            inverse[i] = 1.0 / np.sqrt(squares)
    return mean, inverse


@njit(cache=True, nogil=True)
def _steps(x, mean, window):
    """Return the two terms by which the covariance of a pair of windows changes as both move on by one."""
    n = mean.size
    df, dg = np.zeros(n), np.zeros(n)
    for i in range(1, n):
        df[i] = (x[i + window - 1] - x[i - 1]) / 2.0
        dg[i] = (x[i + window - 1] - mean[i]) + (x[i - 1] - mean[i - 1])
    return df, dg


@njit(cache=True, nogil=True, fastmath={"contract", "nsz"})
def _walk(a, ma, va, fa, ga, b, mb, vb, fb, gb, window, k, lanes, columns, column_at, rows, row_at, update):
    """Walk ``lanes`` diagonals from k on; update & 1: the best of the columns, update & 2: of the rows."""
    na, nb = va.size, vb.size
    covariance, correlation = np.empty(lanes), np.empty(lanes)
    last = min(na, nb - k)
    for i in range(last):
        live = min(lanes, nb - k - i)
        base = i + k
        c, r = covariance[:live], correlation[:live]
        v, f, g = vb[base : base + live], fb[base : base + live], gb[base : base + live]
        if i % ROWS == 0:
            c[:] = 0.0
            for t in range(window):
                d = a[i + t] - ma[i]
                part = b[base + t : base + t + live]
                for lane in range(live):
                    c[lane] += d * part[lane]
        else:
            di, gi = fa[i], ga[i]
            for lane in range(live):
                c[lane] += di * g[lane] + f[lane] * gi
        scale = va[i]
        for lane in range(live):
            r[lane] = c[lane] * scale * v[lane]
        if update & 1:
            best, at = columns[base : base + live], column_at[base : base + live]
            for lane in range(live):
                better = r[lane] > best[lane]
                best[lane] = r[lane] if better else best[lane]
                at[lane] = i if better else at[lane]
        if update & 2:
            top = rows[i]
            found = False
            for lane in range(live):
                found |= r[lane] > top
            if found:
                for lane in range(live):
                    if r[lane] > rows[i]:
                        rows[i] = r[lane]
                        row_at[i] = base + lane


@njit(cache=True, nogil=True)
def _all(a, ma, va, fa, ga, b, mb, vb, fb, gb, window, first, columns, column_at, rows, row_at, update, begin, stop):
    diagonals = vb.size - first
    blocks = (diagonals + LANES - 1) // LANES
    for part in range(begin, stop):
        for block in range(part, blocks, PARTS):
            k = first + block * LANES
            _walk(
                a, ma, va, fa, ga, b, mb, vb, fb, gb, window, k, min(LANES, vb.size - k),
                columns[part], column_at[part], rows[part], row_at[part], update,
            )  # fmt: skip


def _joined(best: NDArray, at: NDArray) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    winner = best.argmax(axis=0)
    columns = np.arange(best.shape[1])
    return np.minimum(best[winner, columns], 1.0), at[winner, columns]


def self_profile(x: NDArray[np.float64], window: int, exclude: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the best correlation of each window with another of the series at least ``exclude`` + 1 steps away.

    Parameters
    ----------
    x : ndarray of shape (n,), float64, finite
    window : int
    exclude : int

    Returns
    -------
    correlation : ndarray of shape (n - window + 1,), float64, in [0, 1]
        0 where no window correlates positively. Constant windows correlate with nothing but each other (1).
    position : ndarray of int64
        Start of the most similar window, -1 where there is none.

    >>> self_profile(np.array([0.0, 1.0, 0.0, 5.0, 0.0, 2.0, 0.0]), 3, 1)[1]
    array([2, 3, 0, 1, 2])
    """
    x = np.ascontiguousarray(x, dtype=np.float64)
    mean, inverse = window_moments(x, window)
    n = len(mean)
    best, at = np.zeros((PARTS, n)), np.full((PARTS, n), -1, dtype=np.int64)
    if n > exclude + 1:
        side = (x, mean, inverse, *_steps(x, mean, window))
        in_parts(partial(_all, *side, *side, window, exclude + 1, best, at, best, at, 3), PARTS, n * n / 8)
    correlation, position = _joined(best, at)
    _match_constant(correlation, position, inverse, inverse, exclude)
    return correlation, position


def join_profile(
    x: NDArray[np.float64], reference: NDArray[np.float64], window: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the best correlation of each window of ``x`` with a window of ``reference``; else as above."""
    x, reference = (np.ascontiguousarray(v, dtype=np.float64) for v in (x, reference))
    (mx, vx), (mr, vr) = window_moments(x, window), window_moments(reference, window)
    best, at = np.zeros((PARTS, len(mx))), np.full((PARTS, len(mx)), -1, dtype=np.int64)
    none, nowhere = np.zeros((PARTS, 1)), np.zeros((PARTS, 1), dtype=np.int64)
    mine, other = (x, mx, vx, *_steps(x, mx, window)), (reference, mr, vr, *_steps(reference, mr, window))
    work = len(mx) * len(mr) / 4
    in_parts(partial(_all, *other, *mine, window, 0, best, at, none, nowhere, 1), PARTS, work)
    if len(mr) > 1:
        in_parts(partial(_all, *mine, *other, window, 1, none, nowhere, best, at, 2), PARTS, work)
    correlation, position = _joined(best, at)
    _match_constant(correlation, position, vx, vr, -1)
    return correlation, position


def _match_constant(correlation: NDArray, position: NDArray, mine: NDArray, other: NDArray, exclude: int) -> None:
    """Let each constant window match the first or the last constant one of ``other`` that is far enough."""
    constant, there = np.flatnonzero(mine == 0.0), np.flatnonzero(other == 0.0)
    if not len(constant) or not len(there):
        return
    for match in (there[-1], there[0]):
        far = constant[np.abs(constant - match) > exclude]
        correlation[far], position[far] = 1.0, match
