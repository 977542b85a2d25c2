"""Compiled estimators of mutual information between many columns and one target, parallel over columns.

Columns come as the rows of a C-ordered float64 array ``Xt`` of shape (p, n); NaN marks a missing value and is
dropped pairwise. Every kernel returns p values in nats and depends on no other column, so the result is the same
on any number of threads.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

__all__ = [
    "bin_columns",
    "binned_information",
    "kde_classes",
    "kde_continuous",
    "knn_classes",
    "knn_continuous",
]

GRID = 300  # cells per axis of the plane
LINE = 500  # cells of the line, for a target of classes
TAIL = 10.0  # values beyond this many interquartile ranges are clipped: one spike must not eat the grid
REACH = 5.0**0.5  # support of the Epanechnikov kernel in standard deviations
MAX_BINS = 99


@njit(cache=True, nogil=True)
def _quantile(s, share):
    position = share * (s.size - 1)
    low = int(position)
    high = min(low + 1, s.size - 1)
    return s[low] + (position - low) * (s[high] - s[low])


@njit(cache=True, nogil=True)
def _scaled(v):
    """Return (v scaled by median and IQR and clipped, spread for the bandwidth rule); spread 0 if constant."""
    s = np.sort(v)
    if s[0] == s[-1]:
        return np.zeros_like(v), 0.0
    middle = _quantile(s, 0.5)
    iqr = _quantile(s, 0.75) - _quantile(s, 0.25)
    unit = iqr
    if unit <= 1e-12 * (s[-1] - s[0]):  # more than half the values are ties: fall back on the range
        unit = s[-1] - s[0]
        iqr = 0.0
    out = np.empty_like(v)
    mean = 0.0
    for i in range(v.size):
        z = (v[i] - middle) / unit
        out[i] = min(max(z, -TAIL), TAIL)
        mean += out[i]
    mean /= v.size
    var = 0.0
    for i in range(v.size):
        var += (out[i] - mean) ** 2
    spread = np.sqrt(var / max(1, v.size - 1))
    if iqr > 0.0:
        spread = min(spread, 1.0 / 1.349)
    return out, spread


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
def _complete(x, y):
    n = 0
    for i in range(x.size):
        if not (np.isnan(x[i]) or np.isnan(y[i])):
            n += 1
    a = np.empty(n)
    b = np.empty(n)
    n = 0
    for i in range(x.size):
        if not (np.isnan(x[i]) or np.isnan(y[i])):
            a[n] = x[i]
            b[n] = y[i]
            n += 1
    return a, b


@njit(cache=True, nogil=True)
def _plogp(v):
    return v * np.log(v) if v > 0.0 else 0.0


@njit(cache=True, nogil=True)
def _kde_plane(x, y, factor, fixed, count, half, full):
    """MI of one pair from its density on the grid; ``fixed`` > 0 overrides the bandwidths."""
    n = x.size
    if n < 3:
        return 0.0
    zx, sx = _scaled(x)
    zy, sy = _scaled(y)
    if sx <= 0.0 or sy <= 0.0:
        return 0.0
    rate = factor * n ** (-0.2)
    hx = fixed if fixed > 0.0 else sx * rate
    hy = fixed if fixed > 0.0 else sy * rate
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
        information -= (_plogp(mx[a]) + _plogp(my[a])) / total
    return max(0.0, information)


@njit(cache=True, parallel=True, nogil=True)
def kde_continuous(Xt, y, factor, fixed, blocks):
    """MI of each column with a continuous target from an Epanechnikov density on a 300 x 300 grid."""
    p = Xt.shape[0]
    out = np.zeros(p)
    for block in prange(blocks):
        count = np.empty((GRID, GRID))
        half = np.empty((GRID, GRID))
        full = np.empty((GRID, GRID))
        for j in range(block, p, blocks):
            a, b = _complete(Xt[j], y)
            out[j] = _kde_plane(a, b, factor, fixed, count, half, full)
    return out


@njit(cache=True, nogil=True)
def _kde_line(x, codes, n_classes, factor, fixed):
    n = x.size
    if n < 3:
        return 0.0
    z, spread = _scaled(x)
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
            iqr = (_quantile(s, 0.75) - _quantile(s, 0.25)) / 1.349
            if 0.0 < iqr < own:
                own = iqr
            # a class of ties still needs a width: that of the whole column, narrowed
            h = max(own, 1e-2 * spread) * factor * sizes[c] ** (-0.2)
            widths[c] = fixed if fixed > 0.0 else h
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
            information += share * _plogp(f)
            mixture[t] += share * f
    for t in range(LINE):
        information -= _plogp(mixture[t])
    return max(0.0, information)


@njit(cache=True, parallel=True, nogil=True)
def kde_classes(Xt, codes, n_classes, factor, fixed):
    """MI of each column with classes ``codes`` (float64, 0 .. n_classes - 1, NaN missing)."""
    out = np.zeros(Xt.shape[0])
    for j in prange(Xt.shape[0]):
        a, b = _complete(Xt[j], codes)
        out[j] = _kde_line(a, b, n_classes, factor, fixed)
    return out


@njit(cache=True, nogil=True)
def _bin(v):
    """Codes (float64, NaN kept) of equal-width bins, their number by Birge and Rozenholc's penalty."""
    n = 0
    low = np.inf
    high = -np.inf
    for i in range(v.size):
        if not np.isnan(v[i]):
            n += 1
            low = min(low, v[i])
            high = max(high, v[i])
    out = np.full(v.size, np.nan)
    best = -np.inf
    chosen = 1
    if n > 0 and high > low:
        counts = np.zeros(MAX_BINS, dtype=np.int64)
        for bins in range(2, MAX_BINS + 1):
            counts[:] = 0
            for i in range(v.size):
                if not np.isnan(v[i]):
                    counts[min(int((v[i] - low) / (high - low) * bins), bins - 1)] += 1
            value = n * np.log(bins) - (bins - 1 + np.log(bins) ** 2.5)
            for b in range(bins):
                value += _plogp(float(counts[b]))
            if value > best:
                best = value
                chosen = bins
    for i in range(v.size):
        if not np.isnan(v[i]):
            out[i] = 0.0
            if chosen > 1:
                out[i] = min(int((v[i] - low) / (high - low) * chosen), chosen - 1)
    return out


