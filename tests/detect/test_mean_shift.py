"""MeanShift around reconstructions and around other detectors; the shift itself against a double loop."""

import pickle
import warnings

import numpy as np
import pytest
from sklearn.utils.estimator_checks import check_estimator

from skerry.core.detector import Detector
from skerry.core.errors import ParameterError
from skerry.core.persistence import load, save
from skerry.detect.tabular.knn import KNN
from skerry.detect.tabular.mean_shift import MeanShift
from skerry.detect.tabular.pca import PCA
from skerry.kernels.mean_shift import MeanShifter


class Rebuilder(Detector):
    """A reconstruction of every row by its own values: blind without a shifted target."""

    def _fit(self, X):
        self.fitted_ = True

    def _score(self, X):
        return np.zeros(len(X))

    def explain_against(self, X, target):
        return (np.asarray(X, dtype=float) - target) ** 2

    def score_against(self, X, target):
        return self.explain_against(X, target).sum(axis=1)


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    return np.r_[rng.normal(size=(120, 3)), rng.uniform(-9, 9, size=(6, 3))]


def naive(z, stages, k):
    """The out-of-sample shift; rows of the training table count as themselves."""
    for table in stages:
        out = []
        for row in z:
            distance = ((table - row) ** 2).sum(axis=1)
            order = np.argsort(distance, kind="stable")
            if distance[order[0]] == 0:
                order = order[1:]
            out.append(np.vstack([row, table[order[: k - 1]]]).mean(axis=0))
        z = np.array(out)
    return z


def test_shift_equals_a_double_loop_in_and_out_of_the_table(table):
    shifter = MeanShifter(7, 1).fit(table)
    np.testing.assert_allclose(shifter.training_shift_, naive(table, [table], 7), atol=1e-9)
    np.testing.assert_allclose(shifter.transform(table), shifter.training_shift_, atol=1e-9)
    new = np.random.default_rng(1).normal(size=(20, 3))
    np.testing.assert_allclose(shifter.transform(new), naive(new, [table], 7), atol=1e-9)


def test_stages_follow_one_another(table):
    shifter = MeanShifter(7, 3).fit(table)
    stages = [*shifter.stages_, shifter.training_shift_]
    for before, after in zip(stages[:-1], stages[1:], strict=True):
        np.testing.assert_array_equal(MeanShifter(7, 1).fit(before).training_shift_, after)


def test_shift_follows_rotation_scale_and_translation_and_shrinks(table):
    q, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))
    plain = MeanShifter(9, 3).fit(table)
    moved = MeanShifter(9, 3).fit(2.5 * table @ q + 4)
    np.testing.assert_allclose(moved.training_shift_, 2.5 * plain.training_shift_ @ q + 4, atol=1e-9)
    spread = [t[:120].var(axis=0).sum() for t in [*MeanShifter(9, 3).fit(table[:120]).stages_]]
    assert spread[0] >= spread[1] >= spread[2]


@pytest.mark.parametrize("inner", [KNN(), PCA(), Rebuilder()])
@pytest.mark.parametrize("still", [{"n_neighbors": 1}, {"n_shifts": 0}])
def test_nothing_to_move_leaves_the_score_alone(table, inner, still):
    model = MeanShift(inner, **still).fit(table)
    np.testing.assert_array_equal(model.anomaly_score(table), model.detector_.anomaly_score(table))
    assert model.explain(table[:4]).shape == (4, 3)


def test_all_neighbours_compare_with_the_mean(table):
    model = MeanShift(Rebuilder(), n_neighbors=len(table), n_shifts=1).fit(table)
    want = ((table - table.mean(axis=0)) ** 2).sum(axis=1)
    np.testing.assert_allclose(model.anomaly_score(table), want, rtol=1e-9)


def test_a_faithful_reconstruction_of_an_outlier_counts_as_error(table):
    model = MeanShift(Rebuilder()).fit(table)
    s = model.anomaly_score(table)
    assert (np.argsort(-s)[:4] >= 120).all()
    np.testing.assert_allclose(model.explain(table).sum(axis=1), s, rtol=1e-9)


