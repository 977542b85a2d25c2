"""Hyperspheres around sampled rows, each reaching to the nearest other row of its sample (INNE)."""

from __future__ import annotations

import math

import numpy as np
from numba import njit, prange

__all__ = ["attribute_isolation", "grow_balls", "isolation"]


@njit(cache=True, nogil=True, inline="always")
def _distance(a, b):
    total = 0.0
    for j in range(a.size):
        total += (a[j] - b[j]) ** 2
    return math.sqrt(total)


@njit(cache=True, parallel=True, nogil=True)
def grow_balls(centres):
    """Return (radii, terms), each (t, m) float64, of ``centres`` (t, m, d) float64.

    A radius is the distance to the nearest other centre of the same sample; a term is
    ``1 - radius of that centre / own radius``. A ball without reach (copies, a sample of one row) has term 0.
    """
    t, m, _ = centres.shape
    radii, terms = np.zeros((t, m)), np.zeros((t, m))
    for s in prange(t):
        nearest = np.zeros(m, dtype=np.int64)
        for a in range(m):
            best = np.inf
            for b in range(m):
                if a != b:
                    gap = _distance(centres[s, a], centres[s, b])
                    if gap < best:
                        best = gap
                        nearest[a] = b
            radii[s, a] = best if m > 1 else 0.0
        for a in range(m):
            if radii[s, a] > 0.0:
                terms[s, a] = 1.0 - radii[s, nearest[a]] / radii[s, a]
    return radii, terms


@njit(cache=True, nogil=True, inline="always")
def _smallest_ball(x, centres, radii):
    """Return (the smallest ball that covers ``x`` or -1, the nearest centre); ties go to the first."""
    ball, nearest = -1, 0
    radius, least = np.inf, np.inf
    for a in range(radii.size):
        gap = _distance(x, centres[a])
        if gap < least:
            least = gap
            nearest = a
        if gap <= radii[a] and radii[a] < radius:
            radius = radii[a]
            ball = a
    return ball, nearest


@njit(cache=True, parallel=True, nogil=True)
def isolation(X, centres, radii, terms):
    """Return the mean isolation of the rows of ``X`` (n, d) float64 over the samples, (n,) float64."""
    n, t = X.shape[0], radii.shape[0]
    out = np.empty(n)
    for i in prange(n):
        total = 0.0
        for s in range(t):
            ball, _ = _smallest_ball(X[i], centres[s], radii[s])
            total += 1.0 if ball < 0 else terms[s, ball]
        out[i] = total / t
    return out


@njit(cache=True, parallel=True, nogil=True)
def attribute_isolation(X, centres, radii, terms):
    """Return the parts (n, d) of :func:`isolation`, split by squared difference to the ball's centre.

    A row that no ball covers is compared with the nearest centre; a row on its centre is split evenly.
    """
    n, d = X.shape
    t = radii.shape[0]
    out = np.zeros((n, d))
    for i in prange(n):
        for s in range(t):
            ball, nearest = _smallest_ball(X[i], centres[s], radii[s])
            value = (1.0 if ball < 0 else terms[s, ball]) / t
            at = nearest if ball < 0 else ball
            gap = _distance(X[i], centres[s, at])
            for j in range(d):
                if gap > 0.0:
                    out[i, j] += value * ((X[i, j] - centres[s, at, j]) / gap) ** 2
                else:
                    out[i, j] += value / d
    return out
