"""Screening by mutual information: the brief's invariants."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mutual_info_score
from sklearn.utils.estimator_checks import check_estimator

from skerry.core.errors import DataError, ParameterError
from skerry.kernels.binned_information import bin_columns
from skerry.rank.mutual_information_screen import MutualInformationScreen, benjamini_hochberg, mutual_information

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


OPTIONS = [{"estimator": e} for e in ESTIMATORS] + [{"bandwidth": b} for b in ("scott", "sheather-jones", 0.7)]


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), shift=st.floats(-50, 50), unit=st.floats(0.02, 50))
@pytest.mark.parametrize("options", OPTIONS)
def test_symmetry_and_affine_invariance(options, seed, shift, unit):
    X, y = _pair(n=300, seed=seed)
    x = X[:, 0]
    one = mutual_information(x, y, **options)
    assert mutual_information(y, x, **options) == pytest.approx(one, abs=1e-6)
    if options.get("estimator") != "binning":  # a value on the edge of a bin may change sides with the last bit
        assert mutual_information(shift + unit * x, -2 + 0.5 * y, **options) == pytest.approx(one, abs=1e-6)
    else:
        assert mutual_information(4 * x, 0.5 * y, **options) == pytest.approx(one, abs=1e-6)


def test_bandwidth_rules_on_a_gaussian_pair_and_on_two_modes():
    X, y = _pair(n=1000)
    value = {
        b: mutual_information(X[:, 0], y, bandwidth=b)[0]
        for b in ("silverman", "scott", "sheather-jones", 1.5, "official")
    }
    assert value["scott"] == pytest.approx(value["silverman"], rel=0.02)
    assert abs(value["sheather-jones"] - 0.223) < 0.25 * 0.223
    # wider kernels smooth the dependence away; the published width, 1, most of it
    assert value["official"] < 0.3 * 0.223 < value[1.5] < value["silverman"]
    rng = np.random.default_rng(1)
    z, side = rng.normal(size=(2, 1000)), rng.random(1000) < 0.5
    x = 0.2 * z[0] + 8.0 * side
    follower = x + 0.3 * z[1]
    kde = {b: mutual_information(x, follower, bandwidth=b)[0] for b in ("silverman", "sheather-jones")}
    near = mutual_information(x, follower, estimator="knn")[0]
    # Silverman's width follows the distance of the modes and sees them alone, ln 2
    assert kde["silverman"] < 0.75 < near
    assert kde["sheather-jones"] == pytest.approx(near, rel=0.2)


def test_binning_equals_scikit_learns_score_of_the_codes():
    X, y = _nonlinear(n=300, p=5)
    codes, target = bin_columns(np.ascontiguousarray(X.T)), bin_columns(y[None])[0]
    expected = [mutual_info_score(c, target) for c in codes]
    assert mutual_information(X, y, estimator="binning") == pytest.approx(expected, abs=1e-10)


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
