"""Crossed columns ``A AND B``: which to count, what they tell about the target, and what they tell beyond their parts.

Follows the interactions of OutRank (Škrlj & Mramor, RecSys 2023). A cross inherits all that its columns tell, so its
information against a shuffled target is no evidence of an interaction. Its p-value tests the gain instead: for each
column left out in turn, the target is shuffled within the values of the others (which keeps all that they tell), and
the largest p is taken: the cross must beat every one of its parents (an intersection-union test).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skerry.kernels import contingency as kernel
from skerry.kernels.contingency_pairs import anchor_sums, cross_codes

__all__ = ["CrossPlan", "CrossScores", "gamma_test", "score_crosses"]

LISTED = 2_000_000  # more combinations than this are drawn, not listed


class CrossPlan:
    """Chooses crosses so that the whole space is covered in turn.

    Parameters
    ----------
    order : int
        Largest number of columns in a cross.
    limit : int
        Crosses per block.
    seed : int

    Attributes
    ----------
    evaluated : dict of tuple of str to int
        How often each cross was counted.
    """

    def __init__(self, order: int, limit: int, seed: int) -> None:
        self.order, self.limit, self.seed = order, limit, seed
        self.evaluated: dict[tuple[str, ...], int] = {}
        self.blocks = 0

    def choose(self, names: list[str]) -> list[tuple[int, ...]]:
        """Return the crosses of this block as places in ``names``: those evaluated least often first."""
        self.blocks += 1
        p = len(names)
        orders = range(2, min(self.order, p) + 1)
        total = sum(math.comb(p, r) for r in orders)
        rng = np.random.default_rng([self.seed, self.blocks])
        if total <= self.limit:
            chosen = [c for r in orders for c in itertools.combinations(range(p), r)]
        elif total <= LISTED:
            every = [c for r in orders for c in itertools.combinations(range(p), r)]
            age = rng.random(total)
            if self.evaluated:
                age += [self.evaluated.get(tuple(names[j] for j in c), 0) for c in every]
            chosen = [every[i] for i in np.argsort(age)[: self.limit]]
        else:  # too many to list: draw until enough are new
            drawn: dict[tuple[int, ...], None] = {}
            weights = np.array([math.comb(p, r) for r in orders], dtype=np.float64)
            while len(drawn) < self.limit:
                r = int(rng.choice(list(orders), p=weights / weights.sum()))
                drawn[tuple(sorted(int(v) for v in rng.choice(p, r, replace=False)))] = None
            chosen = list(drawn)
        for c in chosen:
            key = tuple(names[j] for j in c)
            self.evaluated[key] = self.evaluated.get(key, 0) + 1
        return sorted(chosen, key=lambda c: (len(c), c))


@dataclass
class CrossScores:
    """Of m crosses: information, its mean by chance, cardinality; gain over the best parent, its z and p."""

    mi: NDArray[np.float64]
    chance: NDArray[np.float64]
    cells: NDArray[np.int64]
    gain: NDArray[np.float64]
    z: NDArray[np.float64]
    p: NDArray[np.float64]


def gamma_test(
    value: NDArray[np.float64], mean: NDArray[np.float64], n: int, draws: float = math.inf
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return z and the upper p of a plug-in information whose null has this mean.

    2n·MI of independent columns is chi-squared in the limit, so its variance is mean/n. A mean of ``draws``
    permutations is itself uncertain, which widens the law by 1 + 1/draws.

    >>> z, p = gamma_test(np.array([0.01]), np.array([0.0005]), 1000)  # 2n·MI = 20, one degree of freedom
    >>> bool(abs(p[0] - 7.7e-6) < 1e-7)
    True
    """
    from scipy.stats import gamma

    mean = np.maximum(mean, 1e-12)
    variance = mean / n * (1.0 + 1.0 / draws)
    return (value - mean) / np.sqrt(variance), gamma.sf(value, mean**2 / variance, scale=variance / mean)


def score_crosses(
    codes: NDArray,
    cards: NDArray[np.int64],
    combos: list[tuple[int, ...]],
    y: NDArray,
    card_y: int,
    sums: kernel.Sums,
    *,
    draws: int,
    seed: int,
    keys: NDArray[np.int64],
) -> CrossScores:
    """Count crosses against the target.

    Parameters
    ----------
    codes : ndarray of shape (p, n)
    cards : ndarray of shape (p,)
    combos : list of m tuples of int
        Rows of ``codes``, two or more each.
    y : ndarray of shape (n,)
    card_y : int
    sums : Sums
    draws : int
        Shuffles of each null.
    seed : int
    keys : ndarray of shape (p,), int64
        What identifies a column's draws.

    Returns
    -------
    CrossScores
    """
    m, n = len(combos), sums.n
    out = CrossScores(*(np.zeros(m) for _ in range(6)))
    out.cells = np.zeros(m, dtype=np.int64)
    out.gain[:], out.z[:], out.p[:] = np.inf, np.inf, 0.0
    own = int(sums.margins(y[None, :], np.array([card_y]))[0])
    base = math.log(n) - float(sums.value(own))
    anchors: dict[tuple[int, ...], list[tuple[int, int, bool]]] = {}
    for q, combo in enumerate(combos):
        for t, column in enumerate(combo):
            rest = combo[:t] + combo[t + 1 :]
            anchors.setdefault(rest, []).append((q, column, t == len(combo) - 1))
    for rest, members in anchors.items():
        anchor, card = codes[rest[0]], int(cards[rest[0]])
        key = int(keys[rest[0]])
        for j in rest[1:]:
            anchor, card = cross_codes(anchor, card, codes[j], int(cards[j]))
            key = (key * 1_000_003 + int(keys[j])) % (1 << 61)
        place = np.array([q for q, _, _ in members])
        whole = np.array([w for _, _, w in members])
        got = anchor_sums(
            anchor, card, codes, cards, np.array([c for _, c, _ in members]), whole, y, card_y, sums,
            draws=draws, seed=seed, key=key,
        )  # fmt: skip
        alone = anchor[None, :]
        size = np.array([card], dtype=np.int64)
        joint, _ = kernel.target_sums(alone, size, y, card_y, sums)
        parent = float(sums.value(joint[0] - sums.margins(alone, size)[0]))
        information = sums.value(got.joint - got.margin)
        more = information - parent  # I(column; target | anchor)
        drawn = sums.value(got.held - got.margin[:, None]).mean(axis=1) - parent if draws else np.zeros(more.size)
        by_chance = np.where(got.dense, got.freedom / (2 * n), drawn)
        z, p = gamma_test(more, by_chance, n, max(draws, 1))
        z_dense, p_dense = gamma_test(more, by_chance, n)
        nothing = got.freedom == 0  # the target is constant within the anchor's values, or the column is
        z = np.where(nothing, 0.0, np.where(got.dense, z_dense, z))
        p = np.where(nothing, 1.0, np.where(got.dense, p_dense, p))
        out.gain[place] = np.minimum(out.gain[place], np.where(nothing, 0.0, more - by_chance))
        out.z[place] = np.minimum(out.z[place], z)
        out.p[place] = np.maximum(out.p[place], p)
        at = place[whole]
        out.mi[at] = base + information[whole]
        out.cells[at] = got.cells[whole]
        if draws:
            free = base + sums.value(got.free[whole] - got.margin[whole][:, None])
            out.chance[at] = free.mean(axis=1)
    return out
