"""One row, one score: to the last bit, whatever the threads and the rows beside it."""

import numba
import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from skerry.detect import COPOD, ECOD, HBOS, INNE, KNN, LODA, LOF, ReferenceNeighbours
from skerry.detect.tabular.registry import DETECTORS, make_detector

METHODS = [
    KNN(),
    KNN(method="mean"),
    LOF(),
    HBOS(),
    ECOD(),
    COPOD(),
    COPOD("total"),
    INNE(40, random_state=0),
    LODA(random_state=0),
    ReferenceNeighbours(random_state=0),
]


@pytest.fixture(params=["float64", "float32"])
def tables(request):
    rng = np.random.default_rng(0)
    X = np.r_[rng.normal(size=(1400, 7)), rng.normal(3.0, 0.1, size=(900, 7)), rng.uniform(-9, 9, size=(40, 7))]
    X[:, 2] = X[:, 2].round(1)
    X[:, 6] = 4.0
    X[100:160] = X[99]
    fresh = np.r_[X[::5] + 0.05, rng.uniform(-30, 30, size=(60, 7)), X[:300]]
    return X.astype(request.param), fresh.astype(request.param)


@pytest.mark.parametrize("model", METHODS, ids=repr)
def test_scores_are_the_same_to_the_last_bit(model, tables):
    X, fresh = tables
    before = numba.get_num_threads()
    found = []
    try:
        for threads in sorted({1, before}):
            numba.set_num_threads(threads)
            model.fit(X)
            found.append((model.reference_scores_, model.anomaly_score(X), model.anomaly_score(fresh)))
    finally:
        numba.set_num_threads(before)
    for again in found[1:]:
        for a, b in zip(found[0], again, strict=True):
            np.testing.assert_array_equal(a, b)
    reference, scores, new = found[0]
    np.testing.assert_array_equal(np.sort(scores), reference)
    for step in (1, 7, 300):
        rows = range(0, 60 if step == 1 else len(fresh), step)
        parts = [model.anomaly_score(fresh[at : at + step]) for at in rows]
        got = np.concatenate(parts)
        np.testing.assert_array_equal(got, new[: got.size])


SMALL = {
    "autoencoder": {"epochs": 8, "n_models": 1},
    "autood": {"n_children": 3, "child_epochs": 2, "final_epochs": 3, "ensemble": 2, "definitions": ("cluster",)},
}


@pytest.mark.parametrize("name", sorted(DETECTORS))
def test_one_thread_and_two_answer_alike(name, tables):
    if name in SMALL:
        pytest.importorskip("torch", reason="needs the extra 'deep'")
    X, fresh = tables
    before = numba.get_num_threads()
    found = []
    try:
        for threads in sorted({1, min(2, before)}):
            numba.set_num_threads(threads)
            with threadpool_limits(threads):
                model = make_detector(name, random_state=0, **SMALL.get(name, {})).fit(X)
                found.append((model.reference_scores_, model.anomaly_score(fresh), model.explain(fresh[:90])))
    finally:
        numba.set_num_threads(before)
    for again in found[1:]:
        for a, b in zip(found[0], again, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", sorted(set(DETECTORS) - set(SMALL)))
def test_a_strided_table_is_its_copy(name, tables):
    X, fresh = tables
    one = make_detector(name, random_state=0).fit(X[::3, ::-2])
    two = make_detector(name, random_state=0).fit(np.ascontiguousarray(X[::3, ::-2]))
    Z = fresh[::4, ::-2]
    np.testing.assert_array_equal(one.anomaly_score(Z), two.anomaly_score(np.ascontiguousarray(Z)))
