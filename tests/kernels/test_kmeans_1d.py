"""Exact k-means on a line against trying every cut."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from skerry.kernels.kmeans_1d import kmeans_1d


def objective(values, centres):
    return (np.abs(values[:, None] - centres[None, :]).min(1) ** 2).sum()


@given(st.lists(st.integers(-50, 50) | st.floats(-5, 5), min_size=1, max_size=14), st.integers(1, 4))
def test_no_cut_is_better(values, k):
    values = np.array(values, dtype=float)
    distinct = np.unique(values)
    centres, boundaries = kmeans_1d(values, k)
    assert len(centres) == min(k, len(distinct)) and len(boundaries) == len(centres) - 1
    least = min(
        sum(
            ((part - part.mean()) ** 2).sum()
            for part in np.split(np.sort(values), np.searchsorted(np.sort(values), cut))
        )
        for cut in itertools.combinations(distinct[1:], len(centres) - 1)
    )
    assert objective(values, centres) <= least * (1 + 1e-9) + 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_at_least_as_good_as_twenty_restarts(seed):
    values = np.random.default_rng(seed).standard_t(3, 5000)
    centres, _ = kmeans_1d(values, 3)
    other = KMeans(3, n_init=20, random_state=0).fit(values[:, None])
    assert objective(values, centres) <= other.inertia_ * (1 + 1e-9)


def test_the_order_and_a_large_offset_change_nothing():
    values = np.random.default_rng(0).normal(size=400)
    centres, _ = kmeans_1d(values, 3)
    np.testing.assert_array_equal(kmeans_1d(values[::-1].copy(), 3)[0], centres)
    np.testing.assert_allclose(kmeans_1d(values + 1e6, 3)[0] - 1e6, centres, atol=1e-6)
