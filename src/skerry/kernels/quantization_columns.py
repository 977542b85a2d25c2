"""Column loops of weight solvers: rounding with error feedback (GPTQ) and coordinate descent (QuantEase), compiled.

A layer's rows are independent, so they run in parallel; within a row the columns of one block are settled one after the
other, each change spread at once over the rest of the block. What lies outside the block is brought up to date by one
matrix product (the caller's) or, where few weights changed, by :func:`spread_changes`. No sum depends on the threads.

Grids are float32 arrays ``scale`` and ``zero``: the weight (i, j) uses entry ``[i // rows, group[j]]`` and stands for
``(code - zero) * scale``, rounded to float32 as the stored weight will be.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from skerry.kernels.compiled import njit

__all__ = [
    "coordinate_block",
    "descent_error",
    "feedback_block",
    "fresh_column_block",
    "fresh_group_block",
    "grid_level",
    "min_max_grid",
    "spread_changes",
    "stored_scale",
]

SYMMETRIC, FULL_RANGE, ASYMMETRIC, UNEXTENDED = 0, 1, 2, 3  # rules of min_max_grid
_MAGIC = np.float32(12582912.0)  # 1.5 * 2^23: adding and taking it away rounds half to even
_LIMIT = np.float32(100000.0)  # beyond every code, within what the magic number rounds
_ZERO = np.float32(0.0)
_HALF = np.float32(0.5)
_ONE = np.float32(1.0)
_LEAST_SPAN = np.float32(1e-5)


@njit(cache=True, nogil=True, inline="always")
def _rint(x):
    return (min(max(x, -_LIMIT), _LIMIT) + _MAGIC) - _MAGIC


@njit(cache=True, nogil=True, inline="always")
def grid_level(u, s, z, low, high):
    """Return the code (float32) nearest to ``u``; ``s``, ``z``, ``low`` and ``high`` float32.

    >>> one = np.float32(1)
    >>> float(grid_level(2.5, one, np.float32(0), np.float32(-8), np.float32(7)))
    2.0
    """
    return min(max(_rint(np.float32(u) / s) + z, low), high)


@njit(cache=True, nogil=True)
def stored_scale(s, bits):
    """Return ``s`` (float32) rounded to ``bits`` of mantissa: 24 float32, 8 bfloat16, 11 float16.

    >>> float(stored_scale(np.float32(0.1), 8))
    0.10009765625
    """
    if bits >= 24 or s == _ZERO:
        return s
    share, exponent = math.frexp(float(s))
    shift = bits - exponent
    if bits == 11:
        shift = min(shift, 24)  # float16 has no finer step than 2^-24
    return np.float32(math.ldexp(np.rint(math.ldexp(share, exponent + shift)), -shift))


@njit(cache=True, nogil=True)
def min_max_grid(least, most, rule, low, high, floor, bits):
    """Return scale and zero point (float32) of a range, by the rule of ``AffineGrid.fit`` or AdaDim's published one.

    ``low`` and ``high`` are the extreme codes, ``floor`` the least scale, ``bits`` those of the stored scale.
    """
    if rule == UNEXTENDED:
        s = stored_scale(max(most - least, _LEAST_SPAN) / (high - low), bits)
        return s, low + min(max(-_rint(least / s), _ZERO), high - low)
    least, most = min(least, _ZERO), max(most, _ZERO)
    if rule == ASYMMETRIC:
        s = stored_scale(max((most - least) / (high - low), floor), bits)
        return s, min(max(low - _rint(least / s), low), high)
    top = max(-least, most)
    return stored_scale(max(top / ((high - low) * _HALF if rule == FULL_RANGE else high), floor), bits), _ZERO


@njit(cache=True, nogil=True, inline="always")
def _settle(target, weight, error, codes, feedback, i, j, start, s, z, low, high):
    """Round the weight (i, j) of a block, note its error and hand it on to the columns after it."""
    c = grid_level(target[i, j], s, z, low, high)
    e = weight[i, start + j] - np.float64((c - z) * s)
    codes[i, start + j] = np.int8(c)
    error[i, start + j] = e
    line, row = target[i], feedback[j]
    for k in range(j + 1, target.shape[1]):
        line[k] += e * row[k]


@njit(cache=True, parallel=True, nogil=True)
def feedback_block(target, weight, error, codes, feedback, scale, zero, rows, group, start, low, high):
    """Round one block of columns, each with the errors of those before it fed forward (GPTQ), on a given grid.

    Parameters
    ----------
    target : float64 ndarray of shape (q, b)
        Weights of the block plus the feedback of earlier blocks; overwritten.
    weight : float64 ndarray of shape (q, p)
    error : float64 ndarray of shape (q, p)
        Gets ``weight - value`` in the block.
    codes : int8 ndarray of shape (q, p)
        Gets the codes of the block.
    feedback : float64 ndarray of shape (b, b)
        Unit upper triangular: entry (j, k) is the share of column j's error that column k takes.
    scale, zero : float32 ndarray
    rows : int
    group : int64 ndarray of shape (p,)
    start : int
        First column of the block.
    low, high : float32
        Extreme codes.
    """
    for i in prange(target.shape[0]):
        r = i // rows
        for j in range(target.shape[1]):
            g = group[start + j]
            _settle(target, weight, error, codes, feedback, i, j, start, scale[r, g], zero[r, g], low, high)


@njit(cache=True, parallel=True, nogil=True)
def fresh_column_block(
    target, weight, error, codes, feedback, scale, zero, rows, start, rule, low, high, floor, bits
):  # fmt: skip
    """As :func:`feedback_block`, with a new grid for every ``rows`` weights of a column when the column is reached.

    ``scale`` and ``zero`` (q // rows, p) get the grids.
    """
    for t in prange(target.shape[0] // rows):
        for j in range(target.shape[1]):
            least = most = np.float32(target[t * rows, j])
            for i in range(t * rows + 1, (t + 1) * rows):
                u = np.float32(target[i, j])
                least, most = min(least, u), max(most, u)
            s, z = min_max_grid(least, most, rule, low, high, floor, bits)
            scale[t, start + j], zero[t, start + j] = s, z
            for i in range(t * rows, (t + 1) * rows):
                _settle(target, weight, error, codes, feedback, i, j, start, s, z, low, high)


@njit(cache=True, parallel=True, nogil=True)
def fresh_group_block(target, weight, error, codes, feedback, scale, zero, size, start, rule, low, high, floor, bits):
    """As :func:`feedback_block`, with a new grid for every ``size`` columns of a row when the first is reached.

    ``size`` divides the block's width; ``scale`` and ``zero`` (q, p // size) get the grids.
    """
    for i in prange(target.shape[0]):
        s, z = _ONE, _ZERO
        for j in range(target.shape[1]):
            if j % size == 0:
                least = most = np.float32(target[i, j])
                for k in range(j + 1, j + size):
                    u = np.float32(target[i, k])
                    least, most = min(least, u), max(most, u)
                s, z = min_max_grid(least, most, rule, low, high, floor, bits)
                scale[i, (start + j) // size], zero[i, (start + j) // size] = s, z
            _settle(target, weight, error, codes, feedback, i, j, start, s, z, low, high)


@njit(cache=True, parallel=True, nogil=True)
def coordinate_block(
    residual, value, codes, coupling, scale, zero, rows, group, start, low, high, rounded, settled, active,
    changes, moved,
):  # fmt: skip
    """Bring one block of columns to the minimum of the layer's error, column by column (QuantEase).

    Parameters
    ----------
    residual : float64 ndarray of shape (q, p)
        ``(W - V) S`` with S the Gram matrix, column j divided by its diagonal entry; updated within the block.
    value : float64 ndarray of shape (q, p)
        V; updated.
    codes : int8 ndarray of shape (q, p)
        Updated where ``rounded``.
    coupling : float64 ndarray of shape (b, b)
        The block's own part of S, columns divided by the diagonal (which is 1, or 0 for a dead input).
    scale, zero, rows, group, start, low, high
        As in :func:`feedback_block`.
    rounded : bool
        Whether the new values must lie on the grid.
    settled : bool
        Whether V lies on it already: then a weight moves only if that lowers the error.
    active : bool ndarray of shape (q,)
        Rows to work on.
    changes : float64 ndarray of shape (q, b)
        Gets the change of every weight.
    moved : int64 ndarray of shape (q,)
        Counts of changed weights, added to.
    """
    b = coupling.shape[0]
    for i in prange(value.shape[0]):
        change = changes[i]
        change[:] = 0.0
        if not active[i]:
            continue
        r, line, count = i // rows, residual[i, start : start + b], 0
        for j in range(b):
            at, now = start + j, value[i, start + j]
            u = now + line[j]
            new = u
            if rounded:
                g = group[at]
                s, z = scale[r, g], zero[r, g]
                if settled and abs(line[j]) <= 0.5 * s:
                    continue  # no other value of the grid is nearer
                c = grid_level(u, s, z, low, high)
                new = np.float64((c - z) * s)
                if settled and (new - u) * (new - u) >= (now - u) * (now - u):
                    continue
                codes[i, at] = np.int8(c)
            d = new - now
            if d == 0.0:
                continue
            value[i, at] = new
            change[j] = d
            count += 1
            row = coupling[j]
            for k in range(b):
                line[k] -= d * row[k]
        moved[i] += count


@njit(cache=True, nogil=True, inline="always")
def _four_rows(line, coupling, at, d, first, last):
    a, b, c, e = coupling[at[0]], coupling[at[1]], coupling[at[2]], coupling[at[3]]
    for k in range(first, last):
        line[k] -= d[0] * a[k] + d[1] * b[k] + d[2] * c[k] + d[3] * e[k]


@njit(cache=True, parallel=True, nogil=True)
def spread_changes(residual, changes, coupling, start, stop):
    """Subtract ``changes @ coupling`` from the residual outside columns ``start`` .. ``stop``; cheap for few changes.

    ``residual`` (q, p), ``changes`` (q, b), ``coupling`` (b, p): rows of the normalised Gram matrix that belong to the
    changed columns.
    """
    p = residual.shape[1]
    for i in prange(residual.shape[0]):
        line = residual[i]
        at, d, n = np.zeros(4, dtype=np.int64), np.zeros(4), 0
        for j in range(changes.shape[1]):
            if changes[i, j] != 0.0:
                at[n], d[n] = j, changes[i, j]
                n += 1
                if n == 4:
                    _four_rows(line, coupling, at, d, 0, start)
                    _four_rows(line, coupling, at, d, stop, p)
                    n = 0
        if n:
            d[n:] = 0.0
            _four_rows(line, coupling, at, d, 0, start)
            _four_rows(line, coupling, at, d, stop, p)


@njit(cache=True, parallel=True, nogil=True)
def descent_error(target, value, residual, diagonal):
    """Return ``sum (target - value) * residual * diagonal``: the layer's error; all float64, (q, p) and (p,)."""
    rows = np.zeros(target.shape[0])
    for i in prange(target.shape[0]):
        total = 0.0
        for j in range(target.shape[1]):
            total += (target[i, j] - value[i, j]) * residual[i, j] * diagonal[j]
        rows[i] = total
    return rows.sum()
