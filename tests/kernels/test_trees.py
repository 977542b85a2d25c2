"""Isolation trees against walks with the sample's rows at hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from skerry.kernels.trees import attribute_paths, average_path_length, grow_trees, path_lengths


def c(n):
    return 0.0 if n <= 1 else 1.0 if n == 2 else 2 * (math.log(n - 1) + 0.5772156649015329) - 2 * (n - 1) / n


def naive_path(x, sample, feature, threshold, depth):
    """Walk with the sample's rows at hand: the depth where it ends, plus c of what is left there."""
    node, rows = 0, np.arange(len(sample))
    for level in range(depth):
        cut = threshold[node]
        if len(rows) <= 1 or not np.isfinite(cut):
            return level + c(len(rows))
        right = x[feature[node]] > cut
        rows = rows[(sample[rows, feature[node]] > cut) == right]
        node = 2 * node + 1 + right
    return depth + c(len(rows))


def check(X):
    """Grow seven trees on X and walk them with its rows."""
    rng = np.random.default_rng(1)
    size = min(len(X), 16)
    rows = np.stack([rng.choice(len(X), size, replace=False) for _ in range(7)])
    depth = max(1, math.ceil(math.log2(max(size, 2))))
    feature, threshold, leaf, mean = grow_trees(X, rows, depth, np.arange(7, dtype=np.uint64))
    naive = np.array(
        [[naive_path(x, X[r], f, t, depth) for r, f, t in zip(rows, feature, threshold, strict=True)] for x in X]
    )
    np.testing.assert_allclose(path_lengths(X, feature, threshold, leaf, depth), naive.mean(axis=1), rtol=1e-6)
    # the mean under the root is the mean path of the sample itself
    own = [
        np.mean([naive_path(X[i], X[r], f, t, depth) for i in r])
        for r, f, t in zip(rows, feature, threshold, strict=True)
    ]
    np.testing.assert_allclose(mean[:, 0], own, rtol=1e-6)
    parts = attribute_paths(X, feature, threshold, mean, depth)
    np.testing.assert_allclose(parts.sum(axis=1), mean[:, 0].mean() - naive.mean(axis=1), atol=1e-6)


@pytest.mark.parametrize("kind", ["random", "ties", "duplicates", "constant", "one row", "huge"])
def test_walks_equal_the_naive_ones(kind):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(64, 3))
    if kind == "ties":
        X = np.round(X)
    elif kind == "duplicates":
        X[5:40] = X[5]
    elif kind == "constant":
        X[:] = 4.0
    elif kind == "one row":
        X = X[:1]
    elif kind == "huge":
        X[3, 1] = 1e100
    check(X)


def test_average_path_length_is_the_harmonic_form():
    for n in (0, 1, 2, 3, 256):
        assert average_path_length(n) == pytest.approx(c(n))


@given(
    arrays(
        np.float64,
        st.tuples(st.integers(1, 24), st.integers(1, 4)),
        elements=st.sampled_from([0.0, -0.0, 1.0, 1.0 + 2**-52, -1.0, 3.0, 5e-324, 1e-310, 1e300, -1e300]),
    )
)
def test_hostile_values(X):
    check(X)


@pytest.mark.parametrize("n", [0, 1, 8, 9])
def test_a_few_rows_walk_bit_for_bit_like_many(n):
    rng = np.random.default_rng(n)
    X = rng.normal(size=(300, 5))
    rows = np.stack([rng.choice(300, 64, replace=False) for _ in range(20)])
    feature, threshold, leaf, _ = grow_trees(X, rows, 6, np.arange(20, dtype=np.uint64))
    X[0, 0], X[1, 1] = np.inf, -np.inf
    want = path_lengths(X, feature, threshold, leaf, 6)[:n]
    np.testing.assert_array_equal(path_lengths(X[:n], feature, threshold, leaf, 6), want)


def test_strided_tables_are_their_copies():
    wide = np.random.default_rng(2).normal(size=(96, 6))
    X = wide[::2, ::-2]
    rows = np.arange(32, dtype=np.int64).reshape(2, 16)
    trees = [grow_trees(Z, rows, 4, np.arange(2, dtype=np.uint64)) for Z in (X, X.copy())]
    for a, b in zip(*trees, strict=True):
        np.testing.assert_array_equal(a, b)
    feature, threshold, leaf, _ = trees[0]
    want = path_lengths(X.copy(), feature, threshold, leaf, 4)
    np.testing.assert_array_equal(path_lengths(X, feature, threshold, leaf, 4), want)
