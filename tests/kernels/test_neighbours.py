"""Neighbour queries against the naive double loop, on random, tiny and hostile data."""

import pickle
import tracemalloc

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from skerry.kernels.mean_shift import MeanShifter
from skerry.kernels.neighbours import NeighbourIndex, distinct_rows, multiplicities


def tables():
    rng = np.random.default_rng(0)
    blobs = rng.uniform(-10, 10, (4, 20))[rng.integers(0, 4, 1500)] + rng.normal(size=(1500, 20))
    blobs[:20] = rng.uniform(-30, 30, (20, 20))
    yield "blobs", blobs
    yield "low", rng.normal(size=(1200, 3))
    yield "grid", rng.integers(0, 3, (400, 4)) * 1.0
    yield "huge", rng.normal(size=(700, 5)) * np.array([1e100, 1, 1e-100, 1, 1])
    yield "offset", 1e8 + rng.normal(size=(600, 6))
    yield "one", np.array([[2.0, 3.0]])
    yield "flat", np.c_[rng.normal(size=(1100, 3)) @ rng.normal(size=(3, 40)), np.full(1100, 7.0)]
    yield "stray", np.r_[rng.normal(size=(900, 4)), [[1e100, 0, 0, 0], [0, -1e40, 0, 1e-300]]]
    yield "tiny", rng.normal(size=(600, 3)) * 1e-150


@pytest.mark.parametrize("X", [pytest.param(X, id=name) for name, X in tables()])
@pytest.mark.parametrize("algorithm", ["auto", "tree", "tiles"])
def test_equals_naive(X, algorithm):
    rows, counts, inverse = distinct_rows(X)
    assert len(rows) == len(np.unique(X, axis=0)) and counts.sum() == len(X)
    np.testing.assert_array_equal(rows[inverse], X)
    far = np.random.default_rng(1).normal(size=(5, X.shape[1])) * np.array([[1e60], [1e20], [1], [50], [1e-9]])
    Q = np.r_[rows[:40], rows[:5] * 1.01, far]
    naive = np.sort(np.sqrt(((Q[:, None] - rows[None]) ** 2).sum(-1)), axis=1)[:, :7]
    index = NeighbourIndex(rows, algorithm)
    distances, numbers = index.query(Q, 7)
    np.testing.assert_allclose(distances, naive, rtol=1e-12)
    np.testing.assert_allclose(distances, np.sqrt(((Q[:, None] - rows[numbers]) ** 2).sum(-1)), rtol=1e-12)
    one = np.r_[[index.query(q[None], 7)[0][0] for q in Q]]
    np.testing.assert_array_equal(one, distances)


def in_order(X, k):
    """The k nearest rows by float64 distance, then number."""
    D = ((X[:, None] - X[None]) ** 2).sum(-1)
    near = np.lexsort((np.broadcast_to(np.arange(len(X)), D.shape), D))[:, :k]
    return np.sqrt(np.take_along_axis(D, near, 1)), near


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 40).flatmap(
        lambda n: st.integers(1, 10).flatmap(
            lambda d: arrays(np.float64, (n, d), elements=st.sampled_from([0.0, 1.0, 3.0, -2.0, 0.5, 1e100, 1e-100]))
        )
    ),
    st.integers(1, 9),
)
def test_ties_go_to_the_first_row(X, k):
    rows, _, _ = distinct_rows(X)
    want_d, want_i = in_order(rows, min(k, len(rows)))
    for algorithm in ("tiles", "tree"):
        index = NeighbourIndex(rows, algorithm)
        for distances, numbers in (index.query_self(k), index.query(rows, k)):
            np.testing.assert_allclose(distances, want_d, rtol=1e-12)
            if np.abs(rows).max() <= 3.0:  # sums without rounding: ties are ties
                np.testing.assert_array_equal(numbers, want_i)


@pytest.mark.parametrize("X", [pytest.param(X, id=name) for name, X in tables()])
def test_a_table_among_its_own_rows_is_the_same_query_on_any_number_of_threads(X):
    rows, _, _ = distinct_rows(X)
    index = NeighbourIndex(rows, "tiles")
    distances, numbers = index.query_self(5)
    before = numba.get_num_threads()
    try:
        for threads in {1, before}:
            numba.set_num_threads(threads)
            for again in (index.query_self(5), index.query(rows, 5)):
                np.testing.assert_array_equal(again[0], distances)
                np.testing.assert_array_equal(again[1], numbers)
    finally:
        numba.set_num_threads(before)


@pytest.mark.parametrize("algorithm", ["tree", "tiles"])
def test_many_blocks_and_a_grid_full_of_ties(algorithm):
    X = np.random.default_rng(5).integers(0, 9, (9000, 5)) * 1.0
    rows, _, _ = distinct_rows(X)
    distances, numbers = NeighbourIndex(rows, algorithm).query_self(8)
    for i in range(0, len(rows), 400):
        square = ((rows - rows[i]) ** 2).sum(1)
        want = np.lexsort((np.arange(len(rows)), square))[:8]
        np.testing.assert_array_equal(numbers[i], want)
        np.testing.assert_allclose(distances[i], np.sqrt(square[want]))


