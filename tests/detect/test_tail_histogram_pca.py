"""ECOD, COPOD, HBOS and PCA against their papers' formulas."""

import numpy as np
import pytest
from scipy.stats import skew

from skerry.core.errors import ParameterError
from skerry.detect.tabular.copod import COPOD
from skerry.detect.tabular.ecod import ECOD
from skerry.detect.tabular.hbos import HBOS
from skerry.detect.tabular.pca import PCA

ALL = [
    ECOD(),
    ECOD("feature"),
    COPOD(),
    COPOD("total"),
    HBOS(),
    HBOS(4),
    PCA(),
    PCA("major"),
    PCA("minor"),
    PCA(weighted=False),
]


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.exponential(size=300), -rng.exponential(size=300), rng.normal(size=300)])
    return np.vstack([X, [[9.0, -9.0, 5.0]]])


def terms_by_counting(X):
    n = len(X)
    left = np.array([[-np.log((X[:, j] <= v).sum() / n) for j, v in enumerate(row)] for row in X])
    right = np.array([[-np.log((X[:, j] >= v).sum() / n) for j, v in enumerate(row)] for row in X])
    return left, right, np.where(skew(X, axis=0) < 0, left, right)


def test_ecod_is_the_papers_maximum_of_three_sums(table):
    left, right, auto = terms_by_counting(table)
    want = np.max([left.sum(1), right.sum(1), auto.sum(1)], axis=0)
    np.testing.assert_allclose(ECOD().fit(table).anomaly_score(table), want, rtol=1e-6)
    np.testing.assert_allclose(COPOD("total").fit(table).anomaly_score(table), want, rtol=1e-6)
    # the skewness branch wins for a row high in a right-skewed and low in a left-skewed feature
    assert want[-1] == pytest.approx(auto[-1].sum())
    assert want[-1] > max(left[-1].sum(), right[-1].sum()) + 1


def test_per_feature_forms(table):
    left, right, auto = terms_by_counting(table)
    np.testing.assert_allclose(
        ECOD("feature").fit(table).anomaly_score(table), np.maximum(left, right).sum(1), rtol=1e-6
    )
    np.testing.assert_allclose(
        COPOD().fit(table).anomaly_score(table), np.maximum((left + right) / 2, auto).sum(1), rtol=1e-6
    )


def test_hbos_is_the_sum_of_log_relative_heights(table):
    want = np.zeros(len(table))
    for column in table.T:
        counts, edges = np.histogram(column, bins=10)
        own = counts[np.clip(np.searchsorted(edges, column, side="right") - 1, 0, 9)]
        want += np.log(counts.max() / own)
    np.testing.assert_allclose(HBOS(10).fit(table).anomaly_score(table), want, rtol=1e-12)


def test_hbos_automatic_bins():
    rng = np.random.default_rng(1)
    X = np.column_stack([rng.normal(size=1000), np.ones(1000), np.r_[np.zeros(900), np.ones(100)]])
    assert list(HBOS().fit(X).n_bins_[1:]) == [1, 11]
    assert 20 < HBOS().fit(X).n_bins_[0] < 40


def test_pca_is_mahalanobis_with_all_components(table):
    z = table - table.mean(0)
    want = np.einsum("ij,jk,ik->i", z, np.linalg.inv(z.T @ z / len(z)), z)
    np.testing.assert_allclose(PCA().fit(table).anomaly_score(table), want, rtol=1e-9)


def test_pca_parts():
    rng = np.random.default_rng(2)
    t = rng.normal(size=(500, 1))
    X = np.hstack([t, t + 0.05 * rng.normal(size=(500, 1)), -t + 0.05 * rng.normal(size=(500, 1))])
    broken, far = np.array([[1.0, -1.0, -1.0]]), np.array([[9.0, 9.0, -9.0]])
    minor, major = PCA("minor").fit(X), PCA("major").fit(X)
    assert minor.anomaly_score(broken) > 20 * minor.anomaly_score(far)
    assert major.anomaly_score(far) > 20 * major.anomaly_score(broken)
    assert len(major.eigenvalues_) + len(minor.eigenvalues_) == 3
    whole = PCA().fit(X).anomaly_score(X)
    np.testing.assert_allclose(major.anomaly_score(X) + minor.anomaly_score(X), whole, rtol=1e-9)


def test_pca_drops_directions_without_variance(table):
    X = np.column_stack([table, table[:, 0] + table[:, 2], np.full(len(table), 0.1)])
    detector = PCA().fit(X)
    assert detector.dropped_ == 2
    np.testing.assert_allclose(
        detector.anomaly_score(table @ np.eye(3, 5) + X * [0, 0, 0, 1, 1]),
        PCA().fit(table).anomaly_score(table),
        rtol=1e-7,
    )


@pytest.mark.parametrize("detector", ALL, ids=repr)
def test_explanations_add_up_and_batches_do_not_matter(detector, table):
    detector.fit(table)
    Z = np.vstack([table[:40], table[:40] * 3 - 1, [[1e3, -1e3, 1e3], [1e100, -1e100, 1e99]]])
    scores = detector.anomaly_score(Z)
    np.testing.assert_allclose(detector.explain(Z).sum(axis=1), scores, rtol=1e-8, atol=1e-9)
    alone = np.array([detector.anomaly_score(row[None])[0] for row in Z])
    np.testing.assert_allclose(alone, scores, rtol=1e-9)


@pytest.mark.parametrize("detector", [ECOD(), COPOD(), HBOS(), PCA()], ids=repr)
def test_scores_grow_beyond_the_training_range(detector, table):
    detector.fit(table)
    far = table.max(axis=0) * [1, 0, 1] + np.array([[1.0], [3.0], [10.0], [1e4]])
    assert (np.diff(detector.anomaly_score(far)) > 0.1).all()


@pytest.mark.parametrize("detector", ALL, ids=repr)
@pytest.mark.parametrize(
    "X",
    [np.ones((1, 2)), np.full((60, 3), 0.1), np.array([[1e-320], [0.0], [2e-300]])],
    ids=["1", "60", "tiny"],
)
def test_degenerate_tables_are_finite(detector, X):
    s = detector.fit(X).anomaly_score(np.vstack([X, X + 1.0, X * 1e90]))
    assert np.isfinite(s).all()
    assert s.min() > -1e-9


def test_parameters_are_checked(table):
    with pytest.raises(ParameterError, match="n_bins"):
        HBOS(0).fit(table)
    with pytest.raises(ParameterError, match="aggregation"):
        ECOD("mean").fit(table)
    with pytest.raises(ParameterError, match="components"):
        PCA("some").fit(table)
