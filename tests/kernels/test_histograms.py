"""Histogram kernels against NumPy loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from skerry.kernels import histograms

VALUES = [0.0, -0.0, 1.0, -1.0, 0.1, 3.0, 1e-310, -1e-310]


def naive_counts(X, low, per_unit, n_bins):
    counts = np.zeros((X.shape[1], n_bins.max()), dtype=np.int64)
    for row in X.astype(np.float64):
        for j, v in enumerate(row):
            counts[j, int(min(max((v - low[j]) * per_unit[j], 0), n_bins[j] - 1))] += 1
    return counts


def naive_terms(X, low, high, per_unit, n_bins, terms, empty):
    out = np.empty(X.shape)
    for i, row in enumerate(X.astype(np.float64)):
        for j, v in enumerate(row):
            beyond = max(low[j] - v, v - high[j]) * per_unit[j]
            bin_ = int(min(max((v - low[j]) * per_unit[j], 0), n_bins[j] - 1))
            outside = not low[j] <= v <= high[j]
            out[i, j] = empty[j] + np.log1p(min(beyond, 1e300)) if outside else terms[j, bin_]
    return out


def check(X, Z):
    low, high = histograms.column_range(X)
    np.testing.assert_array_equal(low, X.min(axis=0))
    np.testing.assert_array_equal(high, X.max(axis=0))
    n_bins = np.resize([5, 1, 9], X.shape[1])
    per_unit = n_bins / np.where(high - low > 1e-290, high - low, 1.0)
    counts = histograms.count_bins(X, low, per_unit, n_bins)
    np.testing.assert_array_equal(counts, naive_counts(X, low, per_unit, n_bins))
    assert counts.sum() == X.size
    terms, empty = -np.log(np.maximum(counts, 0.5)), np.resize([1.0, 2.0, 3.0], X.shape[1])
    state = (low, high, per_unit, n_bins, terms, empty)
    want = naive_terms(Z, *state)
    np.testing.assert_allclose(histograms.look_up_terms(Z, *state), want, rtol=1e-12)
    np.testing.assert_allclose(histograms.look_up(Z, *state), want.sum(axis=1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["random", "ties", "one row", "constant", "wide"])
def test_kernels_equal_their_twins(kind, dtype):
    rng = np.random.default_rng(0)
    X = {
        "random": rng.normal(size=(203, 3)),
        "ties": rng.integers(0, 3, size=(40, 3)).astype(float),
        "one row": np.ones((1, 3)),
        "constant": np.full((20, 3), 7.0),
        "wide": rng.standard_cauchy(size=(100, 3)) ** 3,
    }[kind].astype(dtype)
    check(X, np.vstack([X, X[:5] * 2 - 1, X[:5] - 30]).astype(dtype))


@pytest.mark.parametrize(("dtype", "large"), [(np.float32, 1e37), (np.float64, 1e300)])
@given(data=st.data())
def test_hostile_values(data, dtype, large):
    values = st.sampled_from(np.array([*VALUES, large, -large], dtype=dtype).tolist())
    d = data.draw(st.integers(1, 4))
    X, Z = (data.draw(arrays(dtype, st.tuples(st.integers(1, 12), st.just(d)), elements=values)) for _ in range(2))
    check(X, Z)


def test_strided_tables_are_their_copies():
    wide = np.random.default_rng(1).normal(size=(300, 6))
    check(wide[::3, ::-2], wide[1::7, ::-2])
