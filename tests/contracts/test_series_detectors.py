"""What every detector on series must do."""

import io
import pickle
import warnings

import numpy as np
import polars as pl
import pytest
from sklearn.base import clone

from skerry.core.errors import DataError, ParameterError, SkerryError
from skerry.core.persistence import load, save
from skerry.core.threshold import Conformal
from skerry.detect.series.registry import SERIES_DETECTORS, make_series_detector

SMALL: dict[str, dict] = {  # smaller budgets for the slow ones
    "imdiffusion": {"window": 24, "mask_split": 4, "n_steps": 6, "vote_last": 3, "vote_every": 1, "channels": 8}
    | {"n_layers": 1, "n_heads": 2, "train_stride": 12, "batch_size": 8, "max_epochs": 4, "patience": None}
    | {"learning_rate": 5e-3, "scale": 10.0, "base_rate": 0.01, "dropout": 0.0},
}
# where the scores themselves are judged: enough for any seed to find the burst, and its channel
LEARNT: dict[str, dict] = {
    "imdiffusion": {
        "n_steps": 10,
        "channels": 16,
        "train_stride": 2,
        "batch_size": 32,
        "max_epochs": 16,
        "n_samples": 4,
    },
}
TORCH: set[str] = {"imdiffusion"}


@pytest.fixture(params=sorted(SERIES_DETECTORS))
def make(request):
    if request.param in TORCH:
        pytest.importorskip("torch", reason="needs the extra 'deep'")

    def build(**parameters):
        return make_series_detector(request.param, **{"random_state": 0} | SMALL.get(request.param, {}) | parameters)

    build.name = request.param
    build.learnt = lambda: build(**LEARNT.get(request.param, {}))
    return build


@pytest.fixture(scope="module")
def waves():
    """Two channels of 1,200 steps, daily wave of 48, with noise; a burst at 900 in the second half."""
    rng = np.random.default_rng(0)
    t = np.arange(1_200)
    X = np.column_stack([np.sin(2 * np.pi * t / 48), 5 + 2 * np.cos(2 * np.pi * t / 48)])
    X += 0.05 * rng.normal(size=X.shape)
    X[900:912, 0] += np.linspace(2.0, 4.0, 12)
    return X


def test_one_finite_score_a_step_and_the_burst_stands_out(make, waves):
    detector = make.learnt()
    s = detector.fit_score(waves)
    assert s.dtype == np.float64
    assert s.shape == (len(waves),)
    assert np.isfinite(s).all()
    burst = s[895:940].max()
    assert (s > burst).mean() < 0.02
    np.testing.assert_array_equal(detector.is_outlier(waves), detector.anomaly_score(waves) > detector.threshold_)
    np.testing.assert_allclose(s, detector.anomaly_score(waves), rtol=1e-6, atol=1e-9)


def test_a_causal_score_does_not_change_when_the_future_is_cut_off(make, waves):
    detector = make().fit(waves[:600])
    if not detector.causal:
        pytest.skip("an offline method")
    whole = detector.anomaly_score(waves[600:])
    for end in (1, 2, 50, 333):
        np.testing.assert_allclose(detector.anomaly_score(waves[600 : 600 + end]), whole[:end], rtol=1e-6, atol=1e-9)


def test_step_by_step_is_the_same_as_in_one_piece(make, waves, tmp_path):
    detector = make().fit(waves[:600])
    if not hasattr(detector, "update"):
        pytest.skip("follows no stream")
    part = waves[860:960].copy()
    part[5, 1] = np.nan
    whole = detector.anomaly_score(part)
    detector.reset()
    got = [detector.update(x) for x in part[:60]]
    save(detector, tmp_path / "state.skerry")
    resumed = load(tmp_path / "state.skerry")
    got += [resumed.update(x) for x in part[60:]]
    np.testing.assert_allclose(got, whole, rtol=1e-6, atol=1e-9)
    with pytest.raises(DataError, match="2 channels"):
        resumed.update([1.0, 2.0, 3.0])
    with pytest.raises(DataError, match="infinity in channel 1"):
        resumed.update([1.0, np.inf])
    np.testing.assert_allclose(detector.anomaly_score(part), whole)  # scoring and following do not disturb each other


