"""KNN, LOF, CBLOF and MeanShiftDistance against naive twins and hostile tables."""

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.utils.estimator_checks import check_estimator

from skerry.detect.tabular.cblof import CBLOF
from skerry.detect.tabular.knn import KNN
from skerry.detect.tabular.lof import LOF
from skerry.detect.tabular.mean_shift_distance import MeanShiftDistance

METHODS = [KNN(), KNN(method="median"), LOF(), CBLOF(random_state=0), MeanShiftDistance()]
IDS = ["knn", "knn-median", "lof", "cblof", "shift"]


def naive_distances(X):
    D = np.sqrt(((X[:, None] - X[None]) ** 2).sum(-1))
    np.fill_diagonal(D, np.inf)
    return D


@pytest.mark.parametrize("method", ["largest", "mean", "median"])
def test_knn_equals_naive_with_duplicates(method):
    X = np.random.default_rng(0).integers(0, 4, (300, 3)) * 1.0
    near = np.sort(naive_distances(X), axis=1)[:, :6]
    want = {"largest": near[:, -1], "mean": near.mean(1), "median": np.median(near, axis=1)}[method]
    np.testing.assert_allclose(KNN(6, method).fit(X).anomaly_score(X), want, atol=1e-12)


def test_lof_equals_naive():
    X = np.random.default_rng(1).normal(size=(200, 4))
    D = naive_distances(X)
    near = np.argsort(D, axis=1)[:, :20]
    reach = np.take_along_axis(D, near, 1)[:, -1]
    density = 1 / np.maximum(np.take_along_axis(D, near, 1), reach[near]).mean(1)
    model = LOF().fit(X)
    np.testing.assert_allclose(model.anomaly_score(X), density[near].mean(1) / density, rtol=1e-12)
    np.testing.assert_array_equal(model.reference_scores_, np.sort(model.anomaly_score(X)))


def test_cblof_sets_small_clusters_against_large_ones():
    rng = np.random.default_rng(2)
    X = np.r_[rng.normal(size=(200, 2)), rng.normal(size=(200, 2)) + 20, rng.normal(size=(5, 2)) * 0.1 + [0, 60]]
    model = CBLOF(n_clusters=3, random_state=0).fit(X)
    assert model.n_large_ == 2
    want = np.sqrt(((X[:, None] - model.centers_[None, :2]) ** 2).sum(-1)).min(1)
    np.testing.assert_allclose(model.anomaly_score(X), want)
    weighted = CBLOF(n_clusters=3, use_weights=True, random_state=0).fit(X)
    np.testing.assert_allclose(weighted.anomaly_score(X[-5:]), want[-5:] * 5)


@pytest.mark.parametrize("model", METHODS, ids=IDS)
def test_hostile_tables_stay_finite(model):
    rng = np.random.default_rng(3)
    base = rng.normal(size=(80, 3))
    for X in (
        np.r_[base, np.tile(base[:1], (60, 1))],
        np.c_[base, np.full(80, 7.0)],
        np.ones((10, 2)),
        base[:1],
        base * 1e99,
        np.r_[base, [[1e100, 0, 0]]],
    ):
        model.fit(X)
        scores = model.anomaly_score(X)
        assert np.isfinite(scores).all()
        np.testing.assert_allclose(np.sort(scores), model.reference_scores_, rtol=1e-9)
        one = np.r_[[model.anomaly_score(row[None])[0] for row in X[:9]]]
        np.testing.assert_array_equal(one, scores[:9])
        np.testing.assert_allclose(model.explain(X).sum(1), scores, rtol=1e-9)
        assert np.isfinite(model.anomaly_score(X * 0.5 + 1)).all()


@pytest.mark.parametrize("model", METHODS, ids=IDS)
def test_pickle_rebuilds_what_was_dropped(model):
    X = np.random.default_rng(4).normal(size=(90, 3))
    again = pickle.loads(pickle.dumps(model.fit(X)))
    np.testing.assert_array_equal(again.anomaly_score(X + 0.1), model.anomaly_score(X + 0.1))


@pytest.mark.parametrize("model", METHODS, ids=IDS)
def test_scikit_learn_checks(model):
    check_estimator(clone(model).set_params(threshold=0.1))  # "auto" may rightly flag no row
