"""What chance reaches: the exact mean against scikit-learn, drawn tables against the mean."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics.cluster import contingency_matrix, expected_mutual_information

from skerry.kernels import contingency as c
from skerry.kernels import contingency_expected as e

CASES = [(2, 2, 50), (1, 3, 20), (10, 100, 500), (400, 3, 500), (300, 300, 301), (2, 2, 1), (5, 5, 5)]


def theirs(a, b):
    return expected_mutual_information(contingency_matrix(a, b, sparse=True).astype(np.int64), a.size)


@pytest.mark.parametrize(("ka", "kb", "n"), CASES)
def test_mean_equals_scikit_learn(ka, kb, n):
    rng = np.random.default_rng(0)
    a, b = c.encode(rng.integers(0, ka, n))[0], c.encode(rng.integers(0, kb, n))[0]
    assert e.expected_mutual_information(np.bincount(a), np.bincount(b)) == pytest.approx(theirs(a, b), abs=1e-8)


def test_mean_on_skewed_margins():
    rng = np.random.default_rng(3)
    a, b = (c.encode(rng.zipf(1.3, 3000) % 500)[0] for _ in range(2))
    assert e.expected_mutual_information(np.bincount(a), np.bincount(b)) == pytest.approx(theirs(a, b), abs=1e-8)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=60))
def test_mean_of_any_table(rows):
    a, b = np.array(rows).T
    got = e.expected_mutual_information(np.bincount(a), np.bincount(b))
    assert got == pytest.approx(max(theirs(a, b), 0.0), abs=1e-8)


def test_digits_last_for_a_hundred_million_rows():
    # counts so large that the leading term (|a| - 1)(|b| - 1) / 2n is the mean to four digits
    n = 100_000_000
    mean = e.expected_mutual_information([n // 10] * 10, [n // 4] * 4)
    assert mean == pytest.approx(27 / (2 * n), rel=1e-3)


def test_drawn_tables_have_the_exact_mean_and_the_margins():
    rng = np.random.default_rng(1)
    a, b = c.encode(rng.zipf(1.5, 2_000) % 60)[0], c.encode(rng.integers(0, 7, 2_000))[0]
    ca, cb = np.bincount(a), np.bincount(b)
    sums = c.Sums(2_000)
    codes, cards = c.pack([a, b])
    margins = sums.value(sums.margins(codes, cards).sum())
    drawn = np.log(2_000) + sums.value(e.margin_draws(ca, cb, sums, draws=400, seed=2)) - margins
    error = drawn.std(ddof=1) / np.sqrt(drawn.size)
    assert abs(drawn.mean() - e.expected_mutual_information(ca, cb)) < 4 * error
    assert (e.margin_draws([7], [3, 4], sums, draws=2) == sums.table[3] + sums.table[4]).all()


def test_drawn_tables_belong_to_seed_and_key():
    sums = c.Sums(300)
    one = e.margin_draws([100] * 3, [150, 150], sums, draws=5, seed=1, key=2)
    assert (one == e.margin_draws([100] * 3, [150, 150], sums, draws=5, seed=1, key=2)).all()
    assert (one != e.margin_draws([100] * 3, [150, 150], sums, draws=5, seed=1, key=3)).any()
