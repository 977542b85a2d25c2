"""Error feedback with small groups whose scales are themselves quantized, and single weights kept apart (SpQR).

Rows run in parallel by the few that share a second-level grid; nothing depends on the threads.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from skerry.kernels.compiled import njit
from skerry.kernels.quantization_columns import stored_scale

__all__ = ["likely_outliers", "spqr_block"]

_ZERO = np.float32(0.0)
_BRAIN = 8  # bits of mantissa of bfloat16, in which second-level grids are stored


@njit(cache=True, nogil=True, inline="always")
def _nearest(u, s, z, low, high):
    """Return the code of ``u`` on a grid whose zero point need not be an integer; float32."""
    return min(max(np.rint(np.float32(u) / s + z), low), high)


@njit(cache=True, nogil=True)
def _real_grid(u, skip, low, high, floor):
    """Return scale and real zero point of the values not skipped; the range contains 0."""
    least = most = _ZERO
    for k in range(u.shape[0]):
        if not skip[k]:
            least, most = min(least, u[k]), max(most, u[k])
    s = max((most - least) / (high - low), floor)
    return s, low - least / s


@njit(cache=True, nogil=True)
def _squared(u, power, s, z, low, high, left_out):
    total = 0.0
    for k in range(u.shape[0]):
        if k != left_out:
            e = np.float64(u[k]) - np.float64((_nearest(u[k], s, z, low, high) - z) * s)
            total += e * e * power[k]
    return total


@njit(cache=True, nogil=True)
def likely_outliers(u, power, threshold, low, high, floor, skip, likely):
    """Mark in ``likely`` the values of a group whose absence lowers its weighted error by more than ``threshold``.

    Parameters
    ----------
    u : float32 ndarray of shape (g,)
    power : float64 ndarray of shape (g,)
        Weight of a squared error.
    threshold : float
    low, high : float32
        Extreme codes.
    floor : float32
        Least scale.
    skip : bool ndarray of shape (g,)
        Scratch, all False.
    likely : bool ndarray of shape (g,)
    """
    s, z = _real_grid(u, skip, low, high, floor)
    base = _squared(u, power, s, z, low, high, -1)
    least, most = np.argmin(u), np.argmax(u)
    for k in range(u.shape[0]):
        if k == least or k == most:  # only then does the range change
            skip[k] = True
            s1, z1 = _real_grid(u, skip, low, high, floor)
            skip[k] = False
            gain = base - _squared(u, power, s1, z1, low, high, k)
        else:
            e = np.float64(u[k]) - np.float64((_nearest(u[k], s, z, low, high) - z) * s)
            gain = e * e * power[k]
        likely[k] = gain > threshold


@njit(cache=True, nogil=True)
def _second_level(values, count, bits, codes):
    """Round ``values[:count]`` in place to a min-max grid of ``bits``; return its low end and step, exact in bfloat16.

    With 16 bits every value is rounded to bfloat16 on its own.
    """
    if bits == 16:
        for r in range(count):
            values[r] = stored_scale(values[r], _BRAIN)
        return _ZERO, _ZERO
    least, most = values[0], values[0]
    for r in range(1, count):
        least, most = min(least, values[r]), max(most, values[r])
    top = np.float32(2**bits - 1)
    start, step = stored_scale(least, _BRAIN), stored_scale((most - least) / top, _BRAIN)
    for r in range(count):
        c = _ZERO
        if step > _ZERO:
            c = min(max(np.rint((values[r] - start) / step), _ZERO), top)
        codes[r] = np.uint8(c)
        values[r] = start + c * step
    return start, step


@njit(cache=True, parallel=True, nogil=True)
def spqr_block(
    target, weight, error, codes, extra, feedback, power, threshold, size, rows, start, low, high, floor, bits,
    extra_bits, scale, scale_codes, scale_low, scale_step, zero, zero_codes, zero_low, zero_step,
):  # fmt: skip
    """Round one block of columns with error feedback, groups of ``size`` columns, and weights kept apart.

    Parameters
    ----------
    target, weight, error, codes, feedback, start, low, high
        As in :func:`~skerry.kernels.quantization_columns.feedback_block`.
    extra : float32 ndarray of shape (q, p)
        Gets what is added to the grid's value where a weight is kept; else 0.
    power : float64 ndarray of shape (p,)
        ``1 / U_jj^2`` of the columns.
    threshold : float
        Weighted squared error above which a weight is kept.
    size : int
        Columns of a group; divides the block's width, or is the width of the whole weight.
    rows : int
        Rows that share a second-level grid.
    floor : float32
        Least scale.
    bits : int
        Of scales and zero points; 16 for bfloat16.
    extra_bits : int
        Bits of mantissa of what is added: 11 float16, 8 bfloat16.
    scale, zero : float32 ndarray of shape (q, groups)
    scale_codes, zero_codes : uint8 ndarray of shape (q, groups)
    scale_low, scale_step, zero_low, zero_step : float32 ndarray of shape (ceil(q / rows), groups)
    """
    q, b = target.shape
    for tile in prange((q + rows - 1) // rows):
        first, last = tile * rows, min((tile + 1) * rows, q)
        likely, skip = np.zeros(size, dtype=np.bool_), np.zeros(size, dtype=np.bool_)
        u, own = np.empty(size, dtype=np.float32), np.zeros(rows, dtype=np.uint8)
        s, z = np.empty(rows, dtype=np.float32), np.empty(rows, dtype=np.float32)
        for j in range(b):
            at = start + j
            g = at // size
            if at % size == 0:
                for i in range(first, last):
                    # a group wider than the block is the only one: nothing is compensated before it
                    for k in range(size):
                        u[k] = np.float32(target[i, j + k] if size <= b else weight[i, k])
                    likely_outliers(u, power[at : at + size], threshold, low, high, floor, skip, likely)
                    s[i - first], z[i - first] = _real_grid(u, likely, low, high, floor)
                scale_low[tile, g], scale_step[tile, g] = _second_level(s, last - first, bits, own)
                for i in range(first, last):
                    scale[i, g], scale_codes[i, g] = s[i - first], own[i - first]
                zero_low[tile, g], zero_step[tile, g] = _second_level(z, last - first, bits, own)
                for i in range(first, last):
                    zero[i, g], zero_codes[i, g] = z[i - first], own[i - first]
            for i in range(first, last):
                s_i, z_i = scale[i, g], zero[i, g]
                c = _nearest(target[i, j], s_i, z_i, low, high)
                v = (c - z_i) * s_i
                d, e = _ZERO, target[i, j] - np.float64(v)
                if e * e * power[at] > threshold:
                    d = stored_scale(np.float32(e), extra_bits)
                codes[i, at], extra[i, at] = np.int8(c), d
                e = weight[i, at] - (np.float64(v) + np.float64(d))
                error[i, at] = e
                line, row = target[i], feedback[j]
                for k in range(j + 1, b):
                    line[k] += e * row[k]
