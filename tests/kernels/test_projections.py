"""Fused projections against the plain product and NumPy's histogram."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from skerry.kernels import histograms, projections

VALUES = [0.0, 1.0, -1.0, 0.1, 3.0, -0.0, 1e-310, -1e-310]


def directions(k, d, m, seed=0):
    rng = np.random.default_rng(seed)
    columns = np.array([np.sort(rng.permutation(d)[:m]) for _ in range(k)], dtype=np.int64)
    return columns, rng.normal(size=(k, m))


def naive(X, columns, weights):
    out = np.zeros((len(X), len(columns)))
    for j in range(columns.shape[1]):
        out += weights[:, j] * X[:, columns[:, j]].astype(np.float64)
    return out


def welch(terms, columns, d):
    """Welch's t of the terms (n, k) of the directions with a column against those without it, one by one."""
    out = np.empty((len(terms), d))
    for j in range(d):
        has = (columns == j).any(axis=1)
        a, b = terms[:, has], terms[:, ~has]
        error = a.var(axis=1, ddof=1) / has.sum() + b.var(axis=1, ddof=1) / (~has).sum()
        out[:, j] = (a.mean(axis=1) - b.mean(axis=1)) / np.sqrt(np.maximum(error, 1e-12))
    return out


def check(X, k, m):
    columns, weights = directions(k, X.shape[1], m)
    Z = naive(X, columns, weights)
    low, high = projections.projection_range(X, columns, weights)
    np.testing.assert_array_equal(low, Z.min(0))
    np.testing.assert_array_equal(high, Z.max(0))
    n_bins = np.arange(1, k + 1)
    span = np.where(high - low > 1e-290, high - low, 1.0)
    per_unit = n_bins / span
    counts = projections.projection_counts(X, columns, weights, low, per_unit, n_bins)
    np.testing.assert_array_equal(counts, histograms.count_bins(Z, low, per_unit, n_bins))
    assert counts.sum() == Z.size
    terms, empty = np.log(2.0 * len(X) / np.maximum(counts, 0.5)), np.full(k, 3.0)
    for fresh in (X, X * X.dtype.type(1.5), X[:1] - X.dtype.type(1)):
        state = (low, high, per_unit, n_bins, terms, empty)
        got = projections.projection_scores(fresh, columns, weights, *state)
        want = histograms.look_up(naive(fresh, columns, weights), *state)
        np.testing.assert_allclose(got, want, rtol=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "d", "k", "m"), [(1, 1, 1, 1), (700, 5, 9, 3), (4099, 10, 4, 4), (300, 2, 6, 2)])
def test_equal_to_numpy(dtype, n, d, k, m):
    check(np.random.default_rng(n).normal(size=(n, d)).astype(dtype), k, m)


@pytest.mark.parametrize(("dtype", "large"), [(np.float32, 1e37), (np.float64, 1e300)])
@given(data=st.data())
def test_hostile_values(data, dtype, large):
    values = st.sampled_from(np.array([*VALUES, large, -large], dtype=dtype).tolist())
    X = data.draw(arrays(dtype, st.tuples(st.integers(1, 20), st.integers(1, 5)), elements=values))
    check(X, 3, min(2, X.shape[1]))


def test_strided_tables_are_their_copies():
    check(np.random.default_rng(1).normal(size=(900, 6))[::3, ::-2], 5, 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 256, 700])
def test_contrasts_are_welchs_t(n, dtype):
    rng = np.random.default_rng(n)
    columns, weights = directions(12, 5, 2, seed=3)
    X = rng.normal(size=(n, 5)).astype(dtype)
    Z = naive(X, columns, weights)
    low, high = Z.min(0) - 1, Z.max(0) + 1
    n_bins = np.full(12, 6)
    per_unit = n_bins / (high - low)
    terms, empty = rng.normal(size=(12, 6)), np.full(12, 3.0)
    state = (low, high, per_unit, n_bins, terms, empty)
    for fresh in (X, X * dtype(1.5), X * dtype(1e30)):
        got = projections.projection_contrasts(fresh, columns, weights, *state)
        each = histograms.look_up_terms(naive(fresh, columns, weights), *state)
        np.testing.assert_allclose(got, welch(each, columns, 5), rtol=1e-7, atol=1e-9)
