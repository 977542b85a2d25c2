"""Compiled search of k nearest rows, block of rows against block of rows.

A pair of blocks is multiplied in float32 (coordinates relative to the centre of one of them, two rows and eight
coordinates at a time, so that the sums stay in registers), giving minus half of each squared distance with a proven
error bound. Whatever the bound cannot exclude is measured again in float64 by :func:`gap` and enters the rows' lists,
which are ordered by distance, then row number. In a search of a table among its own rows each pair is multiplied once
and serves the lists of both blocks.

Error bound. In units of the block's scale, with u the unit round-off of float32, a row v of the other block is stored
with an error of at most 3 u (radius + offset) =: delta and a row w of this block with u |w|, so a distance is wrong by
at most delta + u |w|. The products and sums of p terms add at most (p + 6) u (|v|^2 + |w|^2).
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skerry.kernels.compiled import njit
from skerry.kernels.selection import kth_smallest
from skerry.kernels.threads import in_parts

__all__ = ["GROUP", "LANES", "PARTS", "TILE", "aligned", "scratch", "search_others", "search_self", "squared_distances"]

TILE = 512  # rows of a block: eight coordinates of them fill half of a first-level cache
LANES = TILE + 16  # a row's stride in memory; 512 alone would map every coordinate to the same cache sets
CHUNK = 64  # columns whose test is one comparison
GROUP = 8  # coordinates multiplied at once
EPS = 6.0e-8  # unit round-off of float32, rounded up
PARTS = 32  # shares of the work, whatever the number of threads
VECTOR = 8  # multiplications of a step
FAR = 1e15  # squares of larger figures leave float32
FAST = {"nnan", "reassoc", "nsz", "contract"}


@njit(cache=True, nogil=True, fastmath=FAST)
def gap(X, i, Y, t):
    """Return the squared Euclidean distance of row i of ``X`` to row t of ``Y`` in float64."""
    total = 0.0
    for j in range(X.shape[1]):
        g = X[i, j] - Y[t, j]
        total += g * g
    return total


@njit(cache=True, nogil=True)
def _squared_distances(Q, rows, numbers, out, start, stop):
    for i in range(start, stop):
        for c in range(numbers.shape[1]):
            out[i, c] = gap(Q, i, rows, numbers[i, c])


def squared_distances(Q: NDArray, rows: NDArray, numbers: NDArray) -> NDArray[np.float64]:
    """Return squared distances (m, k) of the rows of ``Q`` (m, d) to ``rows[numbers]``, as the search sums them."""
    out = np.empty(numbers.shape)
    in_parts(partial(_squared_distances, Q, rows, numbers, out), len(Q), numbers.size * Q.shape[1])
    return out


@njit(cache=True, nogil=True, fastmath=FAST)
def _add_group(V, i, B, g, keep, out, width):
    """Add the products of eight coordinates of rows i and i + 1 with all columns (``keep`` 0 starts afresh)."""
    j = g * GROUP
    a, b = out[0], out[1]
    p0, p1, p2, p3 = V[j, i], V[j + 1, i], V[j + 2, i], V[j + 3, i]
    p4, p5, p6, p7 = V[j + 4, i], V[j + 5, i], V[j + 6, i], V[j + 7, i]
    i += 1
    q0, q1, q2, q3 = V[j, i], V[j + 1, i], V[j + 2, i], V[j + 3, i]
    q4, q5, q6, q7 = V[j + 4, i], V[j + 5, i], V[j + 6, i], V[j + 7, i]
    l0, l1, l2, l3 = B[j], B[j + 1], B[j + 2], B[j + 3]
    l4, l5, l6, l7 = B[j + 4], B[j + 5], B[j + 6], B[j + 7]
    for t in range(width):
        x0, x1, x2, x3, x4, x5, x6, x7 = l0[t], l1[t], l2[t], l3[t], l4[t], l5[t], l6[t], l7[t]
        a[t] = keep * a[t] + p0 * x0 + p1 * x1 + p2 * x2 + p3 * x3 + p4 * x4 + p5 * x5 + p6 * x6 + p7 * x7
        b[t] = keep * b[t] + q0 * x0 + q1 * x1 + q2 * x2 + q3 * x3 + q4 * x4 + q5 * x5 + q6 * x6 + q7 * x7


@njit(cache=True, nogil=True, fastmath=FAST)
def _any(line, tests, least):
    """Whether any column lies above its own test or the row's: one comparison each, without a branch."""
    found = np.uint32(0)
    for t in range(line.size):
        found |= np.uint32(line[t] >= least) | np.uint32(line[t] >= tests[t])
    return found != 0


