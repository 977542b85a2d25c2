"""Distances to a reference set against the naive double loop."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from skerry.kernels import reference_distance
from skerry.kernels.reference_distance import kth_reference_distance, reference_column_squares


def naive(X, R, k):
    with np.errstate(over="ignore"):
        squares = ((X[:, None].astype(np.float64) - R[None]) ** 2).sum(-1)
    return np.sort(np.sqrt(squares), axis=1)[:, k - 1]


@pytest.mark.parametrize("kind", ["random", "ties", "constant", "huge", "tiny"])
@pytest.mark.parametrize("d", [1, 3, 40])
def test_equals_the_naive_double_loop(kind, d):
    rng = np.random.default_rng(d)
    X, R = rng.normal(size=(25, d)), rng.normal(size=(17, d))
    if kind == "ties":
        X, R = np.round(X), np.round(R)
    elif kind == "constant":
        X[:], R[:] = 2.0, 2.0
    elif kind in ("huge", "tiny"):
        scale = 1e120 if kind == "huge" else 1e-120
        X, R = X * scale, R * scale
    for k in (1, 5, 17):
        np.testing.assert_allclose(kth_reference_distance(X, R, k), naive(X, R, k), rtol=1e-12)


@pytest.mark.parametrize(("dtype", "large"), [(np.float32, 1e37), (np.float64, 1e300)])
@given(data=st.data())
def test_hostile_values(data, dtype, large):
    known = np.array([0.0, -0.0, 1.0, -1.0, 0.1, 3.0, 1e-310, large, -large], dtype=dtype)
    values = st.sampled_from(known.tolist())
    d = data.draw(st.integers(1, 4))
    X = data.draw(arrays(dtype, st.tuples(st.integers(1, 8), st.just(d)), elements=values))
    R = data.draw(arrays(np.float64, st.tuples(st.integers(1, 12), st.just(d)), elements=values))
    k = data.draw(st.integers(1, len(R)))
    np.testing.assert_allclose(kth_reference_distance(X, R, k), naive(X, R, k), rtol=1e-12)


@pytest.mark.parametrize("kind", ["random", "ties", "sorted", "all equal", "misleading"])
@pytest.mark.parametrize("k", [1, 26, 128, 129, 512])
def test_many_references(kind, k):
    """Enough of them that a sample bounds the search; in the last kind it says nothing about the rest."""
    rng = np.random.default_rng(0)
    X, R = rng.normal(size=(40, 3)), rng.normal(size=(512, 3))
    if kind == "ties":
        X, R = X.round(), R.round()
    elif kind == "sorted":
        R = R[np.argsort(R[:, 0])]
    elif kind == "all equal":
        R[:] = 1.0
    elif kind == "misleading":
        R[::8] *= 1e-6
    np.testing.assert_allclose(kth_reference_distance(X, R, k), naive(X, R, k), rtol=1e-12)


@pytest.mark.parametrize("n", [0, 1, 8, 9])
def test_a_few_rows_are_scored_bit_for_bit_like_many(n):
    rng = np.random.default_rng(n)
    X, R = rng.normal(size=(200, 33)), rng.normal(size=(512, 33))
    want = kth_reference_distance(X, R, 26)[:n]
    np.testing.assert_array_equal(kth_reference_distance(X[:n], R, 26), want)
    np.testing.assert_array_equal(kth_reference_distance(X[:n], np.asfortranarray(R), 26), want)


@pytest.mark.parametrize("kind", ["random", "far from 0", "repeated", "constant", "huge", "tiny", "one huge row"])
@pytest.mark.parametrize("m", [17, 512])
def test_products_of_wide_rows_change_no_bit(monkeypatch, kind, m):
    """Single precision picks the candidates: where it cannot, all are measured, and the answer is the same."""
    rng = np.random.default_rng(m)
    X, R = rng.normal(size=(300, 130)), rng.normal(size=(m, 130))
    if kind == "far from 0":
        X, R = X + 1e4, R + 1e4
    elif kind == "repeated":
        X[:, :] = R[rng.integers(0, m, len(X))]
    elif kind == "constant":
        X[:], R[:] = 2.0, 2.0
    elif kind in ("huge", "tiny"):
        scale = 1e120 if kind == "huge" else 1e-120
        X, R = X * scale, R * scale
    elif kind == "one huge row":
        X[7], R[3] = 1e39, 1e25
    for k in (1, 5, m):
        found = kth_reference_distance(X, R, k)
        with monkeypatch.context() as plain:
            plain.setattr(reference_distance, "WIDE", 1_000)
            np.testing.assert_array_equal(found, kth_reference_distance(X, R, k))
        np.testing.assert_allclose(found, naive(X, R, k), rtol=1e-12)


def test_strided_tables_are_their_copies():
    wide = np.random.default_rng(0).normal(size=(120, 6))
    X, R = wide[::2, ::-2], wide[1::3, ::-2]
    np.testing.assert_array_equal(kth_reference_distance(X, R, 4), kth_reference_distance(X.copy(), R.copy(), 4))


@pytest.mark.parametrize("m", [9, 512])
@pytest.mark.parametrize("kind", ["random", "ties"])
@pytest.mark.parametrize("k", [1, 5, 9])
def test_columns_of_the_nearest(kind, m, k):
    rng = np.random.default_rng(k)
    X, R = rng.normal(size=(60, 3)), rng.normal(size=(m, 3))
    if kind == "ties":
        X, R = X.round(), R.round()
    squared = (X[:, None] - R[None]) ** 2
    near = np.argsort(squared.sum(-1), axis=1, kind="stable")[:, :k]
    want = np.take_along_axis(squared, near[:, :, None], axis=1).mean(axis=1)
    got = reference_column_squares(X, R, k)
    np.testing.assert_allclose(got, want, rtol=1e-12)
    if k == 1:
        np.testing.assert_allclose(np.sqrt(got.sum(1)), kth_reference_distance(X, R, 1), rtol=1e-12)
