"""Contingency counts of all pairs of columns, and of crossed columns against a target with their two nulls.

A cross is counted without building its column: rows are grouped by all of its columns but one (the anchor), then by
the last. Two nulls: a target shuffled freely (what a column of that cardinality tells by chance), and a target
shuffled within the values of the anchor (what the cross tells beyond the anchor by chance). Sums as in
:mod:`skerry.kernels.contingency`.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from skerry.kernels.compiled import njit
from skerry.kernels.contingency import STEPS, Sums, group, joint_sum, klogk, shuffle, state
from skerry.kernels.threads import in_parts

__all__ = ["AnchorSums", "anchor_sums", "cross_codes", "pair_sums"]


@njit(cache=True, nogil=True)
def _pairs(codes, cards, draws, seed, table, scale, joint, null, start, stop):
    p, n = codes.shape
    half = (p + 1) // 2
    for t in range(start, stop):
        i = 2 * t if t < half else 2 * (t - half) + 1  # rows get shorter: deal them out evenly
        scratch = np.zeros(cards.max(), dtype=np.int32)
        order, bounds = group(codes[i], cards[i])
        for j in range(i + 1, p):
            joint[i, j], _ = joint_sum(order, bounds, codes[j], cards[j], scratch, table, scale)
        for k in range(draws):
            for r in range(n):
                order[r] = r
            shuffle(order, state(seed, i, k))
            for j in range(i + 1, p):
                s, _ = joint_sum(order, bounds, codes[j], cards[j], scratch, table, scale)
                null[i, j] += s


def pair_sums(codes, cards, sums: Sums, *, draws: int = 0, seed: int = 0):
    """Count all pairs i < j: joint sums (p, p), and their total over ``draws`` permutations of column i (p, p)."""
    p = len(codes)
    joint, null = np.zeros((p, p), dtype=np.int64), np.zeros((p, p), dtype=np.int64)
    run = partial(_pairs, codes, cards, draws, np.int64(seed), sums.table, sums.scale, joint, null)
    in_parts(run, p, STEPS * codes.size * (1 + draws) * p / 2)
    return joint, null


class AnchorSums:
    """What :func:`anchor_sums` counted, one entry for each column crossed with the anchor.

    Attributes
    ----------
    joint, margin : ndarray of shape (m,), int64
        Sums over (anchor, column, target) and over (anchor, column).
    cells : ndarray of shape (m,), int64
        How many (anchor, column) occur.
    freedom : ndarray of shape (m,), int64
        Degrees of freedom of the target given the anchor: Σ over its values of (columns - 1)(targets - 1) seen there.
    free : ndarray of shape (m, draws), int64
        ``joint`` with the target shuffled over all rows; 0 where not asked for.
    held : ndarray of shape (m, draws), int64
        ``joint`` with the target shuffled within the values of the anchor; 0 where the counts are dense enough for
        ``freedom`` to do (``dense``).
    dense : ndarray of shape (m,), bool
    """

    def __init__(self, joint, margin, cells, freedom, free, held, dense) -> None:
        self.joint, self.margin, self.cells, self.freedom = joint, margin, cells, freedom
        self.free, self.held, self.dense = free, held, dense


@njit(cache=True, nogil=True)
def _targets(order, bounds, y, draws, seed, key):
    """Shuffle the target over all rows and within the groups; and the number of its values in each group."""
    n = order.size
    free = np.empty((draws, n), dtype=y.dtype)
    held = np.empty((draws, n), dtype=y.dtype)
    for k in range(draws):
        for r in range(n):
            free[k, r] = y[r]
        shuffle(free[k], state(seed, key, 2 * k))
        moved = order.copy()
        for g in range(bounds.size - 1):
            part = moved[bounds[g] : bounds[g + 1]]
            shuffle(part, state(state(seed, key, 2 * k + 1), g, 0))
        for r in range(n):
            held[k, order[r]] = y[moved[r]]
    return free, held


@njit(cache=True, nogil=True)
def _distinct(order, bounds, y, card_y):
    out = np.zeros(bounds.size - 1, dtype=np.int64)
    seen = np.full(card_y, -1, dtype=np.int64)
    for g in range(bounds.size - 1):
        for r in range(bounds[g], bounds[g + 1]):
            v = np.int64(y[order[r]])
            if seen[v] != g:
                seen[v] = g
                out[g] += 1
    return out


@njit(cache=True, nogil=True)
def _anchored(
    order, bounds, kinds, codes, cards, others, whole, y, card_y, free, held, table, scale,
    joint, margin, cells, freedom, null, null_held, dense, start, stop,
):  # fmt: skip
    n, draws = order.size, free.shape[0]
    for q in range(start, stop):
        b = codes[others[q]]
        place = np.full(cards[others[q]], -1, dtype=np.int32)
        crossed = np.empty(n, dtype=np.int32)
        count = np.int32(0)
        for g in range(bounds.size - 1):
            before = count
            for r in range(bounds[g], bounds[g + 1]):
                v = np.int64(b[order[r]])
                if place[v] < before:  # not seen in this group: places of earlier groups are smaller
                    place[v] = count
                    count += 1
                crossed[r] = place[v]
            if count > before:
                freedom[q] += (count - before - 1) * (kinds[g] - 1)
        inner, inner_bounds = group(crossed, count)
        for r in range(n):
            inner[r] = order[inner[r]]
        cells[q] = count
        for c in range(count):
            margin[q] += klogk(np.int64(inner_bounds[c + 1] - inner_bounds[c]), table, scale)
        scratch = np.zeros(card_y, dtype=np.int32)
        joint[q], _ = joint_sum(inner, inner_bounds, y, card_y, scratch, table, scale)
        dense[q] = n > 5 * np.int64(count) * card_y
        for k in range(draws):
            if whole[q]:
                null[q, k], _ = joint_sum(inner, inner_bounds, free[k], card_y, scratch, table, scale)
            if not dense[q]:
                null_held[q, k], _ = joint_sum(inner, inner_bounds, held[k], card_y, scratch, table, scale)


def anchor_sums(
    anchor: NDArray,
    card: int,
    codes: NDArray,
    cards: NDArray[np.int64],
    others: NDArray[np.int64],
    whole: NDArray[np.bool_],
    y: NDArray,
    card_y: int,
    sums: Sums,
    *,
    draws: int = 0,
    seed: int = 0,
    key: int = 0,
) -> AnchorSums:
    """Count the crosses of one column with others against a target, without building them.

    Parameters
    ----------
    anchor : ndarray of shape (n,)
        Codes 0..card-1; it may itself be a cross.
    card : int
    codes : ndarray of shape (p, n)
    cards : ndarray of shape (p,)
    others : ndarray of shape (m,)
        Rows of ``codes`` to cross the anchor with.
    whole : ndarray of shape (m,), bool
        Whether the free shuffles are wanted.
    y : ndarray of shape (n,)
    card_y : int
    sums : Sums
    draws : int, default 0
    seed : int, default 0
    key : int, default 0
        What identifies the anchor's draws.

    Returns
    -------
    AnchorSums
    """
    order, bounds = group(anchor, np.int64(card))
    free, held = _targets(order, bounds, y, draws, np.int64(seed), np.int64(key))
    kinds = _distinct(order, bounds, y, np.int64(card_y))
    others, whole = np.asarray(others, dtype=np.int64), np.asarray(whole, dtype=np.bool_)
    joint, margin, cells, freedom = (np.zeros(others.size, dtype=np.int64) for _ in range(4))
    nulls = [np.zeros((others.size, draws), dtype=np.int64) for _ in range(2)]
    found = (joint, margin, cells, freedom, *nulls, np.zeros(others.size, dtype=np.bool_))
    given = (order, bounds, kinds, codes, cards, others, whole, y, np.int64(card_y), free, held, sums.table, sums.scale)
    in_parts(partial(_anchored, *given, *found), others.size, STEPS * order.size * others.size * (2 + 2 * draws))
    return AnchorSums(*found)


@njit(cache=True, nogil=True)
def _cross_codes(order, bounds, b, card):
    place = np.full(card, -1, dtype=np.int32)
    crossed = np.empty(order.size, dtype=np.int32)
    count = np.int32(0)
    for g in range(bounds.size - 1):
        before = count
        for r in range(bounds[g], bounds[g + 1]):
            v = np.int64(b[order[r]])
            if place[v] < before:
                place[v] = count
                count += 1
            crossed[order[r]] = place[v]
    return crossed, count


def cross_codes(a: NDArray, card_a: int, b: NDArray, card_b: int) -> tuple[NDArray[np.int32], int]:
    """Return the codes 0..c-1 of the pairs of values of two columns, and c.

    >>> cross_codes(np.array([0, 1, 0]), 2, np.array([0, 0, 1]), 2)
    (array([0, 2, 1], dtype=int32), 3)
    """
    order, bounds = group(a, np.int64(card_a))
    crossed, count = _cross_codes(order, bounds, b, np.int64(card_b))
    return crossed, int(count)
