"""Contingency counts of columns of codes: the sums that every entropy is made of, for one target or all
pairs.

All entropies here are sums of n·ln n over cells. They are kept in fixed point (64-bit integers), so a sum
does
not depend on the order of the rows, on the labels of the values or on the number of threads, bit for bit.
Counting groups the rows by one column once and then counts the other in a table of its own cardinality: O(n)
per pair whatever the cardinalities, and no table of |a|·|b| cells. Follows "OutRank" (Škrlj & Mramor,
RecSys 2023)
in what is counted; the null of a pair is a random regrouping with the same group sizes.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, prange
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Sums",
    "cross_sums",
    "encode",
    "expected_mutual_information",
    "mutual_information",
    "pack",
    "pair_sums",
    "shift_sums",
    "target_sums",
]

_TABLE = 1 << 20  # counts above it are rare; their n·ln n is computed, not looked up


def encode(values: ArrayLike) -> tuple[NDArray[np.int32], int]:
    """Return codes 0..c-1 in the order of first appearance, and c.

    >>> encode(["b", "a", "b"])
    (array([0, 1, 0], dtype=int32), 2)
    """
    values = np.asarray(values)
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    rank = np.empty(first.size, dtype=np.int32)
    rank[np.argsort(first)] = np.arange(first.size, dtype=np.int32)
    return rank[inverse.ravel()], int(first.size)


def pack(columns: list[NDArray]) -> tuple[NDArray, NDArray[np.int64]]:
    """Stack columns of codes to (p, n), in uint16 where all fit, else int32, and return their sizes (max +
    1)."""
    cards = np.array([int(c.max()) + 1 if c.size else 0 for c in columns], dtype=np.int64)
    dtype = np.uint16 if cards.size == 0 or cards.max() <= 1 << 16 else np.int32
    n = columns[0].size if columns else 0
    out = np.empty((len(columns), n), dtype=dtype)
    for j, c in enumerate(columns):
        out[j] = c
    return out, cards


class Sums:
    """The fixed-point table of k·ln k for counts up to ``n``.

    Parameters
    ----------
    n : int
        Rows of the table.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        bits = 61 - math.ceil(math.log2(max(n * math.log(max(n, 2)), 1.0)))
        self.scale = float(2 ** min(bits, 44))
        k = np.arange(min(n, _TABLE) + 1, dtype=np.float64)
        k[1:] *= np.log(k[1:])
        self.table = np.rint(k * self.scale).astype(np.int64)

    def value(self, sums: ArrayLike) -> NDArray[np.float64]:
        """Return fixed-point sums divided by n, in nats."""
        return np.asarray(sums, dtype=np.float64) / (self.scale * max(self.n, 1))

    def margins(self, codes: NDArray, cards: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return Σ n·ln n of each row of ``codes`` (p, n), int64; the entropy is ``ln n - value``."""
        return _margins(codes, cards, self.table, self.scale)


@njit(cache=True, inline="always")
def _klogk(k, table, scale):
    if k < table.size:
        return table[k]
    return np.int64(round(k * math.log(k) * scale))


@njit(cache=True, parallel=True, nogil=True)
def _margins(codes, cards, table, scale):
    p = codes.shape[0]
    out = np.zeros(p, dtype=np.int64)
    for j in prange(p):
        counts = np.zeros(cards[j], dtype=np.int64)
        for i in range(codes.shape[1]):
            counts[codes[j, i]] += 1
        total = np.int64(0)
        for v in range(cards[j]):
            total += _klogk(counts[v], table, scale)
        out[j] = total
    return out


@njit(cache=True, nogil=True)
def _group(a, card):
    """Counting sort: rows in order of their code, and where each code begins."""
    bounds = np.zeros(card + 1, dtype=np.int32)
    for i in range(a.size):
        bounds[np.int64(a[i]) + 1] += 1
    for v in range(card):
        bounds[v + 1] += bounds[v]
    place = bounds[:-1].copy()
    order = np.empty(a.size, dtype=np.int32)
    for i in range(a.size):
        v = np.int64(a[i])
        order[place[v]] = i
        place[v] += 1
    return order, bounds


@njit(cache=True, nogil=True)
def _joint(order, bounds, b, card, scratch, table, scale):
    """Σ n·ln n over the cells of (group, b), and the number of cells in use; scratch is zero before and
    after."""
    total = np.int64(0)
    cells = np.int64(0)
    for g in range(bounds.size - 1):
        lo, hi = bounds[g], bounds[g + 1]
        size = hi - lo
        if size <= 1:
            cells += size
            continue
        if size >= card:
            for r in range(lo, hi):
                scratch[b[order[r]]] += 1
            for v in range(card):
                c = scratch[v]
                if c > 0:
                    cells += 1
                    total += _klogk(c, table, scale)
                    scratch[v] = 0
        else:
            for r in range(lo, hi):
                scratch[b[order[r]]] += 1
            for r in range(lo, hi):
                v = b[order[r]]
                c = scratch[v]
                if c > 0:
                    cells += 1
                    total += _klogk(c, table, scale)
                    scratch[v] = 0
    return total, cells


@njit(cache=True, nogil=True)
def _mix(x):
    x = np.uint64(x) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit(cache=True, nogil=True)
def _shuffle(order, state):
    """Fisher-Yates in place with splitmix64 draws; rows are fewer than 2^31, so 32 bits of each draw do."""
    for i in range(order.size - 1, 0, -1):
        state += np.uint64(0x9E3779B97F4A7C15)
        x = _mix(state) >> np.uint64(32)
        j = np.int64((x * np.uint64(i + 1)) >> np.uint64(32))
        t = order[i]
        order[i] = order[j]
        order[j] = t


@njit(cache=True, nogil=True)
def _state(seed, key, draw):
    return _mix(_mix(_mix(np.uint64(seed)) ^ np.uint64(key)) ^ np.uint64(draw))


@njit(cache=True, parallel=True, nogil=True)
def _target(codes, cards, keys, y, card_y, draws, seed, table, scale):
    p, n = codes.shape
    joint = np.zeros(p, dtype=np.int64)
    null = np.zeros((p, draws), dtype=np.int64)
    for j in prange(p):
        scratch = np.zeros(card_y, dtype=np.int32)
        order, bounds = _group(codes[j], cards[j])
        joint[j], _ = _joint(order, bounds, y, card_y, scratch, table, scale)
        for k in range(draws):
            order[:] = np.arange(n)
            _shuffle(order, _state(seed, keys[j], k))
            null[j, k], _ = _joint(order, bounds, y, card_y, scratch, table, scale)
    return joint, null


def target_sums(
    codes: NDArray,
    cards: NDArray[np.int64],
    y: NDArray,
    card_y: int,
    sums: Sums,
    *,
    draws: int = 0,
    seed: int = 0,
    keys: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count every column against one target.

    Parameters
    ----------
    codes : ndarray of shape (p, n)
    cards : ndarray of shape (p,)
    y : ndarray of shape (n,)
    card_y : int
    sums : Sums
    draws : int, default 0
        Random regroupings (permutations) of each column.
    seed : int, default 0
    keys : ndarray of shape (p,), optional
        What identifies a column's draws (default its place), so that a column keeps its null in other
        company.

    Returns
    -------
    joint : ndarray of shape (p,), int64
    null : ndarray of shape (p, draws), int64
    """
    keys = np.arange(codes.shape[0], dtype=np.int64) if keys is None else keys
    return _target(
        codes,
        cards,
        keys,
        y.astype(np.int32),
        np.int64(card_y),
        draws,
        np.int64(seed),
        sums.table,
        sums.scale,
    )


@njit(cache=True, parallel=True, nogil=True)
def _pairs(codes, cards, draws, seed, table, scale):
    p, n = codes.shape
    joint = np.zeros((p, p), dtype=np.int64)
    null = np.zeros((p, p), dtype=np.int64)
    half = (p + 1) // 2
    for t in prange(p):
        i = 2 * t if t < half else 2 * (t - half) + 1  # rows get shorter: deal them out evenly
        scratch = np.zeros(cards.max(), dtype=np.int32)
        order, bounds = _group(codes[i], cards[i])
        for j in range(i + 1, p):
            joint[i, j], _ = _joint(order, bounds, codes[j], cards[j], scratch, table, scale)
        for k in range(draws):
            order[:] = np.arange(n)
            _shuffle(order, _state(seed, i, k))
            for j in range(i + 1, p):
                s, _ = _joint(order, bounds, codes[j], cards[j], scratch, table, scale)
                null[i, j] += s
    return joint, null


def pair_sums(codes, cards, sums: Sums, *, draws: int = 0, seed: int = 0):
    """Count all pairs i < j: joint sums (p, p) and the total over ``draws`` permutations of column i (p,
    p)."""
    return _pairs(codes, cards, draws, np.int64(seed), sums.table, sums.scale)


@njit(cache=True, parallel=True, nogil=True)
def _cross(codes, cards, first, second, starts, y, card_y, draws, seed, table, scale):
    m = first.size
    n = codes.shape[1]
    joint = np.zeros(m, dtype=np.int64)
    margin = np.zeros(m, dtype=np.int64)
    cells = np.zeros(m, dtype=np.int64)
    null = np.zeros((m, draws), dtype=np.int64)
    for s in prange(starts.size - 1):  # one run of pairs shares its first column
        a = first[starts[s]]
        order, bounds = _group(codes[a], cards[a])
        wide = np.int64(0)
        for q in range(starts[s], starts[s + 1]):
            wide = max(wide, cards[second[q]])
        scratch = np.zeros(wide * card_y, dtype=np.int32)
        both = np.empty(n, dtype=np.int32)
        shuffled = np.empty((draws, n), dtype=np.int32)
        for k in range(draws):
            shuffled[k] = y
            _shuffle(shuffled[k], _state(seed, 1_000_003 + a, k))
        for q in range(starts[s], starts[s + 1]):
            b = codes[second[q]]
            card = cards[second[q]]
            margin[q], cells[q] = _joint(order, bounds, b, card, scratch, table, scale)
            for i in range(n):
                both[i] = np.int32(b[i]) * card_y + y[i]
            joint[q], _ = _joint(order, bounds, both, card * card_y, scratch, table, scale)
            for k in range(draws):
                for i in range(n):
                    both[i] = np.int32(b[i]) * card_y + shuffled[k, i]
                null[q, k], _ = _joint(order, bounds, both, card * card_y, scratch, table, scale)
    return joint, margin, cells, null


def cross_sums(codes, cards, pairs: NDArray, y, card_y: int, sums: Sums, *, draws: int = 0, seed: int = 0):
    """Count the crossed columns ``pairs`` (m, 2), sorted by the first, against a target without building
    them.

    Returns
    -------
    joint, margin, cells : ndarray of shape (m,), int64
        Sums over (a, b, y), over (a, b), and how many (a, b) occur.
    null : ndarray of shape (m, draws), int64
    """
    first, second = (np.ascontiguousarray(pairs[:, i], dtype=np.int64) for i in (0, 1))
    change = np.flatnonzero(np.diff(first)) + 1
    starts = np.concatenate([[0], change, [first.size]]).astype(np.int64)
    if first.size == 0:
        starts = np.zeros(1, dtype=np.int64)
    return _cross(
        codes, cards, first, second, starts, y.astype(np.int32), np.int32(card_y), draws, np.int64(seed),
        sums.table, sums.scale,
    )  # fmt: skip


@njit(cache=True, parallel=True, nogil=True)
def _shift(codes, cards, y, card_y, table, scale):
    p, n = codes.shape
    counts = np.zeros(card_y, dtype=np.int64)
    for i in range(n):
        counts[y[i]] += 1
    joint = np.zeros(p, dtype=np.int64)
    moved = np.zeros(p, dtype=np.int64)
    order, bounds = _group(y, card_y)
    for j in prange(p):
        scratch = np.zeros(cards[j], dtype=np.int32)
        a = codes[j]
        shifted = np.empty_like(a)
        for i in range(n):
            shifted[i] = a[(i + counts[y[i]]) % n]
        joint[j], _ = _joint(order, bounds, a, cards[j], scratch, table, scale)
        moved[j], _ = _joint(order, bounds, shifted, cards[j], scratch, table, scale)
    return joint, moved


def shift_sums(codes, cards, y, card_y: int, sums: Sums):
    """Count every column against a target, as it is and misaligned by the count of the target's value."""
    return _shift(codes, cards, y.astype(np.int32), np.int64(card_y), sums.table, sums.scale)


def mutual_information(a: NDArray, b: NDArray) -> float:
    """Return the plug-in mutual information of two columns of codes in nats.

    >>> round(mutual_information(np.array([0, 0, 1, 1]), np.array([1, 1, 0, 0])), 4)
    0.6931
    """
    codes, cards = pack([np.asarray(a), np.asarray(b)])
    sums = Sums(codes.shape[1])
    joint, _ = target_sums(codes[:1], cards[:1], codes[1], cards[1], sums)
    margins = sums.margins(codes, cards)
    return float(math.log(sums.n) + sums.value(joint[0] - margins.sum()))


@njit(cache=True, nogil=True)
def _expected_cells(sizes_a, times_a, sizes_b, times_b, n, log_factorial):
    """Σ over cells of E[k·ln k] with k hypergeometric; walk from the mode both ways until nothing is
    added."""
    total = 0.0
    for i in range(sizes_a.size):
        a = sizes_a[i]
        for j in range(sizes_b.size):
            b = sizes_b[j]
            low, high = max(0, a + b - n), min(a, b)
            if high < 2:
                continue
            mode = min(max(np.int64(((a + 1.0) * (b + 1.0)) // (n + 2.0)), low), high)
            peak = math.exp(
                log_factorial[a] + log_factorial[b] + log_factorial[n - a] + log_factorial[n - b]
                - log_factorial[n] - log_factorial[mode] - log_factorial[a - mode] - log_factorial[b - mode]
                - log_factorial[n - a - b + mode]
            )  # fmt: skip
            cell = peak * mode * math.log(mode) if mode > 1 else 0.0
            pk = peak
            k = mode
            while k < high:
                pk *= (a - k) * (b - k) / ((k + 1.0) * (n - a - b + k + 1.0))
                k += 1
                term = pk * k * math.log(k)
                cell += term
                if k > 2 and term < 1e-17 * (cell + 1e-300):
                    break
            pk = peak
            k = mode
            while k > max(low, 2):
                pk *= k * (n - a - b + np.float64(k)) / ((a - k + 1.0) * (b - k + 1.0))
                k -= 1
                term = pk * k * math.log(k)
                cell += term
                if term < 1e-17 * (cell + 1e-300):
                    break
            total += cell * times_a[i] * times_b[j]
    return total


def expected_mutual_information(
    counts_a: ArrayLike, counts_b: ArrayLike, log_factorial: NDArray[np.float64] | None = None
) -> float:
    """Return the exact mean of the mutual information of two columns with these counts, rows shuffled, in
    nats.

    The quantity of Vinh, Epps & Bailey (2010), grouped by equal counts, so that a column of a million
    values that
    occur a few times each costs no more than a column of a few values.

    >>> round(expected_mutual_information([5, 5], [5, 5]), 4)
    0.0597
    """
    counts_a, counts_b = (np.asarray(c, dtype=np.int64) for c in (counts_a, counts_b))
    counts_a, counts_b = counts_a[counts_a > 0], counts_b[counts_b > 0]
    n = int(counts_a.sum())
    if counts_a.size <= 1 or counts_b.size <= 1:
        return 0.0
    if log_factorial is None:
        from scipy.special import gammaln

        log_factorial = gammaln(np.arange(n + 1) + 1.0)
    (sa, ta), (sb, tb) = (np.unique(c, return_counts=True) for c in (counts_a, counts_b))
    cells = _expected_cells(sa, ta, sb, tb, n, log_factorial)
    marginal = (ta * sa * np.log(sa)).sum() + (tb * sb * np.log(sb)).sum()
    return max(0.0, float(math.log(n) + (cells - marginal) / n))
