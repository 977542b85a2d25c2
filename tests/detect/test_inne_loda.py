"""INNE and LODA against the formulas of their papers, written as plain loops."""

import math

import numpy as np
import pytest

from skerry.core.errors import ParameterError
from skerry.detect.tabular.inne import INNE
from skerry.detect.tabular.loda import LODA

BOTH = [INNE(random_state=0), LODA(random_state=0)]


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(150, 6))
    X[10:20] = X[10]
    return np.vstack([X, [[9.0, 0.0, 0.0, 0.0, 0.0, -9.0]]])


def isolation_by_loops(x, centres):
    total = 0.0
    for sample in centres:
        gaps = np.array([[math.dist(a, b) for b in sample] for a in sample])
        np.fill_diagonal(gaps, np.inf)
        nearest = gaps.argmin(axis=1)
        radii = gaps.min(axis=1) if len(sample) > 1 else np.zeros(1)
        covering = [c for c in range(len(sample)) if math.dist(x, sample[c]) <= radii[c] * (1 + 1e-15)]
        if not covering:
            total += 1.0
            continue
        c = min(covering, key=lambda c: radii[c])
        total += 1.0 - radii[nearest[c]] / radii[c] if radii[c] > 0 else 0.0
    return total / len(centres)


@pytest.mark.parametrize("max_samples", [2, 16, 0.2])
def test_inne_is_the_papers_isolation(table, max_samples):
    detector = INNE(12, max_samples, random_state=3).fit(table)
    fresh = np.random.default_rng(1).normal(size=(20, 6)) * 1.5
    np.testing.assert_allclose(
        detector.anomaly_score(fresh), [isolation_by_loops(x, detector.centres_) for x in fresh], rtol=1e-9
    )


def test_inne_stays_in_the_unit_interval_and_an_uncovered_row_has_one(table):
    detector = INNE(random_state=0).fit(table)
    s = detector.anomaly_score(table)
    assert s.min() >= 0.0
    assert s.max() <= 1.0
    assert detector.anomaly_score(np.full((1, 6), 1e6))[0] == 1.0


def test_inne_sees_a_local_outlier_beside_a_dense_group():
    rng = np.random.default_rng(0)
    X = np.vstack([rng.normal(scale=0.05, size=(300, 2)), rng.normal(10, 2.0, size=(300, 2)), [[0.9, 0.9]]])
    s = INNE(max_samples=32, random_state=0).fit(X).anomaly_score(X)
    assert (s < s[-1]).mean() > 0.95


def test_inne_parts_sum_to_the_score(table):
    detector = INNE(random_state=0).fit(table)
    np.testing.assert_allclose(detector.explain(table).sum(axis=1), detector.anomaly_score(table), rtol=1e-9)


def loda_terms_by_loops(detector, X, rows, bins):
    out = np.empty((len(rows), len(detector.weights_)))
    for p, (columns, weights) in enumerate(zip(detector.columns_, detector.weights_, strict=True)):
        z = [sum(w * x[c] for c, w in zip(columns, weights, strict=True)) for x in X]
        counts, edges = np.histogram(z, bins=bins)
        width = edges[1] - edges[0]
        for i, x in enumerate(rows):
            v = sum(w * x[c] for c, w in zip(columns, weights, strict=True))
            if edges[0] <= v <= edges[-1]:
                held = counts[min(int((v - edges[0]) / width), bins - 1)]
                out[i, p] = -math.log(max(held, 0.5) / len(X) / width)
            else:
                beyond = max(edges[0] - v, v - edges[-1]) / width
                out[i, p] = -math.log(0.5 / len(X) / width) + math.log1p(beyond)
    return out


def test_loda_is_the_mean_negative_log_density(table):
    detector = LODA(20, 7, random_state=2).fit(table)
    fresh = np.random.default_rng(1).normal(size=(25, 6)) * 2
    terms = loda_terms_by_loops(detector, table, fresh, 7)
    np.testing.assert_allclose(detector.anomaly_score(fresh), terms.mean(axis=1), rtol=1e-9)


def test_loda_explains_by_the_papers_t(table):
    detector = LODA(40, 7, random_state=2).fit(table)
    terms = loda_terms_by_loops(detector, table, table[-3:], 7)
    expected = np.empty((3, 6))
    for j in range(6):
        has = (detector.columns_ == j).any(axis=1)
        a, b = terms[:, has], terms[:, ~has]
        error = a.var(axis=1, ddof=1) / has.sum() + b.var(axis=1, ddof=1) / (~has).sum()
        expected[:, j] = (a.mean(axis=1) - b.mean(axis=1)) / np.sqrt(error)
    got = detector.explain(table[-3:])
    np.testing.assert_allclose(got, expected, rtol=1e-7, atol=1e-9)
    assert set(np.argsort(got[-1])[-2:]) == {0, 5}


@pytest.mark.parametrize("d", [1, 2, 3, 10])
def test_loda_projections_are_sparse(d):
    X = np.random.default_rng(0).normal(size=(50, d))
    detector = LODA(30, random_state=0).fit(X)
    assert detector.columns_.shape == (30, math.ceil(math.sqrt(d)))
    assert all(len(set(row)) == len(row) for row in detector.columns_)
    X[0, -1] = 20.0
    assert detector.explain(X[:1])[0].argmax() == d - 1


def test_loda_grows_with_distance_and_batches_do_not_matter(table):
    detector = LODA(random_state=0).fit(table)
    far = detector.anomaly_score(np.outer([10.0, 100.0, 1e4, 1e90], np.ones(6)))
    assert (np.diff(far) > 0).all()
    parts = [slice(at, at + 7) for at in range(0, len(table), 7)]
    np.testing.assert_array_equal(
        np.concatenate([detector.anomaly_score(table[p]) for p in parts]), detector.anomaly_score(table)
    )
    np.testing.assert_array_equal(np.vstack([detector.explain(table[p]) for p in parts]), detector.explain(table))


@pytest.mark.parametrize("detector", BOTH, ids=lambda d: type(d).__name__)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_few_rows_are_enough(detector, n):
    X = np.arange(n * 4, dtype=np.float64).reshape(n, 4)
    detector.fit(X)
    assert np.isfinite(detector.anomaly_score(X)).all()
    assert np.isfinite(detector.explain(X)).all()


@pytest.mark.parametrize("detector", BOTH, ids=lambda d: type(d).__name__)
@pytest.mark.parametrize("value", [0.0, 0.1, -1e90, 1e90, 1e-300])
def test_hostile_values_stay_finite(detector, table, value):
    for X in (np.full((30, 3), value), np.vstack([table[:, :3], np.full((1, 3), value)])):
        detector.fit(X)
        assert np.isfinite(detector.anomaly_score(X)).all()
        assert np.isfinite(detector.explain(X)).all()


def test_parameters_are_checked(table):
    with pytest.raises(ParameterError, match="max_samples"):
        INNE(max_samples=1).fit(table)
    with pytest.raises(ParameterError, match="n_bins"):
        LODA(n_bins="many").fit(table)