@njit(cache=True, parallel=True, nogil=True)
def bin_columns(Xt):
    """Bin each row of ``Xt``; same shape, float64 codes, NaN kept."""
    out = np.empty_like(Xt)
    for j in prange(Xt.shape[0]):
        out[j] = _bin(Xt[j])
    return out


@njit(cache=True, parallel=True, nogil=True)
def binned_information(codes, y, n_classes, miller_madow):
    """Plug-in MI of each row of codes (< 99) with codes ``y``; optionally with Miller and Madow's term."""
    out = np.zeros(codes.shape[0])
    for j in prange(codes.shape[0]):
        table = np.zeros((MAX_BINS, n_classes))
        n = 0.0
        for i in range(y.size):
            if not (np.isnan(codes[j, i]) or np.isnan(y[i])):
                table[int(codes[j, i]), int(y[i])] += 1.0
                n += 1.0
        if n > 0.0:
            value = np.log(n)
            cells = 0
            for a in range(MAX_BINS):
                total = 0.0
                for b in range(n_classes):
                    value += _plogp(table[a, b]) / n
                    total += table[a, b]
                    cells += table[a, b] > 0.0
                value -= _plogp(total) / n
                cells -= total > 0.0
            for b in range(n_classes):
                total = table[:, b].sum()
                value -= _plogp(total) / n
                cells -= total > 0.0
            if miller_madow:
                value -= (cells + 1) / (2.0 * n)
            out[j] = value
    return out


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
    x, sx = _scaled(x)
    y, sy = _scaled(y)
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


@njit(cache=True, parallel=True, nogil=True)
def knn_continuous(Xt, y, k, psi):
    """Kraskov's first estimator; ``psi[i]`` = digamma(i) for i = 1 .. n."""
    out = np.zeros(Xt.shape[0])
    for j in prange(Xt.shape[0]):
        a, b = _complete(Xt[j], y)
        out[j] = _knn_plane(a, b, k, psi)
    return out


@njit(cache=True, nogil=True)
def _knn_line(x, codes, n_classes, k, psi):
    x, spread = _scaled(x)
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


@njit(cache=True, parallel=True, nogil=True)
def knn_classes(Xt, codes, n_classes, k, psi):
    """Ross's nearest-neighbour estimator between a column and classes."""
    out = np.zeros(Xt.shape[0])
    for j in prange(Xt.shape[0]):
        a, b = _complete(Xt[j], codes)
        if a.size > 1:
            out[j] = _knn_line(a, b, n_classes, k, psi)
    return out
