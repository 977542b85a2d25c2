import numpy as np
import pytest

from skerry.core.block_conformal import BlockConformal
from skerry.core.errors import DataError, ParameterError
from skerry.core.persistence import load, save
from skerry.core.series_threshold import Adaptive, parse_series_threshold
from skerry.core.threshold import Conformal
from skerry.detect.series import Forecast, find_events


def wave(n, seed=0):
    return np.sin(np.arange(n) / 5) + 0.1 * np.random.default_rng(seed).normal(size=n)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("block-conformal", BlockConformal()),
        ("block-conformal:0.1", BlockConformal(0.1)),
        ("block-conformal:0.1:30", BlockConformal(0.1, 30)),
        ("adaptive:0.02", Adaptive(0.02)),
        ("conformal:0.1", Conformal(0.1)),
    ],
)
def test_names_are_rules(text, rule):
    assert parse_series_threshold(text) == rule
    assert parse_series_threshold(rule) is rule


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("block-conformal:x", "not a number"),
        ("block-conformal:0.1:2.5", "whole number"),
        ("adaptive:0.1:3", "too many"),
        ("adaptive:0.7", "alpha"),
        ("blok:0.1", "block-conformal"),
        ("contamination:7", "contamination must lie"),
    ],
)
def test_mistakes_are_told(text, words):
    with pytest.raises(ParameterError, match=words):
        parse_series_threshold(text)


def test_the_reference_of_block_conformal_lies_in_time_and_was_not_fitted():
    x = wave(4000)
    detector = Forecast(threshold="block-conformal:0.1").fit(x)
    held = Forecast().fit(x[:2000]).anomaly_score(x)[2000:]
    np.testing.assert_allclose(detector.reference_in_time_, held)
    assert detector.threshold_ == BlockConformal(0.1).cutoff(held)
    np.testing.assert_array_equal(detector.reference_scores_, np.sort(held))
    other = detector.set_threshold("block-conformal:0.1:50").threshold_
    assert other == BlockConformal(0.1, 50).cutoff(held)


def test_blocks_of_new_ordinary_steps_have_a_flag_with_the_chance_promised():
    share = []
    for seed in range(12):
        x = wave(8000, seed)
        flags = Forecast(threshold="block-conformal:0.1").fit(x[:6000]).is_outlier(x[5900:])[100:]
        share.append(flags.reshape(-1, 100).any(axis=1).mean())
    assert 0.05 < np.mean(share) < 0.16


def test_adaptive_flags_in_order_of_time_and_travels(tmp_path):
    x = wave(5000) * np.repeat([1.0, 3.0], 2500)
    detector = Forecast(threshold="adaptive:0.05").fit(x[:1000])
    flags, cuts = detector.decide(detector.anomaly_score(x))
    np.testing.assert_array_equal(flags, detector.is_outlier(x))
    assert np.ptp(cuts[np.isfinite(cuts)]) > 0
    assert 0.03 < flags.mean() < 0.07
    assert detector.is_outlier(x[:300]).tolist() == flags[:300].tolist()
    save(detector, tmp_path / "m")
    np.testing.assert_array_equal(load(tmp_path / "m").is_outlier(x), flags)


def test_long_references_are_thinned_only_for_rules_without_order(monkeypatch):
    monkeypatch.setattr("skerry.core.series_detector.REFERENCE_ROWS", 300)
    x = wave(1000)
    thin = Forecast().fit(x)
    assert len(thin.reference_scores_) == 300
    with pytest.raises(DataError, match="from the start"):
        thin.set_threshold("block-conformal:0.1:10")
    kept = Forecast(threshold="block-conformal:0.1:10").fit(x)
    np.testing.assert_array_equal(kept.reference_in_time_, Forecast().fit(x[:500]).anomaly_score(x)[-300:])
    thin.calibrate(x[:200], "block-conformal:0.1:10")
    assert np.isfinite(thin.threshold_)


def test_events_by_the_rules_of_series():
    x = wave(6000)
    x[5000:5005] += 5
    for rule in ("block-conformal:0.05", "adaptive:0.002"):
        found = find_events(x, detector="forecast", threshold=rule, time=False, train_share=0.7)
        assert any(4998 <= e.start <= 5005 and e.p_value < 0.05 for e in found.events)
    assert any("the threshold moves" in note for note in found.notes)
    short = find_events(x[4000:5500], detector="forecast", threshold="block-conformal:0.05", time=False)
    assert short.n_events == 0
    assert any("needs 19 blocks of 100" in note and "0.05:19 takes" in note for note in short.notes)
