"""What mutual information chance alone reaches, margins fixed: its exact mean, and draws of whole tables.

The mean is that of Vinh, Epps & Bailey, "Information theoretic measures for clusterings comparison", JMLR 11 (2010).
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skerry.kernels.compiled import njit
from skerry.kernels.contingency import Sums, klogk, state
from skerry.kernels.threads import in_parts

__all__ = ["expected_mutual_information", "margin_draws"]


_TINY = 1e-18


@njit(cache=True, nogil=True)
def _expected_cells(sizes_a, times_a, sizes_b, times_b, n):
    """Σ over cells of E[k·ln k] with k hypergeometric.

    Walk from the mode both ways until nothing is added. Weights are relative to the mode's and divided by their sum:
    a probability by factorials loses ln n! · 1e-16 of its digits, more than the whole mean at ten million rows.
    """
    total = 0.0
    for i in range(sizes_a.size):
        a = sizes_a[i]
        for j in range(sizes_b.size):
            b = sizes_b[j]
            low, high = max(0, a + b - n), min(a, b)
            if high < 2:
                continue
            mode = min(max(np.int64(((a + 1.0) * (b + 1.0)) // (n + 2.0)), low), high)
            weight = 1.0
            cell = mode * math.log(mode) if mode > 1 else 0.0
            pk = 1.0
            k = mode
            while k < high:
                pk *= (a - k) * (b - k) / ((k + 1.0) * (n - a - b + k + 1.0))
                k += 1
                term = pk * k * math.log(k)
                weight += pk
                cell += term
                if k > 2 and term < _TINY * cell:
                    break
            pk = 1.0
            k = mode
            while k > low:
                pk *= k * (n - a - b + np.float64(k)) / ((a - k + 1.0) * (b - k + 1.0))
                k -= 1
                weight += pk
                if k > 1:
                    cell += pk * k * math.log(k)
                if pk < _TINY:
                    break
            total += cell / weight * times_a[i] * times_b[j]
    return total


def expected_mutual_information(counts_a: ArrayLike, counts_b: ArrayLike) -> float:
    """Return the exact mean of the mutual information of two columns with these counts, rows shuffled, in nats.

    The quantity of Vinh, Epps & Bailey (2010, eq. 24a), grouped by equal counts, so that a column of a million values
    that occur a few times each costs no more than a column of a few values.

    Parameters
    ----------
    counts_a, counts_b : array of shape (|a|,) and (|b|,), int
        How often each value occurs; of one sum.

    Returns
    -------
    float

    Examples
    --------
    >>> round(expected_mutual_information([5, 5], [5, 5]), 4)
    0.0597
    """
    counts_a, counts_b = (np.asarray(c, dtype=np.int64) for c in (counts_a, counts_b))
    counts_a, counts_b = counts_a[counts_a > 0], counts_b[counts_b > 0]
    n = int(counts_a.sum())
    if counts_a.size <= 1 or counts_b.size <= 1:
        return 0.0
    (sa, ta), (sb, tb) = (np.unique(c, return_counts=True) for c in (counts_a, counts_b))
    cells = _expected_cells(sa, ta, sb, tb, n)
    marginal = (ta * sa * np.log(sa)).sum() + (tb * sb * np.log(sb)).sum()
    return max(0.0, float(math.log(n) + (cells - marginal) / n))


@njit(cache=True, nogil=True)
def _margin_draws(counts_a, counts_b, seed, key, table, scale, out, start, stop):
    for k in range(start, stop):
        np.random.seed(np.int64(state(seed, key, k) & np.uint64(0x7FFFFFFF)))  # noqa: NPY002 - the thread's own state
        rest = counts_b.copy()
        total = np.int64(0)
        for i in range(counts_a.size):
            need = counts_a[i]
            pool = rest.sum()
            for j in range(rest.size):
                if need == 0:
                    break
                others = pool - rest[j]
                if rest[j] == 0:
                    take = np.int64(0)
                elif others == 0:
                    take = need
                else:
                    take = np.int64(np.random.hypergeometric(rest[j], others, need))  # noqa: NPY002
                pool = others
                rest[j] -= take
                need -= take
                total += klogk(take, table, scale)
        out[k] = total


def margin_draws(
    counts_a: ArrayLike, counts_b: ArrayLike, sums: Sums, *, draws: int, seed: int = 0, key: int = 0
) -> NDArray[np.int64]:
    """Draw tables with both margins fixed and return Σ n·ln n of each, without any rows.

    What a permutation of the rows would give, in O(|a|·|b|) time and memory of the margins.

    Parameters
    ----------
    counts_a, counts_b : array of shape (|a|,) and (|b|,), int
        Of one sum.
    sums : Sums
    draws : int
    seed, key : int, default 0

    Returns
    -------
    ndarray of shape (draws,), int64

    Examples
    --------
    >>> sums = Sums(4)
    >>> margin_draws([4], [2, 2], sums, draws=1) == 2 * sums.table[2]
    array([ True])
    """
    a, b = (np.asarray(c, dtype=np.int64) for c in (counts_a, counts_b))
    a, b, out = a[a > 0], b[b > 0], np.zeros(draws, dtype=np.int64)
    run = partial(_margin_draws, a, b, np.int64(seed), np.int64(key), sums.table, sums.scale, out)
    in_parts(run, draws, 16 * draws * a.size * b.size)
    return out
