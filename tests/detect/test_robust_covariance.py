"""RobustCovariance: the paper's invariants, a brute-force twin, hostile tables."""

from itertools import combinations

import numpy as np
import pytest

from skerry.core.errors import ParameterError
from skerry.detect.tabular import robust_covariance as module
from skerry.detect.tabular.robust_covariance import RobustCovariance


@pytest.fixture(scope="module")
def mixture():
    """70 % correlated Gaussian rows, 30 % in one far and tight group."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(4, 4)) + 2 * np.eye(4)
    inliers = rng.normal(size=(700, 4)) @ mixing.T + 3.0
    outliers = rng.normal(scale=0.3, size=(300, 4)) + 25.0
    return np.vstack([inliers, outliers]), mixing @ mixing.T


def test_search_reaches_the_smallest_determinant_of_all_subsets():
    rng = np.random.default_rng(1)
    Z = np.vstack([rng.normal(size=(9, 2)), rng.normal(loc=6, size=(4, 2))])
    h = int((13 + 2 + 1) / 2)
    smallest = min(np.linalg.det(np.cov(Z[list(s)].T, bias=True)) for s in combinations(range(13), h))
    _, covariance, _ = module._minimum_determinant(Z, h / 13, np.random.RandomState(0))
    raw = covariance / module._consistency(h / 13, 2)
    assert np.linalg.det(raw) == pytest.approx(smallest, rel=1e-9)


def test_a_step_never_raises_the_determinant(mixture):
    Z = mixture[0]
    mean, covariance = module._moments(Z)
    last = np.inf
    for _ in range(15):
        log_det, mean, covariance = module._concentrate(Z, 500, mean, covariance, steps=1)
        assert log_det <= last + 1e-9
        last = log_det


def test_outliers_move_neither_centre_nor_scatter(mixture):
    X, truth = mixture
    detector = RobustCovariance(random_state=0).fit(X)
    np.testing.assert_allclose(detector.location_, 3.0, atol=0.5)
    scatter = detector.covariance_ * np.outer(detector.scale_, detector.scale_)
    assert np.linalg.norm(scatter - truth) < 0.2 * np.linalg.norm(truth)
    s = detector.anomaly_score(X)
    assert s[700:].min() > s[:700].max()


def test_consistent_at_the_gaussian():
    X = np.random.default_rng(2).normal(size=(20_000, 3))
    detector = RobustCovariance(random_state=0).fit(X)
    scatter = detector.covariance_ * np.outer(detector.scale_, detector.scale_)
    np.testing.assert_allclose(scatter, np.eye(3), atol=0.04)
    assert detector.anomaly_score(X).mean() == pytest.approx(3.0, rel=0.03)


def test_affine_changes_of_the_table_keep_the_order(mixture):
    X, _ = mixture
    rng = np.random.default_rng(3)
    moved = X * [1e-3, 1.0, 50.0, 7.0] + rng.normal(size=4)
    one = RobustCovariance(random_state=0).fit(X).anomaly_score(X)
    two = RobustCovariance(random_state=0).fit(moved).anomaly_score(moved)
    np.testing.assert_allclose(two, one, rtol=1e-6)


def test_full_support_starts_from_the_plain_covariance():
    X = np.random.default_rng(4).normal(size=(60, 2))
    _, covariance, _ = module._minimum_determinant(X, 1.0, np.random.RandomState(0))
    np.testing.assert_allclose(covariance, np.cov(X.T, bias=True), rtol=1e-9)


def test_explanations_add_up_and_batches_do_not_matter(mixture):
    X, _ = mixture
    detector = RobustCovariance(random_state=0).fit(X)
    Z = np.vstack([X[::50], X[:3] * 1e6, np.full((1, 4), 1e100)])
    scores = detector.anomaly_score(Z)
    np.testing.assert_allclose(detector.explain(Z).sum(axis=1), scores, rtol=1e-7)
    alone = np.array([detector.anomaly_score(row[None])[0] for row in Z])
    np.testing.assert_allclose(alone, scores, rtol=1e-9)


@pytest.mark.parametrize("kind", ["one row", "equal rows", "repeated column", "wide", "rare binary", "tiny"])
def test_singular_tables_are_finite(kind):
    rng = np.random.default_rng(5)
    base = rng.normal(size=(90, 3))
    X = {
        "one row": np.ones((1, 3)),
        "equal rows": np.full((60, 3), 0.1),
        "repeated column": np.column_stack([base, base[:, 0], np.ones(90)]),
        "wide": rng.normal(size=(8, 20)),
        "rare binary": np.column_stack([base, rng.random(90) < 0.05]),
        "tiny": base * 1e-300,
    }[kind]
    detector = RobustCovariance(random_state=0).fit(X)
    s = detector.anomaly_score(np.vstack([X, X + 1.0, X * 1e90]))
    assert np.isfinite(s).all()
    assert s.min() >= 0
    if kind in ("repeated column", "wide"):
        assert detector.n_floored_ > 0


def test_subsampled_search_agrees_with_the_whole(monkeypatch):
    rng = np.random.default_rng(6)
    X = np.vstack([rng.normal(size=(8000, 3)), rng.normal(loc=9, size=(1500, 3))])
    whole = RobustCovariance(random_state=0).fit(X).anomaly_score(X)
    monkeypatch.setattr(module, "FIT_ROWS", 5000)
    part = RobustCovariance(random_state=0).fit(X).anomaly_score(X)
    assert np.corrcoef(np.sqrt(whole), np.sqrt(part))[0, 1] > 0.999


def test_parameters_are_checked(mixture):
    with pytest.raises(ParameterError, match="support_fraction"):
        RobustCovariance(1.5).fit(mixture[0])


@pytest.mark.parametrize(("n", "d", "q"), [(60, 40, 12), (60, 10, 10), (30, 300, 10), (1400, 300, 256)])
def test_wide_tables_are_searched_in_as_many_directions_as_their_rows_allow(n, d, q):
    rng = np.random.default_rng(3)
    X = rng.normal(size=(n, 3)) @ rng.normal(size=(3, d)) + 0.3 * rng.normal(size=(n, d))
    odd = rng.choice(n, n // 10, replace=False)
    X[odd] += 1.2 * rng.normal(size=(len(odd), d))  # within the range of every column, off the common plane
    detector = RobustCovariance(random_state=0).fit(X)
    assert detector.n_directions_ == q
    scores = detector.anomaly_score(X)
    assert set(np.argsort(-scores)[: len(odd)]) == set(odd)
    np.testing.assert_allclose(detector.explain(X).sum(axis=1), scores, rtol=1e-6)
    # the scatter that is shown is the one that scored
    z = (X - detector.location_) / detector.scale_
    direct = np.einsum("ij,ij->i", z, np.linalg.solve(detector.covariance_, z.T).T)
    np.testing.assert_allclose(direct, scores, rtol=1e-5)
