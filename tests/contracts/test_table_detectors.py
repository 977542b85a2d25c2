"""What every detector on tables must do."""

import io
import pickle
import warnings

import numpy as np
import polars as pl
import pytest
from sklearn.base import clone
from sklearn.metrics import roc_auc_score
from sklearn.utils.estimator_checks import check_estimator

from skerry.core.errors import DataError, ParameterError
from skerry.core.persistence import load, save
from skerry.core.threshold import Conformal

SLOW = {"autood"}


@pytest.fixture(scope="module")
def easy():
    rng = np.random.default_rng(0)
    X = np.vstack([rng.normal(size=(220, 5)), rng.uniform(-7, 7, size=(20, 5))])
    return X, np.r_[np.zeros(220), np.ones(20)]


def test_scikit_learn_contract(make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # one of its checks wants an outlier even in a clean sample, which "auto" rightly does not give
        results = check_estimator(make(threshold="contamination:0.1"), on_skip=None, on_fail=None)
    failed = {r["check_name"]: repr(r["exception"])[:400] for r in results if r["status"] == "failed"}
    assert not failed


def test_finds_easy_outliers_and_agrees_with_itself(make, easy):
    X, y = easy
    detector = make().fit(X)
    s = detector.anomaly_score(X)
    assert s.dtype == np.float64
    assert s.shape == (len(X),)
    assert np.isfinite(s).all()
    assert roc_auc_score(y, s) > (0.5 if make.name in SLOW else 0.8)
    np.testing.assert_array_equal(detector.is_outlier(X), s > detector.threshold_)
    np.testing.assert_array_equal(detector.predict(X), np.where(s > detector.threshold_, -1, 1))
    np.testing.assert_allclose(detector.decision_function(X), detector.threshold_ - s)
    # the scores learned in fit are those of scoring the same rows again
    np.testing.assert_allclose(np.sort(s), detector.reference_scores_, rtol=1e-6, atol=1e-9)


def test_fitting_and_scoring_at_once_is_the_same(make, easy):
    X, _ = easy
    for threshold in ("auto", Conformal(0.1)):
        detector, both = make(threshold=threshold).fit(X), make(threshold=threshold)
        np.testing.assert_allclose(both.fit_score(X), detector.anomaly_score(X), rtol=1e-6, atol=1e-9)
        assert both.threshold_ == pytest.approx(detector.threshold_)


def test_a_row_does_not_depend_on_its_batch_and_scoring_changes_nothing(make, easy):
    X, _ = easy
    detector = make().fit(X)
    before = pickle.dumps(detector)
    whole = detector.anomaly_score(X)
    alone = np.concatenate([detector.anomaly_score(X[i : i + 1]) for i in range(0, len(X), 17)])
    np.testing.assert_allclose(alone, whole[::17], rtol=1e-6, atol=1e-9)
    assert pickle.dumps(detector) == before


def test_same_seed_same_scores_and_input_kept(make, easy):
    X, _ = easy
    kept = X.copy()
    X.setflags(write=False)
    first = make().fit(X).anomaly_score(X)
    second = clone(make()).fit(X).anomaly_score(X)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(X, kept)


def test_frames_float32_and_fortran_order_are_taken(make, easy):
    X, _ = easy
    detector = make().fit(pl.DataFrame(X, schema=list("abcde")))
    assert list(detector.feature_names_in_) == list("abcde")
    reference = detector.anomaly_score(pl.DataFrame(X, schema=list("abcde")))
    detector = make().fit(np.asfortranarray(X))
    np.testing.assert_allclose(detector.anomaly_score(np.asfortranarray(X)), reference, rtol=1e-9)
    assert np.isfinite(make().fit(X.astype(np.float32)).anomaly_score(X.astype(np.float32))).all()


@pytest.mark.parametrize("kind", ["constant column", "all constant", "one row 60 times", "huge", "one column"])
def test_hostile_tables_give_finite_scores(make, easy, kind):
    X = easy[0].copy()
    if kind == "constant column":
        X[:, 2] = 3.0
    elif kind == "all constant":
        X[:] = 1.0
    elif kind == "one row 60 times":
        X[:60] = X[0]
    elif kind == "huge":
        X[3, 1] = 1e90
    else:
        X = X[:, :1]
    detector = make().fit(X)
    s = detector.anomaly_score(X)
    assert np.isfinite(s).all()
    assert np.isfinite(detector.explain(X[:5])).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_missing_and_infinite_values_name_their_place(make, easy, bad):
    X = easy[0].copy()
    X[4, 2] = bad
    with pytest.raises(DataError, match="row 4, column 2"):
        make().fit(X)
    detector = make().fit(easy[0])
    with pytest.raises(DataError, match="row 4, column 2"):
        detector.anomaly_score(X)


def test_wrong_width_and_empty_are_refused(make, easy):
    detector = make().fit(easy[0])
    with pytest.raises(DataError, match="3 features"):
        detector.anomaly_score(easy[0][:, :3])
    with pytest.raises(DataError, match="0 sample"):
        make().fit(np.empty((0, 4)))


def test_explain_has_one_number_per_feature(make, easy):
    X = easy[0].copy()
    X[0] = 0.0
    X[0, 3] = 30.0
    detector = make().fit(X)
    parts = detector.explain(X[:3])
    assert parts.shape == (3, 5)
    assert np.isfinite(parts).all()
    if make.name not in SLOW:
        assert parts[0].argmax() == 3


def test_conformal_p_values_are_super_uniform_on_fresh_inliers(make):
    rng = np.random.default_rng(1)
    detector = make(threshold=Conformal(0.1)).fit(rng.normal(size=(300, 4)))
    p = detector.p_value(rng.normal(size=(400, 4)))
    assert (p > 0).all()
    for level in (0.1, 0.3):
        assert (p <= level).mean() < level + 0.12  # 3.3 standard errors of a 150-row reference at level 0.3


def test_threshold_can_be_swapped_without_refitting(make, easy):
    X, _ = easy
    detector = make(threshold="contamination:0.1").fit(X)
    assert detector.is_outlier(X).sum() <= 24
    s = detector.anomaly_score(X)
    detector.set_threshold("contamination:0.05")
    assert detector.is_outlier(X).sum() <= 12
    np.testing.assert_array_equal(detector.anomaly_score(X), s)
    with pytest.raises(ParameterError, match="unknown threshold"):
        detector.set_threshold("sometimes")


def test_saved_and_loaded_scores_are_equal(make, easy, tmp_path):
    X, _ = easy
    detector = make().fit(X)
    save(detector, tmp_path / "model.skerry")
    again = load(tmp_path / "model.skerry")
    np.testing.assert_allclose(again.anomaly_score(X), detector.anomaly_score(X), rtol=1e-9, atol=1e-12)
    assert again.get_params().keys() == detector.get_params().keys()
    assert again.threshold_ == detector.threshold_
    buffer = io.BytesIO(pickle.dumps(detector))
    np.testing.assert_allclose(pickle.load(buffer).anomaly_score(X), detector.anomaly_score(X), rtol=1e-9)
