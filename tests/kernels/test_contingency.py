"""Counts of columns against one target, and their entropies, against naive twins."""

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from skerry.kernels import contingency as c

CASES = [(2, 2, 50), (1, 3, 20), (10, 100, 500), (400, 3, 500), (300, 300, 301), (2, 2, 1), (5, 5, 5)]


def draw(ka, kb, n, seed=0):
    rng = np.random.default_rng(seed)
    return c.encode(rng.integers(0, ka, n))[0], c.encode(rng.integers(0, kb, n))[0]


@pytest.mark.parametrize(("ka", "kb", "n"), CASES)
def test_plug_in_equals_scikit_learn(ka, kb, n):
    a, b = draw(ka, kb, n)
    assert c.mutual_information(a, b) == pytest.approx(mutual_info_score(a, b), abs=1e-10)


def test_permutation_keeps_both_margins():
    # one group of every row: any regrouping has the same joint sum
    y = c.encode(np.random.default_rng(0).integers(0, 9, 200))[0]
    codes, cards = c.pack([np.zeros(200, np.int32)])
    joint, null = c.target_sums(codes, cards, y, 9, c.Sums(200), draws=3)
    assert (null == joint[0]).all()


@pytest.mark.parametrize(("ka", "kb", "n"), CASES)
def test_shift_equals_naive(ka, kb, n):
    a, b = draw(ka, kb, n, 5)
    counts = np.bincount(b)
    shifted = np.array([a[(i + counts[b[i]]) % n] for i in range(n)])

    def conditional(u, v):
        total = 0.0
        for w in np.unique(v):
            p = np.bincount(u[v == w]) / (v == w).sum()
            total -= (v == w).mean() * (p[p > 0] * np.log(p[p > 0])).sum()
        return total

    codes, cards = c.pack([a])
    sums = c.Sums(n)
    joint, moved = c.shift_sums(codes, cards, b, int(b.max()) + 1, sums)
    assert sums.value(joint - moved)[0] == pytest.approx(conditional(shifted, b) - conditional(a, b), abs=1e-10)


def test_relabelling_changes_no_bit():
    rng = np.random.default_rng(2)
    a, b = rng.integers(0, 60, 5000), rng.integers(0, 40, 5000)
    pa, pb = rng.permutation(60), rng.permutation(40)
    assert c.mutual_information(a, b) == c.mutual_information(pa[a], pb[b])


@pytest.mark.parametrize("card", [2, 10, 100, 1_000, 10_000])
def test_shift_at_full_mini_batches(card):
    rng = np.random.default_rng(card)
    n = 16_384
    a, b = c.encode(rng.integers(0, card, n))[0], c.encode(rng.integers(0, 3, n))[0]
    moved = a[(np.arange(n) + np.bincount(b)[b]) % n]
    codes, cards = c.pack([a])
    sums = c.Sums(n)
    joint, shifted = c.shift_sums(codes, cards, b, 3, sums)
    naive = mutual_info_score(a, b) - mutual_info_score(moved, b)
    # H(a) and H(moved) may differ where the shift is no permutation: compare conditional entropies
    counts = [np.bincount(v, minlength=card) for v in (a, moved)]
    entropy = [-(k[k > 0] / n * np.log(k[k > 0] / n)).sum() for k in counts]
    assert sums.value(joint - shifted)[0] == pytest.approx(naive + entropy[1] - entropy[0], abs=1e-9)


def test_draws_belong_to_the_key_not_to_the_company():
    rng = np.random.default_rng(0)
    columns = [c.encode(rng.integers(0, 20, 500))[0] for _ in range(3)]
    y = c.encode(rng.integers(0, 4, 500))[0]
    codes, cards = c.pack(columns)
    sums = c.Sums(500)
    _, null = c.target_sums(codes, cards, y, 4, sums, draws=2, seed=5)
    _, alone = c.target_sums(codes[2:], cards[2:], y, 4, sums, draws=2, seed=5, keys=np.array([2]))
    assert (null[2] == alone[0]).all()
    assert len({tuple(r) for r in null}) == 3
