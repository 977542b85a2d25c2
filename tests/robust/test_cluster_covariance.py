"""Whitening, distances and effects against dense inverses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.core.errors import DataError
from skerry.robust.cluster_covariance import CORRELATIONS, ClusterCovariance


@pytest.mark.parametrize("q", [0, 1, 2])
@pytest.mark.parametrize("correlation", [None, *CORRELATIONS])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_everything_equals_the_dense_inverse(correlation, q, seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 7, size=5)
    n = int(sizes.sum())
    B = rng.normal(size=(n, n))
    Z, r, M = rng.normal(size=(n, q)), rng.normal(size=n), rng.normal(size=(n, 3))
    covariance = ClusterCovariance(sizes, Z, correlation, B @ B.T / n)
    low, high = np.array(covariance.bounds).reshape(-1, 2).T
    theta = np.clip(rng.normal(size=len(low)), 0.9 * low, 0.9 * high)
    square, log_det = covariance.distances(theta, covariance.prepare(r))
    white = covariance.whiten(theta, covariance.prepare(np.column_stack([M, r])))
    effects = covariance.effects(theta, covariance.prepare(r))
    D = covariance.factor(theta) @ covariance.factor(theta).T
    for i, psi in enumerate(covariance.dense(theta)):
        rows = slice(covariance.starts[i], covariance.starts[i] + sizes[i])
        inverse = np.linalg.inv(psi)
        assert np.linalg.eigvalsh(psi)[0] > 0
        assert square[i] == pytest.approx(r[rows] @ inverse @ r[rows], rel=1e-7, abs=1e-9)
        assert log_det[i] == pytest.approx(np.linalg.slogdet(psi)[1], abs=1e-8)
        both = np.column_stack([M, r])[rows]
        assert white[rows].T @ white[rows] == pytest.approx(both.T @ inverse @ both, rel=1e-7, abs=1e-9)
        assert effects[i] == pytest.approx(D @ Z[rows].T @ inverse @ r[rows], rel=1e-6, abs=1e-8)


def test_no_random_effects_is_independence():
    covariance = ClusterCovariance(np.array([2, 3]), np.ones((5, 1)))
    r = np.arange(5.0)
    square, log_det = covariance.distances(covariance.without_effects(covariance.start()), r)
    assert square == pytest.approx([1.0, 29.0])
    assert log_det == pytest.approx([0.0, 0.0])


def test_a_kinship_that_is_none_is_refused():
    with pytest.raises(DataError, match="positive semidefinite"):
        ClusterCovariance(np.array([2]), np.zeros((2, 0)), "kinship", np.array([[1.0, 2.0], [2.0, 1.0]]))
