"""Counts and entropies against naive twins."""

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score
from sklearn.metrics.cluster import contingency_matrix, expected_mutual_information

from skerry.kernels import contingency as c

CASES = [(2, 2, 50), (1, 3, 20), (10, 100, 500), (400, 3, 500), (300, 300, 301), (2, 2, 1), (5, 5, 5)]


def naive_nlogn(*columns):
    counts = np.unique(np.stack(columns), axis=1, return_counts=True)[1]
    return float((counts * np.log(counts)).sum())


def draw(ka, kb, n, seed=0):
    rng = np.random.default_rng(seed)
    return c.encode(rng.integers(0, ka, n))[0], c.encode(rng.integers(0, kb, n))[0]


@pytest.mark.parametrize(("ka", "kb", "n"), CASES)
def test_plug_in_equals_scikit_learn(ka, kb, n):
    a, b = draw(ka, kb, n)
    assert c.mutual_information(a, b) == pytest.approx(mutual_info_score(a, b), abs=1e-10)


@pytest.mark.parametrize(("ka", "kb", "n"), CASES)
def test_expected_equals_scikit_learn(ka, kb, n):
    a, b = draw(ka, kb, n)
    ours = c.expected_mutual_information(np.bincount(a), np.bincount(b))
    theirs = expected_mutual_information(contingency_matrix(a, b, sparse=True).astype(np.int64), n)
    assert ours == pytest.approx(theirs, abs=1e-8)


def test_expected_on_skewed_margins():
    rng = np.random.default_rng(3)
    a, b = (c.encode(rng.zipf(1.3, 3000) % 500)[0] for _ in range(2))
    theirs = expected_mutual_information(contingency_matrix(a, b, sparse=True).astype(np.int64), 3000)
    assert c.expected_mutual_information(np.bincount(a), np.bincount(b)) == pytest.approx(theirs, abs=1e-8)


def test_pairs_and_crosses_equal_naive():
    rng = np.random.default_rng(1)
    columns = [c.encode(rng.integers(0, k, 400))[0] for k in (2, 7, 150, 390)]
    y = c.encode(rng.integers(0, 3, 400))[0]
    codes, cards = c.pack(columns)
    sums = c.Sums(400)
    joint, null = c.pair_sums(codes, cards, sums, draws=1)
    pairs = np.array([(i, j) for i in range(4) for j in range(i + 1, 4)])
    cj, cm, cells, cn = c.cross_sums(codes, cards, pairs, y, 3, sums, draws=2)
    for q, (i, j) in enumerate(pairs):
        assert sums.value(joint[i, j]) * 400 == pytest.approx(naive_nlogn(columns[i], columns[j]), abs=1e-8)
        assert sums.value(cm[q]) * 400 == pytest.approx(naive_nlogn(columns[i], columns[j]), abs=1e-8)
        assert sums.value(cj[q]) * 400 == pytest.approx(naive_nlogn(columns[i], columns[j], y), abs=1e-8)
        assert cells[q] == np.unique(np.stack([columns[i], columns[j]]), axis=1).shape[1]
    assert (null[np.triu_indices(4, 1)] >= 0).all()
    assert cn.shape == (6, 2)


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
