"""Squared error of OliVe's outlier-victim pairs for many scales at once: one pass over the weights, nothing stored.

The rule is :class:`skerry.quant.formats.victim_codec.PairCodec`'s; a test compares the two.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
from numpy.typing import NDArray

from skerry.kernels.compiled import njit
from skerry.kernels.threads import in_parts

__all__ = ["victim_errors"]


@njit(cache=True, nogil=True)
def _flint(size):
    if size < np.float32(3.5):
        return np.floor(size + np.float32(0.5))
    if size < np.float32(5.0):
        return np.float32(4.0)
    if size < np.float32(7.0):
        return np.float32(6.0)
    return np.float32(8.0) if size < np.float32(12.0) else np.float32(16.0)


@njit(cache=True, nogil=True)
def _abfloat(size, mantissa_bits, first, largest):
    if size >= largest:
        return largest
    part, exponent = math.frexp(size)
    unit = 2.0 ** (exponent - mantissa_bits - 1)
    return np.float32(max(np.floor(size / unit + 0.5) * unit, first))


@njit(cache=True, nogil=True)
def _errors(rows, scales, flint, signed, tie_even, limit, top, low, high, mantissa_bits, found, start, stop):
    width = rows.shape[1]
    for i in range(start, stop):
        for c in range(scales.shape[1]):
            scale = scales[i, c]
            total = 0.0
            for j in range(0, width, 2):
                a, b = rows[i, j], rows[i, j + 1]
                u, v = a / scale, b / scale
                if signed:
                    u, v = abs(u), abs(v)
                else:
                    u, v = max(u, np.float32(0.0)), max(v, np.float32(0.0))
                if u > limit or v > limit:
                    if u > limit and (tie_even or not v > limit or u >= v):
                        u, v = _abfloat(u, mantissa_bits, low, high), np.float32(0.0)
                    else:
                        u, v = np.float32(0.0), _abfloat(v, mantissa_bits, low, high)
                elif flint:
                    u, v = _flint(u), _flint(v)
                else:
                    u, v = min(np.rint(u), top), min(np.rint(v), top)
                if signed:
                    p, q = abs(a) - u * scale, abs(b) - v * scale
                else:
                    p, q = a - u * scale, b - v * scale
                total += np.float64(p) * p + np.float64(q) * q
            found[i, c] = total


def victim_errors(
    rows: NDArray[np.float32],
    scales: NDArray[np.float32],
    flint: bool,
    signed: bool,
    tie_even: bool,
    normal_max: float,
    first: float,
    largest: float,
    mantissa_bits: int,
) -> NDArray[np.float64]:
    """Return the summed squared error (rows, ratios) of every row at every one of its scales.

    Parameters
    ----------
    rows : ndarray of shape (rows, n), float32, n even
        Pairs are neighbours.
    scales : ndarray of shape (rows, ratios), float32
    flint, signed, tie_even : bool
        Normal values 0, 1, 2, 3, 4, 6, 8, 16 instead of integers; sign bit; which of two outliers stays.
    normal_max, first, largest : float
        Largest normal value, smallest and largest outlier.
    mantissa_bits : int
        Of the outliers.
    """
    found = np.empty(scales.shape)
    limits = (np.float32(v) for v in ((normal_max + first) / 2, normal_max, first, largest))
    run = partial(_errors, rows, scales, flint, signed, tie_even, *limits, mantissa_bits, found)
    in_parts(run, len(rows), 4 * rows.size * scales.shape[1])
    return found
