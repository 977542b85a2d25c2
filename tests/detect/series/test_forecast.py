"""Forecast against an autoregression that is known, and its smoothing by hand."""

import numpy as np
import pytest

from skerry.detect.series.forecast import Forecast


def test_an_autoregression_is_learned_and_outliers_stand_out_of_it():
    rng = np.random.default_rng(0)
    x = np.zeros(4_000)
    for t in range(2, 4_000):
        x[t] = 1.2 * x[t - 1] - 0.5 * x[t - 2] + 0.1 * rng.normal()
    detector = Forecast(lags=4).fit(x)
    # the last step stands twice among the features, as the first lag and as a channel
    assert detector.coef_[0, 0] + detector.coef_[0, 4] == pytest.approx(1.2, abs=0.1)
    assert detector.usual_[0] * detector.scale_[0] == pytest.approx(0.1, rel=0.1)
    dirty = x.copy()
    hit = rng.choice(np.arange(100, 4_000), 20, replace=False)
    dirty[hit] += 5.0
    assert np.median(Forecast(lags=4).fit(dirty).anomaly_score(dirty)[hit]) > 15


@pytest.mark.parametrize("smoothing", [1, 2, 16])
def test_smoothing_is_the_mean_of_the_last_scores(smoothing):
    X = np.random.default_rng(1).normal(size=(90, 2))
    plain = Forecast(lags=3).fit(X).anomaly_score(X)
    got = Forecast(lags=3, smoothing=smoothing).fit(X)
    want = [plain[max(0, t - smoothing + 1) : t + 1].mean() for t in range(90)]
    np.testing.assert_allclose(got.anomaly_score(X), want)
    np.testing.assert_allclose([got.update(x) for x in X], want)


@pytest.mark.parametrize("sizes", [[1, 1, 2, 40], [5, 90], [30, 1, 1, 60]])
def test_blocks_of_a_stream_with_smoothing_are_scored_like_steps(sizes):
    x = np.sin(np.arange(400) / 5)
    x[350] = np.nan
    det = Forecast(smoothing=4).fit(x[:250])
    part = x[300:400]
    steps = [det.update(v) for v in part]
    det.reset()
    blocks = np.split(part, np.cumsum(sizes))
    many = np.concatenate([det.update_many(b) for b in blocks if len(b)])
    np.testing.assert_allclose(many, steps, rtol=1e-9)
    assert det.seen_ == det.lags