@njit(cache=True, nogil=True)
def _kth_largest(line, size, k, work):
    """Return the k-th largest of the first ``size`` entries by quickselect on a copy."""
    for t in range(size):
        work[t] = -line[t]
    return -kth_smallest(work, size, k)


@njit(cache=True, nogil=True, inline="always")
def _put(top_d, top_i, row, dist, item):
    """Insert into a row's ascending list, ordered by distance then number; False where it does not belong."""
    at = top_d.shape[1] - 1
    worst = top_d[row, at]
    fits = dist < worst or (dist == worst and item < top_i[row, at])
    if fits:
        while at > 0:
            before = top_d[row, at - 1]
            if before < dist or (before == dist and top_i[row, at - 1] < item):
                break
            top_d[row, at] = before
            top_i[row, at] = top_i[row, at - 1]
            at -= 1
        top_d[row, at] = dist
        top_i[row, at] = item
    return fits


@njit(cache=True, nogil=True, inline="always")
def _test(reach, scale, slack, noise):
    """Minus half of the squared distance below which a pair is certainly too far for a list of this reach."""
    far = (reach * (1.0 + 1e-12) + 1e-160) / scale + slack
    return np.float32(max(-0.5 * far * far * (1.0 + 1e-6) - noise, -3e38))


@njit(cache=True, nogil=True, fastmath=FAST)
def _shift(A, size, origin, centre, scale, ratio, half, place, V, norms, gaps):
    """Bring the rows of block ``A`` into the frame of block B; their squared norms and distances to B's box."""
    norms[:] = np.float32(0.0)
    gaps[:] = np.float32(0.0)
    for j in range(origin.size):
        source, target = A[place[j]], V[place[j]]
        o, h = np.float32((origin[j] - centre[j]) / scale), half[j]
        for t in range(size):
            v = source[t] * ratio + o
            target[t] = v
            norms[t] += v * v
            beyond = max(abs(v) - h, np.float32(0.0))
            gaps[t] += beyond * beyond


@njit(cache=True, nogil=True, fastmath=FAST)
def _part_norms(V, first, last, size, out):
    out[:] = np.float32(0.0)
    for j in range(first, last):
        line = V[j]
        for t in range(size):
            out[t] += line[t] * line[t]


