"""Contingency counts of columns of codes against one target: the sums that every entropy is made of.

All entropies here are sums of n·ln n over cells. They are kept in fixed point (64-bit integers), so a sum does not
depend on the order of the rows, on the labels of the values or on the number of threads, bit for bit. Counting groups
the rows by one column once and then counts the other in a table of its own cardinality: O(n) per pair whatever the
cardinalities, and no table of |a|·|b| cells. Follows "OutRank" (Škrlj & Mramor, RecSys 2023) in what is counted; the
null of a pair is a random regrouping with the same group sizes.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skerry.kernels.compiled import njit
from skerry.kernels.threads import in_parts

__all__ = [
    "Sums",
    "encode",
    "mutual_information",
    "pack",
    "shift_sums",
    "target_sums",
]

STEPS = 4  # of a row: it is placed, fetched, counted and cleared
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
    """Stack columns of codes to (p, n), in uint16 where all fit, else int32, and return their sizes (max + 1)."""
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
        out = np.zeros(len(codes), dtype=np.int64)
        in_parts(partial(_margins, codes, cards, self.table, self.scale, out), len(codes), codes.size)
        return out


@njit(cache=True, inline="always")
def klogk(k, table, scale):
    if k < table.size:
        return table[k]
    return np.int64(round(k * math.log(k) * scale))


@njit(cache=True, nogil=True)
def _margins(codes, cards, table, scale, out, start, stop):
    for j in range(start, stop):
        counts = np.zeros(cards[j], dtype=np.int64)
        for i in range(codes.shape[1]):
            counts[codes[j, i]] += 1
        total = np.int64(0)
        for v in range(cards[j]):
            total += klogk(counts[v], table, scale)
        out[j] = total


@njit(cache=True, nogil=True)
def group(a, card):
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
def joint_sum(order, bounds, b, card, scratch, table, scale):
    """Σ n·ln n over the cells of (group, b), and the number of cells in use; scratch is zero before and after."""
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
                    total += klogk(c, table, scale)
                    scratch[v] = 0
        else:
            for r in range(lo, hi):
                scratch[b[order[r]]] += 1
            for r in range(lo, hi):
                v = b[order[r]]
                c = scratch[v]
                if c > 0:
                    cells += 1
                    total += klogk(c, table, scale)
                    scratch[v] = 0
    return total, cells


@njit(cache=True, nogil=True)
def _mix(x):
    x = np.uint64(x) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit(cache=True, nogil=True)
def shuffle(order, state):
    """Fisher-Yates in place with splitmix64 draws; rows are fewer than 2^31, so 32 bits of each draw do."""
    for i in range(order.size - 1, 0, -1):
        state += np.uint64(0x9E3779B97F4A7C15)
        x = _mix(state) >> np.uint64(32)
        j = np.int64((x * np.uint64(i + 1)) >> np.uint64(32))
        t = order[i]
        order[i] = order[j]
        order[j] = t


@njit(cache=True, nogil=True)
def state(seed, key, draw):
    return _mix(_mix(_mix(np.uint64(seed)) ^ np.uint64(key)) ^ np.uint64(draw))


@njit(cache=True, nogil=True)
def _target(codes, cards, keys, y, card_y, seed, table, scale, joint, null, start, stop):
    n, draws = codes.shape[1], null.shape[1]
    for j in range(start, stop):
        scratch = np.zeros(card_y, dtype=np.int32)
        order, bounds = group(codes[j], cards[j])
        joint[j], _ = joint_sum(order, bounds, y, card_y, scratch, table, scale)
        for k in range(draws):
            for i in range(n):
                order[i] = i
            shuffle(order, state(seed, keys[j], k))
            null[j, k], _ = joint_sum(order, bounds, y, card_y, scratch, table, scale)


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
        What identifies a column's draws (default its place), so that a column keeps its null in other company.

    Returns
    -------
    joint : ndarray of shape (p,), int64
    null : ndarray of shape (p, draws), int64
    """
    keys = np.arange(codes.shape[0], dtype=np.int64) if keys is None else keys
    joint, null = np.zeros(len(codes), dtype=np.int64), np.zeros((len(codes), draws), dtype=np.int64)
    given = (codes, cards, keys, y.astype(np.int32), np.int64(card_y), np.int64(seed), sums.table, sums.scale)
    in_parts(partial(_target, *given, joint, null), len(codes), STEPS * codes.size * (1 + draws))
    return joint, null


@njit(cache=True, nogil=True)
def _shift(codes, cards, y, counts, order, bounds, table, scale, joint, moved, start, stop):
    n = codes.shape[1]
    for j in range(start, stop):
        scratch = np.zeros(cards[j], dtype=np.int32)
        a = codes[j]
        shifted = np.empty_like(a)
        for i in range(n):
            shifted[i] = a[(i + counts[y[i]]) % n]
        joint[j], _ = joint_sum(order, bounds, a, cards[j], scratch, table, scale)
        moved[j], _ = joint_sum(order, bounds, shifted, cards[j], scratch, table, scale)


def shift_sums(codes, cards, y, card_y: int, sums: Sums):
    """Count every column against a target, as it is and misaligned by the count of the target's value."""
    joint, moved = np.zeros(len(codes), dtype=np.int64), np.zeros(len(codes), dtype=np.int64)
    y, counts = y.astype(np.int32), np.bincount(y, minlength=card_y)
    given = (codes, cards, y, counts, *group(y, np.int64(card_y)), sums.table, sums.scale)
    in_parts(partial(_shift, *given, joint, moved), len(codes), 2 * STEPS * codes.size)
    return joint, moved


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
