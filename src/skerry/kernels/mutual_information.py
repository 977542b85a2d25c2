"""Compiled kernel-density estimators of mutual information between many columns and one target.

Paper: K. Yang, "fastHDMI", arXiv 2410.10082. Parallel over columns, which come as the rows of a C-ordered float64
array ``Xt`` of shape (p, n); NaN marks a missing value and is dropped pairwise. Every kernel returns p values in
nats and depends on no other column, so the result is the same on any number of threads. ``rule`` and ``value`` are
those of :func:`skerry.kernels.bandwidths.bandwidth`.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from skerry.kernels.bandwidths import REACH, bandwidth
from skerry.kernels.compiled import njit
from skerry.kernels.pairs import complete, plogp, quantile, scaled
from skerry.kernels.threads import in_parts

__all__ = ["kde_classes", "kde_continuous"]

GRID = 300  # cells per axis of the plane
LINE = 500  # cells of the line, for a target of classes
TAPS = 32  # of a kernel, about


@njit(cache=True, nogil=True)
def _grid(z, h, cells):
    """Return (origin, step, taps) of a grid that holds the data and the kernel's support."""
    low = z.min() - REACH * h
    step = (z.max() + REACH * h - low) / (cells - 1)
    radius = min(int(np.ceil(REACH * h / step)), cells - 1)
    taps = np.empty(2 * radius + 1)
    for d in range(-radius, radius + 1):
        taps[d + radius] = max(0.0, 1.0 - (d * step / (REACH * h)) ** 2)
    return low, step, taps


@njit(cache=True, nogil=True)
def _place(z, low, step, cells):
    """Cell and share of the next cell (linear binning)."""
    position = (z - low) / step
    cell = min(max(int(position), 0), cells - 2)
    return cell, min(max(position - cell, 0.0), 1.0)


@njit(cache=True, nogil=True)
def _kde_plane(x, y, rule, value, count, half, full):
    """MI of one pair from its density on the grid."""
    n = x.size
    if n < 3:
        return 0.0
    zx, sx = scaled(x)
    zy, sy = scaled(y)
    if sx <= 0.0 or sy <= 0.0:
        return 0.0
    hx = bandwidth(zx, sx, rule, value)
    hy = bandwidth(zy, sy, rule, value)
    ax, dx, kx = _grid(zx, hx, GRID)
    ay, dy, ky = _grid(zy, hy, GRID)
    count[:, :] = 0.0
    half[:, :] = 0.0
    full[:, :] = 0.0
    for i in range(n):
        a, u = _place(zx[i], ax, dx, GRID)
        b, v = _place(zy[i], ay, dy, GRID)
        count[a, b] += (1.0 - u) * (1.0 - v)
        count[a, b + 1] += (1.0 - u) * v
        count[a + 1, b] += u * (1.0 - v)
        count[a + 1, b + 1] += u * v
    ry = ky.size // 2
    used = np.zeros(GRID, dtype=np.bool_)
    for a in range(GRID):  # along y: only occupied cells spread
        for b in range(GRID):
            c = count[a, b]
            if c > 0.0:
                used[a] = True
                start = max(0, b - ry)
                stop = min(GRID, b + ry + 1)
                for t in range(start, stop):
                    half[a, t] += c * ky[t - b + ry]
    rx = kx.size // 2
    for a in range(GRID):  # along x: whole rows, contiguous
        for s in range(max(0, a - rx), min(GRID, a + rx + 1)):
            if used[s]:
                w = kx[a - s + rx]
                if w > 0.0:
                    for t in range(GRID):
                        full[a, t] += w * half[s, t]
    total = 0.0
    joint = 0.0
    mx = np.zeros(GRID)
    my = np.zeros(GRID)
    for a in range(GRID):
        for t in range(GRID):
            f = full[a, t]
            if f > 0.0:
                joint += f * np.log(f)
                mx[a] += f
                my[t] += f
        total += mx[a]
    # with p = f / total on cells, the steps cancel: I = sum p ln p - sum pa ln pa - sum pb ln pb
    information = joint / total + np.log(total)
    for a in range(GRID):
        information -= (plogp(mx[a]) + plogp(my[a])) / total
    return max(0.0, information)