@njit(cache=True, nogil=True)
def _pair(
    a, b, both, QX, q_order, q_first, q_cols, q_centre, q_scale, q_radius,
    X, order, first, cols, centre, scales, radius, half, place, head, haze,
    top_d, top_i, reach, V, W, out, norms, gaps, tests, ids,
):  # fmt: skip
    """Search block ``b`` of X for the rows of block ``a`` of Q; return the products spent.

    ``both``: Q is X, and the pair serves the lists of both blocks. ``place`` says in which line of a block a
    coordinate lies; ``head`` is the number of groups after which whole rows are tested, or all. ``reach`` is the
    distance to the last of a row's list.
    """
    d, k, lines = place.size, top_d.shape[1], V.shape[0]
    scale = scales[b]
    ratio = q_scale[a] / scale
    far = math.sqrt(gap(q_centre, a, centre, b)) / scale
    near_by = q_radius[a] * ratio
    spread = near_by + far  # no row of a lies further from the centre of b
    rows, columns = q_order[q_first[a] : q_first[a + 1]], order[first[b] : first[b + 1]]
    size, width = rows.size, columns.size
    widest = 0.0  # the longest reach of b's lists
    if both:
        for t in range(width):
            widest = max(widest, reach[columns[t]])
    longest = widest
    for t in range(size):
        longest = max(longest, reach[rows[t]])
    slack = 3.0 * EPS * spread + 2.0 * EPS * (1.0 + radius[b]) + haze / scale
    if far - near_by - radius[b] > longest * 1.000001 / scale + slack + 1e-6 * spread:
        return 0
    if not spread < FAR or not ratio < FAR:  # beyond float32: as it is, in float64
        for i in range(size):
            row = rows[i]
            for t in range(width):
                other = columns[t]
                dist = gap(QX, row, X, other)
                if _put(top_d, top_i, row, dist, other):
                    reach[row] = math.sqrt(top_d[row, k - 1])
                if both and _put(top_d, top_i, other, dist, row):
                    reach[other] = math.sqrt(top_d[other, k - 1])
        return size * width * d
    _shift(q_cols[a], size, q_centre[a], centre[b], scale, np.float32(ratio), half[b], place, V, norms, gaps)
    # which rows can have a neighbour here, or be one
    m = 0
    most = 0.0
    for i in range(size):
        bound = math.sqrt(gaps[i]) * (1.0 - (d + 8) * EPS) - EPS * 2.0 * math.sqrt(norms[i]) - slack
        if bound <= (max(reach[rows[i]], widest) * 1.000001 + 1e-160) / scale:
            ids[m] = i
            m += 1
            most = max(most, norms[i])
    if m == 0:
        return size * d
    if m < size:
        for j in range(lines):
            source, target = V[j], W[j]
            for i in range(m):
                target[i] = source[ids[i]]
    else:
        V, W = W, V
    # the columns of b carry (-|w|^2 / 2, 1) for each part of the coordinates; the rows (1, -|v|^2 / 2)
    groups = lines // GROUP
    for part in range(2 if head < groups else 1):
        start = 0 if part == 0 else head * GROUP
        stop = lines if part == 1 or head >= groups else head * GROUP
        _part_norms(W, start + 2, stop, m, norms)
        for i in range(m):
            W[start, i] = np.float32(1.0)
            W[start + 1, i] = np.float32(-0.5) * norms[i]
    for j in range(lines):
        W[j, m] = np.float32(0.0)  # the second row of an odd pair
    noise = (lines + 8) * EPS * (most * 1.001 + radius[b] ** 2) * 1.001 + 1e-36
    padded = (width + CHUNK - 1) // CHUNK * CHUNK
    tests[:] = np.float32(np.inf)
    if both:
        for t in range(width):
            tests[t] = _test(reach[columns[t]], scale, slack, noise)
    B = cols[b]
    spent = 0
    useful = head < groups
    tried, spared = 0, 0
    for i in range(0, m, 2):
        n_rows = min(2, m - i)
        done = 0
        if useful:
            for g in range(head):
                _add_group(W, i, B, g, np.float32(g > 0), out, padded)
            done = head
            spent += 2 * width * head * GROUP
            tried += 1
            alive = False
            for s in range(n_rows):
                least = _test(reach[rows[ids[i + s]]], scale, slack, noise)
                alive = alive or _any(out[s, :padded], tests[:padded], least)
            if not alive:
                spared += 1
                continue
            useful = tried < 16 or 8 * spared > tried
        for g in range(done, groups):
            _add_group(W, i, B, g, np.float32(g > 0), out, padded)
        spent += 2 * width * (groups - done) * GROUP
        for s in range(n_rows):
            row = rows[ids[i + s]]
            line = out[s]
            least = _test(reach[row], scale, slack, noise)
            cap = least
            if reach[row] == np.inf and width >= k:  # an empty list: the k-th best of this line will do
                kth = math.sqrt(max(-2.0 * _kth_largest(line, width, k, norms) + 2.0 * noise, 0.0)) + slack
                cap = _test(kth * scale * (1.0 + 1e-9), scale, slack, noise)
                least = max(least, cap)
            for c in range(0, padded, CHUNK):
                if not _any(line[c : c + CHUNK], tests[c : c + CHUNK], least):
                    continue
                for t in range(c, min(c + CHUNK, width)):
                    e = line[t]
                    if e >= least or e >= tests[t]:
                        other = columns[t]
                        dist = gap(QX, row, X, other)
                        if _put(top_d, top_i, row, dist, other):
                            reach[row] = math.sqrt(top_d[row, k - 1])
                            least = max(cap, _test(reach[row], scale, slack, noise))
                        if both and _put(top_d, top_i, other, dist, row):
                            reach[other] = math.sqrt(top_d[other, k - 1])
                            tests[t] = _test(reach[other], scale, slack, noise)
    return spent


