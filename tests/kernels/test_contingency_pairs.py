"""Counts of pairs and of crosses against naive twins, and what their nulls keep."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.kernels import contingency as c
from skerry.kernels import contingency_pairs as pairs


def naive(*columns):
    counts = np.unique(np.stack(columns), axis=1, return_counts=True)[1]
    return float((counts * np.log(counts)).sum())


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(1)
    columns = [c.encode(rng.integers(0, k, 400))[0] for k in (2, 7, 150, 390, 1)]
    y = c.encode(rng.integers(0, 3, 400))[0]
    codes, cards = c.pack(columns)
    return columns, y, codes, cards, c.Sums(400)


def test_pairs_equal_naive(table):
    columns, _, codes, cards, sums = table
    joint, null = pairs.pair_sums(codes, cards, sums, draws=1)
    for i in range(5):
        for j in range(i + 1, 5):
            assert sums.value(joint[i, j]) * 400 == pytest.approx(naive(columns[i], columns[j]), abs=1e-8)
    assert (null[np.triu_indices(5, 1)] >= 0).all()
    assert (null[:4, 4] == joint[:4, 4]).all()  # beside a constant every permutation is the same


def test_crosses_equal_naive(table):
    columns, y, codes, cards, sums = table
    for anchor in range(4):
        others = np.array([j for j in range(5) if j != anchor])
        got = pairs.anchor_sums(
            columns[anchor], int(cards[anchor]), codes, cards, others, np.ones(4, bool), y, 3, sums, draws=2
        )
        for q, j in enumerate(others):
            a, b = columns[anchor], columns[j]
            assert sums.value(got.margin[q]) * 400 == pytest.approx(naive(a, b), abs=1e-8)
            assert sums.value(got.joint[q]) * 400 == pytest.approx(naive(a, b, y), abs=1e-8)
            assert got.cells[q] == np.unique(np.stack([a, b]), axis=1).shape[1]
            groups = [(np.unique(b[a == v]).size, np.unique(y[a == v]).size) for v in np.unique(a)]
            assert got.freedom[q] == sum((k - 1) * (t - 1) for k, t in groups)
            assert got.dense[q] == (400 > 5 * got.cells[q] * 3)


def test_held_shuffles_keep_what_the_anchor_tells(table):
    columns, y, codes, cards, sums = table
    # crossed with the constant, the cross is the anchor: a shuffle within its values moves nothing
    got = pairs.anchor_sums(columns[2], 150, codes, cards, np.array([4]), np.array([True]), y, 3, sums, draws=3)
    assert not got.dense[0]
    assert (got.held[0] == got.joint[0]).all()
    assert (got.free[0] != got.joint[0]).any()


def test_free_shuffles_have_the_mean_of_chance():
    from skerry.kernels.contingency_expected import expected_mutual_information

    rng = np.random.default_rng(3)
    a, b = c.encode(rng.integers(0, 12, 3000))[0], c.encode(rng.integers(0, 9, 3000))[0]
    y = c.encode(rng.integers(0, 3, 3000))[0]
    codes, cards = c.pack([a, b])
    sums = c.Sums(3000)
    got = pairs.anchor_sums(a, 12, codes, cards, np.array([1]), np.array([True]), y, 3, sums, draws=60)
    own = sums.margins(y[None, :], np.array([3]))[0]
    drawn = np.log(3000) + sums.value(got.free[0] - got.margin[0] - own)
    both = np.bincount(pairs.cross_codes(a, 12, b, 9)[0])
    exact = expected_mutual_information(both, np.bincount(y))
    assert abs(drawn.mean() - exact) < 4 * drawn.std(ddof=1) / np.sqrt(60)


def test_result_does_not_depend_on_threads(table):
    import numba

    columns, y, codes, cards, sums = table

    def count():
        got = pairs.anchor_sums(
            columns[1], 7, codes, cards, np.array([0, 2, 3]), np.ones(3, bool), y, 3, sums, draws=2, seed=9
        )
        return [got.joint, got.free, got.held, *pairs.pair_sums(codes, cards, sums, draws=2, seed=9)]

    many = count()
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        one = count()
    finally:
        numba.set_num_threads(before)
    assert all((u == v).all() for u, v in zip(many, one, strict=True))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=80))
def test_cross_codes_are_the_pairs(rows):
    a, b = np.array(rows).T
    codes, count = pairs.cross_codes(a, int(a.max()) + 1, b, int(b.max()) + 1)
    values = {}
    for key, code in zip(rows, codes, strict=True):
        assert values.setdefault(key, code) == code
    assert sorted(values.values()) == list(range(count))