def test_blocks_and_pieces_of_a_stream_are_scored_like_the_whole(make, waves):
    detector = make().fit(waves[:600])
    part = waves[850:1000].copy()
    part[20, 1] = part[40] = np.nan
    if hasattr(detector, "update"):
        detector.reset()
        got = np.concatenate([detector.update_many(block) for block in np.split(part, [1, 30, 31, 99])])
        np.testing.assert_allclose(got, detector.anomaly_score(part), rtol=1e-6, atol=1e-9)
    else:
        with pytest.raises(ParameterError, match="follows no stream"):
            detector.update_many(part)
    if detector.reach is None:
        return
    assert detector.causal
    for start in (1, 41, 90):  # the first step of a piece has no gap
        np.testing.assert_allclose(
            detector.anomaly_score(part[start:])[detector.reach :],
            detector.anomaly_score(part)[start + detector.reach :],
            rtol=1e-6,
            atol=1e-9,
        )


def test_missing_values_and_dead_channels_are_borne(make, waves):
    X = np.column_stack([waves, np.full(len(waves), 3.0), np.full(len(waves), np.nan)])
    X[100:130, 0] = np.nan
    X[400] = np.nan
    s = make.learnt().fit_score(X)
    assert np.isfinite(s).all()
    assert s[895:940].max() > np.quantile(s, 0.98)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 40])
def test_short_series_are_scored_or_refused_in_words(make, n):
    X = np.sin(np.arange(n, dtype=float))[:, None]
    detector = make()
    try:
        s = detector.fit_score(X)
    except SkerryError as error:
        pytest.skip(f"refused: {error}")
    assert s.shape == (n,)
    assert np.isfinite(s).all()


def test_a_constant_series_has_no_outlier(make):
    detector = make()
    s = detector.fit_score(np.full((300, 1), 7.0))
    assert np.ptp(s) <= 1e-6 * max(1.0, np.abs(s).max())
    assert not detector.is_outlier(np.full((300, 1), 7.0)).any()


def test_one_channel_comes_flat_or_as_a_column_or_as_a_frame(make, waves):
    x = waves[:, 0]
    flat = make().fit_score(x)
    np.testing.assert_allclose(make().fit_score(x[:, None]), flat, rtol=1e-9)
    np.testing.assert_allclose(make().fit_score(pl.DataFrame({"x": x})), flat, rtol=1e-9)


def test_bad_series_are_refused_in_words(make, waves):
    bad = waves.copy()
    bad[17, 1] = np.inf
    with pytest.raises(DataError, match=r"step 17, channel 1"):
        make().fit(bad)
    with pytest.raises(DataError):
        make().fit(np.empty((0, 2)))
    with pytest.raises(DataError, match="features"):
        make().fit(waves).anomaly_score(waves[:, :1])
    with pytest.raises(ParameterError):
        make(threshold="contamination:7").fit(waves)


def test_huge_and_tiny_values_stay_finite(make, waves):
    for scale in (1e90, 1e-90):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert np.isfinite(make().fit_score(waves * scale)).all()


def test_same_seed_same_scores_and_input_kept(make, waves):
    kept = waves.copy()
    waves.setflags(write=False)
    detector = make()
    np.testing.assert_array_equal(detector.fit_score(waves), clone(detector).fit_score(waves))
    np.testing.assert_array_equal(waves, kept)


def test_conformal_holds_out_the_last_steps(make, waves):
    detector = make(threshold=Conformal(0.1)).fit(waves[:800])
    assert len(detector.reference_scores_) == round(Conformal(0.1).holdout * 800)
    p = detector.p_value(waves[:800])
    assert ((p > 0) & (p <= 1)).all()


def test_models_travel(make, waves, tmp_path):
    detector = make().fit(waves)
    want = detector.anomaly_score(waves)
    np.testing.assert_array_equal(pickle.load(io.BytesIO(pickle.dumps(detector))).anomaly_score(waves), want)
    save(detector, tmp_path / "m.skerry")
    np.testing.assert_array_equal(load(tmp_path / "m.skerry").anomaly_score(waves), want)


def test_the_blame_of_the_burst_lies_with_its_channel(make, waves):
    detector = make.learnt().fit(waves)
    parts = detector.explain(waves)
    assert parts.shape == waves.shape
    assert np.isfinite(parts).all()
    step = 880 + int(np.argmax(detector.anomaly_score(waves)[880:950]))
    assert parts[step, 0] > parts[step, 1]