def test_the_tree_looks_past_a_tie_of_hundreds():
    rng = np.random.default_rng(6)
    grid = np.stack(np.meshgrid(*[np.arange(-20.0, 21.0)] * 3), axis=-1).reshape(-1, 3)
    shell = grid[(grid**2).sum(axis=1) == 326]
    assert len(shell) > 100
    rows = np.r_[np.zeros((1, 3)), shell, grid[(grid**2).sum(axis=1) > 1000][:400]]
    rows = rows[rng.permutation(len(rows))]
    middle = int(np.flatnonzero(~rows.any(axis=1))[0])
    tree, blocks = (NeighbourIndex(rows, algorithm).query_self(9) for algorithm in ("tree", "tiles"))
    for a, b in zip(tree, blocks, strict=True):
        np.testing.assert_array_equal(a, b)
    assert tree[1][middle, 0] == middle


@pytest.mark.parametrize("algorithm", ["tree", "tiles"])
@pytest.mark.parametrize("kind", ["offset", "scales", "both"])
def test_badly_scaled_tables_keep_their_distances(kind, algorithm):
    rng = np.random.default_rng(7)
    X = rng.normal(size=(900, 4)) * (1.0 if kind == "offset" else np.array([1e-6, 1.0, 1e3, 1e9]))
    X = distinct_rows(X + (0.0 if kind == "scales" else 1e8))[0]
    want, near = in_order(X, 7)
    distances, numbers = NeighbourIndex(X, algorithm).query_self(7)
    np.testing.assert_allclose(distances, want, rtol=1e-12)
    np.testing.assert_array_equal(numbers, near)


def test_lists_of_the_tree_take_sixteen_bytes_an_entry():
    rows, k = np.random.default_rng(8).normal(size=(40_000, 3)), 31
    index = NeighbourIndex(rows, "tree")
    index.query(rows[:10], k)
    tracemalloc.start()
    try:
        index.query_self(k)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 * rows.shape[0] * k + (6 << 20)


def test_multiplicities_drop_the_row_itself_once():
    weights = multiplicities(np.array([[0.0, 1.0, 2.0], [0.5, 1.0, 2.0]]), np.array([[2, 1, 5], [1, 1, 5]]), 4)
    assert weights.tolist() == [[1, 1, 2], [1, 1, 2]]


def naive_shift(X, k, m):
    for _ in range(m):
        D = ((X[:, None] - X[None]) ** 2).sum(-1)
        X = X[np.argsort(D, axis=1, kind="stable")[:, :k]].mean(axis=1)
    return X


def test_mean_shift_equals_the_double_loop_and_carries_over_to_the_same_rows():
    X = np.random.default_rng(2).normal(size=(150, 4))
    for m in (1, 3):
        shifter = MeanShifter(6, m).fit(X)
        np.testing.assert_allclose(shifter.training_shift_, naive_shift(X, 6, m), atol=1e-9)
        np.testing.assert_array_equal(shifter.transform(X), shifter.training_shift_)
        np.testing.assert_array_equal(shifter.transform(X[3:4])[0], shifter.training_shift_[3])
    doubled = np.r_[X, X[:40], X[:40]]
    np.testing.assert_allclose(MeanShifter(6, 2).fit(doubled).training_shift_, naive_shift(doubled, 6, 2), atol=1e-9)
    copy = pickle.loads(pickle.dumps(shifter))  # has to move the table's rows again
    np.testing.assert_array_equal(copy.transform(X), shifter.training_shift_)
    np.testing.assert_array_equal(copy.transform(X[:9] + 0.1), shifter.transform(X[:9] + 0.1))


def test_mean_shift_limits_equivariance_and_variance():
    rng = np.random.default_rng(3)
    X = rng.normal(size=(120, 3))
    np.testing.assert_array_equal(MeanShifter(1, 3).fit(X).transform(X), X)
    np.testing.assert_array_equal(MeanShifter(9, 0).fit(X).transform(X), X)
    np.testing.assert_allclose(MeanShifter(500, 1).fit(X).training_shift_, np.tile(X.mean(0), (120, 1)), atol=1e-12)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    moved = MeanShifter(8, 2).fit(2.5 * X @ turn + 7).training_shift_
    np.testing.assert_allclose(moved, 2.5 * MeanShifter(8, 2).fit(X).training_shift_ @ turn + 7, atol=1e-8)
    total = [MeanShifter(8, m).fit(X).training_shift_.var(0).sum() for m in range(4)]
    assert np.all(np.diff(total) <= 0)
