"""Compiled nearest-neighbour estimators of mutual information, parallel over columns.

Columns come as the rows of a C-ordered float64 array ``Xt`` of shape (p, n); NaN marks a missing value and is
dropped pairwise. Every kernel returns p values in nats and depends on no other column, so the result is the same
on any number of threads. Two continuous variables: A. Kraskov et al., Phys. Rev. E 69, 2004, their first estimator;
ties as in W. Gao et al., NeurIPS 2017. Classes: B. Ross, PLoS ONE 9, 2014.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from skerry.kernels.compiled import njit
from skerry.kernels.pairs import complete, scaled
from skerry.kernels.threads import in_parts

__all__ = ["knn_classes", "knn_continuous"]

STEPS = 64  # of a row: sorting, neighbours, two binary searches


@njit(cache=True, nogil=True)
def _within(s, value, radius, inclusive):
    """How many of the sorted ``s`` lie closer than ``radius`` to ``value`` (at most, if inclusive)."""
    if inclusive:
        return np.searchsorted(s, value + radius, side="right") - np.searchsorted(s, value - radius, side="left")
    radius -= 1e-13 * (abs(value) + radius)  # the neighbour at the radius itself must stay outside
    return np.searchsorted(s, value + radius, side="left") - np.searchsorted(s, value - radius, side="right")


@njit(cache=True, nogil=True)
def _knn_plane(x, y, k, psi):
    n = x.size
    k = min(k, n - 1)
    if k < 1:
        return 0.0
    x, sx = scaled(x)
    y, sy = scaled(y)
    if sx <= 0.0 or sy <= 0.0:
        return 0.0
    order = np.argsort(x, kind="mergesort")
    xs = x[order]
    yx = y[order]
    ys = np.sort(y)
    near = np.empty(k)
    total = 0.0
    for i in range(n):
        near[:] = np.inf
        left = i - 1
        right = i + 1
        ties = 0
        while left >= 0 or right < n:
            gl = xs[i] - xs[left] if left >= 0 else np.inf
            gr = xs[right] - xs[i] if right < n else np.inf
            if gl <= gr:
                gap, other = gl, left
                left -= 1
            else:
                gap, other = gr, right
                right += 1
            if gap > near[k - 1]:
                break
            distance = max(gap, abs(yx[other] - yx[i]))
            ties += distance == 0.0
            if distance < near[k - 1]:
                t = k - 1
                while t > 0 and near[t - 1] > distance:
                    near[t] = near[t - 1]
                    t -= 1
                near[t] = distance
        radius = near[k - 1]
        if radius > 0.0:
            nx = max(_within(xs, xs[i], radius, False), 1)
            ny = max(_within(ys, yx[i], radius, False), 1)
            total += psi[k] - psi[nx] - psi[ny]
        else:  # more than k repeats of the point: count the repeats (Gao et al. 2017)
            nx = _within(xs, xs[i], 0.0, True)
            ny = _within(ys, yx[i], 0.0, True)
            total += psi[max(ties, 1)] - psi[nx] - psi[ny]
    return max(0.0, psi[n] + total / n)


@njit(cache=True, nogil=True)
def _planes(Xt, y, k, psi, out, start, stop):
    for j in range(start, stop):
        a, b = complete(Xt[j], y)
        out[j] = _knn_plane(a, b, k, psi)


def knn_continuous(Xt: NDArray, y: NDArray, k: int, psi: NDArray) -> NDArray[np.float64]:
    """Kraskov's first estimator; ``psi[i]`` = digamma(i) for i = 1 .. n."""
    out = np.zeros(len(Xt))
    in_parts(partial(_planes, Xt, y, k, psi, out), len(Xt), Xt.size * STEPS)
    return out


@njit(cache=True, nogil=True)
def _knn_line(x, codes, n_classes, k, psi):
    x, spread = scaled(x)
    if spread <= 0.0:
        return 0.0
    sizes = np.zeros(n_classes, dtype=np.int64)
    for i in range(x.size):
        sizes[int(codes[i])] += 1
    pool = np.empty(x.size)
    n = 0
    for i in range(x.size):
        if sizes[int(codes[i])] > 1:
            pool[n] = x[i]
            n += 1
    if n == 0:
        return 0.0
    pool = np.sort(pool[:n])
    total = 0.0
    for c in range(n_classes):
        size = sizes[c]
        if size < 2:
            continue
        member = np.empty(size)
        t = 0
        for i in range(x.size):
            if int(codes[i]) == c:
                member[t] = x[i]
                t += 1
        member = np.sort(member)
        kc = min(k, size - 1)
        for i in range(size):
            left = i - 1
            right = i + 1
            radius = 0.0
            for _ in range(kc):
                gl = member[i] - member[left] if left >= 0 else np.inf
                gr = member[right] - member[i] if right < size else np.inf
                if gl <= gr:
                    radius = gl
                    left -= 1
                else:
                    radius = gr
                    right += 1
            if radius > 0.0:
                total += psi[kc] - psi[size] - psi[max(_within(pool, member[i], radius, False), 1)]
            else:
                same = _within(member, member[i], 0.0, True) - 1
                total += psi[same] - psi[size] - psi[_within(pool, member[i], 0.0, True)]
    return max(0.0, psi[n] + total / n)


@njit(cache=True, nogil=True)
def _lines(Xt, codes, n_classes, k, psi, out, start, stop):
    for j in range(start, stop):
        a, b = complete(Xt[j], codes)
        if a.size > 1:
            out[j] = _knn_line(a, b, n_classes, k, psi)


def knn_classes(Xt: NDArray, codes: NDArray, n_classes: int, k: int, psi: NDArray) -> NDArray[np.float64]:
    """Ross's nearest-neighbour estimator between a column and classes."""
    out = np.zeros(len(Xt))
    in_parts(partial(_lines, Xt, codes, n_classes, k, psi, out), len(Xt), Xt.size * STEPS)
    return out
