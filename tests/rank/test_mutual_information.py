"""Screening by mutual information: the brief's invariants."""

import numpy as np
import pytest
from sklearn.utils.estimator_checks import check_estimator

from skerry.core.errors import DataError, ParameterError
from skerry.rank.mutual_information import MutualInformationScreen, benjamini_hochberg, mutual_information

ESTIMATORS = ["fftkde", "binning", "knn", "pearson"]


def _pair(n=5000, rho=0.6, seed=0):
    z = np.random.default_rng(seed).normal(size=(n, 3))
    return z[:, [0, 2]], rho * z[:, 0] + np.sqrt(1 - rho**2) * z[:, 1]


def _nonlinear(n=600, p=60, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, p))
    return X, X[:, 0] ** 2 + 1.5 * np.abs(X[:, 1]) + 0.5 * X[:, 2] + 0.5 * rng.normal(size=n)


def test_gaussian_pair_and_independent_pair():
    X, y = _pair()
    dependent, independent = mutual_information(X, y)
    assert abs(dependent - 0.223) < 0.15 * 0.223
    assert independent < 0.02


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_symmetry_and_affine_invariance(estimator):
    X, y = _pair(n=400)
    x = X[:, 0]
    one = mutual_information(x, y, estimator=estimator)
    assert mutual_information(y, x, estimator=estimator) == pytest.approx(one, abs=1e-6)
    assert mutual_information(5 + 4 * x, -2 + 0.5 * y, estimator=estimator) == pytest.approx(one, abs=1e-6)


def test_missing_values_are_dropped_pairwise():
    X, y = _pair(n=300)
    x = X[:, 0].copy()
    x[::7] = np.nan
    kept = ~np.isnan(x)
    for estimator in ESTIMATORS:
        ours = mutual_information(x, y, estimator=estimator)
        assert ours == pytest.approx(mutual_information(x[kept], y[kept], estimator=estimator), abs=1e-10)


@pytest.mark.parametrize("classes", [False, True])
def test_nonlinear_columns_come_first(classes):
    X, y = _nonlinear()
    target = np.where(y > np.median(y), "high", "low") if classes else y
    first = np.argsort(-mutual_information(X, target))[: 2 if classes else 3]
    assert set(first) == ({0, 1} if classes else {0, 1, 2})
    assert not {0, 1} <= set(np.argsort(-mutual_information(X, target, estimator="pearson"))[:3])


def test_threads_do_not_change_a_bit():
    X, y = _nonlinear(n=200, p=7)
    np.testing.assert_array_equal(mutual_information(X, y, n_jobs=1), mutual_information(X, y, n_jobs=-1))


def test_corrections_shrink_the_null():
    X, y = np.random.default_rng(0).normal(size=(400, 5)), np.random.default_rng(1).normal(size=400)
    plain = mutual_information(X, y, estimator="binning").mean()
    for correction in ("miller-madow", "shuffle"):
        assert mutual_information(X, y, estimator="binning", correction=correction).mean() < 0.5 * plain


def test_clumping_drops_a_copy_and_p_values_drop_noise():
    X, y = _nonlinear(n=200, p=8)
    X[:, 5] = X[:, 1] + 1e-3 * X[:, 6]
    clumped = MutualInformationScreen(n_keep=None, clump=0.5).fit(X, y)
    assert clumped.support_[1] != clumped.support_[5]
    tested = MutualInformationScreen(n_keep=None, n_permutations=99, estimator="knn").fit(X, y)
    assert tested.support_[1] and not tested.support_[[4, 6, 7]].any()
    assert tested.pvalues_.min() == pytest.approx(0.01)


def test_benjamini_hochberg_by_hand():
    assert benjamini_hochberg([0.2, 0.01, 0.02, 0.9]) == pytest.approx([0.8 / 3, 0.04, 0.04, 0.9])


def test_errors_name_the_place():
    with pytest.raises(DataError, match="infinite value, first at"):
        mutual_information(np.array([[1.0], [np.inf]]), [0.0, 1.0])
    with pytest.raises(ParameterError, match="estimator='x'"):
        mutual_information(np.ones((3, 1)), np.ones(3), estimator="x")


def test_scikit_learn_contract():
    check_estimator(MutualInformationScreen())