def aligned(*shape: int) -> NDArray[np.float32]:
    """Return float32 zeros that begin on a cache line, as the multiplications want them."""
    size = math.prod(shape)
    raw = np.zeros(size + 16, dtype=np.float32)
    at = (-raw.ctypes.data // 4) % 16
    return raw[at : at + size].reshape(shape)


def scratch(lines: int, parts: int = PARTS) -> tuple[NDArray, ...]:
    """Return the work space of a search: two blocks and a few rows for each share of the work."""
    return (
        aligned(parts, lines, LANES),
        aligned(parts, lines, LANES),
        aligned(parts, 2, TILE),
        aligned(parts, LANES),
        aligned(parts, LANES),
        aligned(parts, TILE),
        np.empty((parts, TILE + 1), dtype=np.int64),
    )


@njit(cache=True, nogil=True)
def _round(
    r, shares, X, order, first, cols, centre, scale, radius, half, place, head, haze,
    V, W, out, norms, gaps, tests, ids, top_d, top_i, reach, start, stop,
):  # fmt: skip
    """Let some of the shares meet their partner of round ``r``."""
    n_blocks = first.size - 1
    held = (n_blocks + shares - 1) // shares  # blocks of a share
    steps, high = 1, 1
    while steps < held:
        steps *= 2
    while 2 * high <= r:
        high *= 2
    for p in range(start, stop):
        i = p * 13 % shares if r == 0 else p * 13 % (shares // 2)  # neighbours in work to different threads
        left = i if r == 0 else i // high * 2 * high + i % high  # r's highest bit is not set in it
        right = left ^ r
        for q in range(steps):
            for x in range(held):
                y = x ^ q
                a, b = left * held + x, right * held + y
                if y >= held or max(a, b) >= n_blocks or (r == 0 and y < x):
                    continue
                _pair(
                    a, b, a != b, X, order, first, cols, centre, scale, radius,
                    X, order, first, cols, centre, scale, radius, half, place, head, haze,
                    top_d, top_i, reach, V[p], W[p], out[p], norms[p], gaps[p], tests[p], ids[p],
                )  # fmt: skip


def search_self(X: NDArray, k: int, *state: Any) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return (distances, numbers), each (u, k): for every row of ``X`` (u, d) the k nearest rows, itself included.

    ``state`` is :class:`skerry.kernels.neighbour_blocks.Blocks`, its axes and :func:`scratch`. Blocks lie in at most
    32 shares; in round r share s meets share s xor r, so that no two threads ever write to one list, and what was cut
    apart last meets first.
    """
    lists = _empty_lists(len(X), k, len(X))
    n_blocks, lines = state[1].size - 1, state[2].shape[1]
    shares = 2
    while shares < min(n_blocks, PARTS):
        shares *= 2
    work = len(X) ** 2 * lines / (2 * VECTOR * shares)
    for r in range(shares):
        in_parts(partial(_round, r, shares, X, *state, *lists), shares if r == 0 else shares // 2, work)
    return np.sqrt(lists[0]), lists[1]


@njit(cache=True, nogil=True)
def _some_queries(
    Q, q_order, q_first, q_cols, q_centre, q_scale, q_radius, nearest, work,
    X, order, first, cols, centre, scale, radius, half, place, head, haze,
    V, W, out, norms, gaps, tests, ids, top_d, top_i, reach, start, stop,
):  # fmt: skip
    n_queries, n_blocks = nearest.shape
    both = n_blocks < 0  # never; numba would compile another _pair for the constant False
    for p in range(start, stop):
        for a in range(p, n_queries, len(V)):
            for at in range(n_blocks):
                work[a] += _pair(
                    a, nearest[a, at], both, Q, q_order, q_first, q_cols, q_centre, q_scale, q_radius,
                    X, order, first, cols, centre, scale, radius, half,
                    place, head, haze, top_d, top_i, reach,
                    V[p], W[p], out[p], norms[p], gaps[p], tests[p], ids[p],
                )  # fmt: skip


def search_others(
    Q: NDArray, k: int, queries: tuple[NDArray, ...], X: NDArray, *state: Any
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Return (distances, numbers, work) for every row of ``Q`` (m, d): the k nearest rows of ``X`` (u, d).

    ``queries`` is what :meth:`skerry.kernels.neighbour_blocks.Blocks.as_queries` gives of the rows that ask, ``state``
    as in :func:`search_self`; ``work`` (blocks of Q,) counts multiplications.
    """
    lists = _empty_lists(len(Q), k, len(X))
    centre, lines, parts = state[3], state[2].shape[1], len(state[10])
    nearest = np.empty((len(queries[3]), len(centre)), dtype=np.int64)
    for a, asking in enumerate(queries[3]):  # the nearest blocks first: the lists fill, and rule out the rest
        nearest[a] = np.argsort(((centre - asking) ** 2).sum(axis=1), kind="stable")
    work = np.full(len(nearest), centre.size, dtype=np.int64)
    run = partial(_some_queries, Q, *queries, nearest, work, X, *state, *lists)
    in_parts(run, parts, len(Q) * len(X) * lines / VECTOR)
    return np.sqrt(lists[0]), lists[1], work


def _empty_lists(m: int, k: int, nobody: int) -> tuple[NDArray, NDArray, NDArray]:
    """Return squared distances and numbers (m, k), and the distance to the last of each list."""
    return np.full((m, k), np.inf), np.full((m, k), nobody), np.full(m, np.inf)