def test_other_detectors_get_the_scaled_length_of_the_shift(table):
    plain = MeanShift(KNN(), weight=0).fit(table)
    base = KNN().fit(table).anomaly_score(table)
    iqr = np.subtract(*np.quantile(base, [0.75, 0.25]))
    np.testing.assert_allclose(plain.anomaly_score(table), (base - np.median(base)) / iqr, rtol=1e-9, atol=1e-12)
    both = MeanShift(KNN()).fit(table)
    z = (table - table.mean(axis=0)) / table.std(axis=0)
    moved = ((z - MeanShifter(both.n_neighbors_, 3).fit(z).training_shift_) ** 2).sum(axis=1)
    extra = (moved - np.median(moved)) / np.subtract(*np.quantile(moved, [0.75, 0.25]))
    np.testing.assert_allclose(both.anomaly_score(table) - plain.anomaly_score(table), extra, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("n", "k"), [(20, 10), (1000, 20), (1499, 30), (1600, 32), (6000, 100)])
def test_automatic_neighbours(n, k):
    X = np.random.default_rng(0).normal(size=(n, 1))
    assert MeanShift(PCA(), n_shifts=0).fit(X).n_neighbors_ == k


def test_a_row_does_not_depend_on_its_batch_and_models_travel(table, tmp_path):
    model = MeanShift(KNN()).fit(table)
    before = pickle.dumps(model)
    whole = model.anomaly_score(table)
    alone = np.concatenate([model.anomaly_score(table[i : i + 1]) for i in range(0, len(table), 9)])
    np.testing.assert_allclose(alone, whole[::9], rtol=1e-9, atol=1e-12)
    assert pickle.dumps(model) == before
    np.testing.assert_array_equal(pickle.loads(before).anomaly_score(table), whole)
    save(model, tmp_path / "m.skerry")
    np.testing.assert_array_equal(load(tmp_path / "m.skerry").anomaly_score(table), whole)


def test_hostile_tables_give_finite_scores(table):
    for X in (np.ones((9, 2)), table[:1], np.repeat(table[:1], 60, axis=0), np.c_[table, np.ones(len(table))]):
        model = MeanShift(KNN()).fit(X)
        assert np.isfinite(model.anomaly_score(X)).all()
        assert np.isfinite(model.explain(X)).all()
    X = table.copy()
    X[3, 1] = 1e90
    assert np.isfinite(MeanShift(KNN()).fit(X).anomaly_score(X)).all()


def test_around_an_autoencoder(table):
    pytest.importorskip("torch", reason="needs the extra 'deep'")
    from skerry.detect.tabular.autoencoder import AutoEncoder

    inner = AutoEncoder(epochs=20, n_models=1, random_state=0)
    model = MeanShift(inner).fit(table)
    s = model.anomaly_score(table)
    np.testing.assert_allclose(model.explain(table).sum(axis=1), s, rtol=1e-9)
    assert not np.allclose(s, model.detector_.anomaly_score(table))
    still = MeanShift(inner, n_neighbors=1).fit(table)
    np.testing.assert_array_equal(still.anomaly_score(table), inner.fit(table).anomaly_score(table))


def test_a_thing_that_is_no_detector_is_refused(table):
    with pytest.raises(ParameterError, match="detector"):
        MeanShift(3).fit(table)


def test_scikit_learn_contract():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(
            MeanShift(PCA(), n_shifts=1, threshold="contamination:0.1"), on_skip=None, on_fail=None
        )
    assert not {r["check_name"]: repr(r["exception"])[:300] for r in results if r["status"] == "failed"}


def test_the_share_of_the_shift_is_told_apart(table):
    pytest.importorskip("torch", reason="needs the extra 'deep'")
    from skerry.detect.tabular.autoencoder import AutoEncoder

    model = MeanShift(AutoEncoder("mse", epochs=5, n_models=1, random_state=0), n_neighbors=5).fit(table)
    parts = model.explain_parts(table)
    np.testing.assert_allclose(sum(parts.values()), model.explain(table), atol=1e-9)
    np.testing.assert_allclose(parts["reconstruction"], model.detector_.explain(table), atol=1e-9)
    with pytest.raises(ParameterError, match="KNN has no explain_parts"):
        MeanShift(KNN(), n_neighbors=5).fit(table).explain_parts(table)
