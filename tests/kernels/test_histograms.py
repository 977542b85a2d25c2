"""Histogram kernels against NumPy loops."""

import numpy as np
import pytest

from skerry.kernels import histograms


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
            out[i, j] = empty[j] + np.log1p(beyond) if beyond > 0 else terms[j, bin_]
    return out


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
    low, high = histograms.column_range(X)
    np.testing.assert_array_equal(low, X.min(axis=0))
    np.testing.assert_array_equal(high, X.max(axis=0))
    n_bins = np.array([5, 1, 9])
    per_unit = n_bins / np.where(high > low, high - low, 1.0)
    counts = histograms.count_bins(X, low, per_unit, n_bins)
    np.testing.assert_array_equal(counts, naive_counts(X, low, per_unit, n_bins))
    assert counts.sum() == X.size
    terms, empty = -np.log(np.maximum(counts, 0.5)), np.array([1.0, 2.0, 3.0])
    Z = np.vstack([X, X[:5] * 2 - 1, X[:5] - 30]).astype(dtype)
    state = (low, high, per_unit, n_bins, terms, empty)
    want = naive_terms(Z, *state)
    np.testing.assert_allclose(histograms.look_up_terms(Z, *state), want, rtol=1e-12)
    np.testing.assert_allclose(histograms.look_up(Z, *state), want.sum(axis=1), rtol=1e-12, atol=1e-12)