@njit(cache=True, nogil=True)
def _planes(Xt, y, rule, value, out, start, stop):
    count = np.empty((GRID, GRID))
    half = np.empty((GRID, GRID))
    full = np.empty((GRID, GRID))
    for j in range(start, stop):
        a, b = complete(Xt[j], y)
        out[j] = _kde_plane(a, b, rule, value, count, half, full)


def kde_continuous(Xt: NDArray, y: NDArray, rule: int, value: float) -> NDArray[np.float64]:
    """MI of each column with a continuous target from an Epanechnikov density on a 300 x 300 grid."""
    out = np.zeros(len(Xt))
    in_parts(partial(_planes, Xt, y, rule, value, out), len(Xt), len(Xt) * GRID * GRID * TAPS + 8 * Xt.size)
    return out


@njit(cache=True, nogil=True)
def _kde_line(x, codes, n_classes, rule, value):
    n = x.size
    if n < 3:
        return 0.0
    z, spread = scaled(x)
    if spread <= 0.0:
        return 0.0
    sizes = np.zeros(n_classes, dtype=np.int64)
    for i in range(n):
        sizes[int(codes[i])] += 1
    widths = np.zeros(n_classes)
    widest = 0.0
    kept = 0
    for c in range(n_classes):
        if sizes[c] > 2:
            member = np.empty(sizes[c])
            k = 0
            for i in range(n):
                if int(codes[i]) == c:
                    member[k] = z[i]
                    k += 1
            s = np.sort(member)
            own = np.sqrt(np.mean((s - s.mean()) ** 2) * s.size / (s.size - 1))
            iqr = (quantile(s, 0.75) - quantile(s, 0.25)) / 1.349
            if 0.0 < iqr < own:
                own = iqr
            # a class of ties still needs a width: that of the whole column, narrowed
            widths[c] = bandwidth(member, max(own, 1e-2 * spread), rule, value)
            widest = max(widest, widths[c])
            kept += sizes[c]
    if kept == 0:
        return 0.0
    mixture = np.zeros(LINE)
    information = 0.0
    for c in range(n_classes):
        if sizes[c] <= 2:
            continue
        low, step, _ = _grid(z, widest, LINE)
        reach = REACH * widths[c]
        radius = min(int(np.ceil(reach / step)), LINE - 1)
        count = np.zeros(LINE)
        for i in range(n):
            if int(codes[i]) == c:
                a, u = _place(z[i], low, step, LINE)
                count[a] += 1.0 - u
                count[a + 1] += u
        density = np.zeros(LINE)
        for a in range(LINE):
            if count[a] > 0.0:
                for t in range(max(0, a - radius), min(LINE, a + radius + 1)):
                    density[t] += count[a] * max(0.0, 1.0 - ((t - a) * step / reach) ** 2)
        share = sizes[c] / kept
        total = density.sum()
        for t in range(LINE):
            f = density[t] / total
            information += share * plogp(f)
            mixture[t] += share * f
    for t in range(LINE):
        information -= plogp(mixture[t])
    return max(0.0, information)


@njit(cache=True, nogil=True)
def _lines(Xt, codes, n_classes, rule, value, out, start, stop):
    for j in range(start, stop):
        a, b = complete(Xt[j], codes)
        out[j] = _kde_line(a, b, n_classes, rule, value)


def kde_classes(Xt: NDArray, codes: NDArray, n_classes: int, rule: int, value: float) -> NDArray[np.float64]:
    """MI of each column with classes ``codes`` (float64, 0 .. n_classes - 1, NaN missing)."""
    out = np.zeros(len(Xt))
    run = partial(_lines, Xt, codes, n_classes, rule, value, out)
    in_parts(run, len(Xt), (16 + n_classes) * Xt.size + len(Xt) * n_classes * LINE * TAPS)
    return out
