"""A stream that is cut anywhere tells the same events as one that is not."""

import numpy as np
import pytest

from skerry.core.errors import DataError, ModelError, ParameterError
from skerry.detect.series import Forecast, LiveDetector
from skerry.detect.series.registry import SERIES_DETECTORS, make_series_detector


def series(n=400, c=2, seed=0):
    rng = np.random.default_rng(seed)
    X = np.sin(np.arange(n)[:, None] / 5 + np.arange(c)) + 0.05 * rng.normal(size=(n, c))
    X[250:270] += 6.0
    X[330:333, 0] -= 4.0
    X[100, 0] = np.nan
    return X


def live(detector="forecast", **more):
    return LiveDetector(detector, warmup=120, threshold="extreme:0.02", **more)


FOLLOW = [
    "forecast",
    "channel-components",
    "half-space-trees",
    "windowed",
    "windowed:pca",
    "ensemble",
    Forecast(lags=8, smoothing=5),
]


def test_every_detector_that_follows_is_tried():
    for name in SERIES_DETECTORS:
        tried = any(isinstance(d, str) and d.partition(":")[0] == name for d in FOLLOW)
        assert tried == hasattr(make_series_detector(name), "update"), name


def same(told, whole):
    """Whether two tellings are one; scores may differ in their last bits where a block is multiplied as a whole."""
    assert [(e.kind, e.number, e.start, e.last, e.peak, e.steps, e.reasons) for e in told] == [
        (e.kind, e.number, e.start, e.last, e.peak, e.steps, e.reasons) for e in whole
    ]
    np.testing.assert_allclose([e.score for e in told], [e.score for e in whole], rtol=1e-9)
    return True


@pytest.mark.parametrize("detector", FOLLOW, ids=str)
def test_blocks_of_any_size_tell_the_same(detector):
    X = series()
    whole = live(detector).feed(X)
    one = live(detector)
    assert same([e for x in X for e in one.feed(x[None])], whole)
    assert {e.kind for e in whole} == {"alarm", "end"}


@pytest.mark.parametrize("detector", FOLLOW, ids=str)
def test_a_cut_at_every_step_loses_and_repeats_nothing(detector, tmp_path):
    X, t = series(), np.arange(400) * 1_000_000
    X[300:304] = np.nan
    whole = live(detector).feed(X, t)
    walker, told, state = live(detector), [], tmp_path / "state"
    told += walker.feed(X[:240], t[:240])
    for cut in range(240, 400):  # the state goes through the file at every step
        walker.save(state)
        walker = LiveDetector.load(state)
        told += walker.feed(X[cut : cut + 1], t[cut : cut + 1])
    assert same(told, whole)
    first = live(detector)
    told = first.feed(X[:7], t[:7])
    for a, b in ((7, 119), (119, 120), (120, 121), (121, 400)):  # around the warm-up
        first.save(state)
        first = LiveDetector.load(state)
        told += first.feed(X[a:b], t[a:b])
    assert same(told, whole)


def test_a_gap_longer_than_allowed_ends_the_event_and_starts_anew():
    X, t = series(), np.arange(400.0)
    t = np.where(np.arange(400) >= 253, t + 5000, t)
    follower = live()
    told = follower.feed(X, t)
    assert any("starts anew" in note for note in follower.notes_)
    assert told
    assert not any(float(e.start) < 253 and float(e.last) > 5000 for e in told)


def test_one_point_and_wrong_input(tmp_path):
    follower = live()
    assert follower.feed([[1.0, 2.0]]) == []
    assert not follower.warm
    with pytest.raises(DataError, match="channels"):
        follower.feed([[1.0]])
    with pytest.raises(DataError, match="hold no number"):
        live().feed(np.full((200, 2), np.nan))
    with pytest.raises(ParameterError, match="cannot follow"):
        live("matrix-profile")
    with pytest.raises(ParameterError, match="contamination"):
        LiveDetector(threshold="contamination:0.01")
    (tmp_path / "bad").write_bytes(b"PK")
    with pytest.raises(ModelError):
        LiveDetector.load(tmp_path / "bad")


def test_an_event_does_not_hide_the_next_one():
    x = np.sin(np.arange(700) / 5) + 0.02 * np.random.default_rng(0).normal(size=700)
    x[300:304] += 3.0
    x[500:502] += 0.5
    follower = LiveDetector(warmup=120)
    follower.feed(x[:299])
    before = follower.threshold_.threshold_
    told = follower.feed(x[299:])
    assert follower.threshold_.threshold_ < 2 * before
    assert any(498 <= float(e.start) <= 502 for e in told if e.kind == "alarm")


@pytest.mark.parametrize("detector", ["forecast", "half-space-trees", "windowed:hbos"])
def test_memory_does_not_grow_with_the_stream(detector):
    rng = np.random.default_rng(0)
    follower = LiveDetector(detector, warmup=120)

    def size():
        arrays, stack, seen = 0, [follower], set()
        while stack:
            thing = stack.pop()
            if id(thing) in seen:
                continue
            seen.add(id(thing))
            if isinstance(thing, np.ndarray):
                arrays += thing.nbytes
            elif isinstance(thing, (list, tuple)):
                stack += thing
            elif isinstance(thing, dict):
                stack += thing.values()
            elif hasattr(thing, "__dict__"):
                stack.append(vars(thing))
        return arrays + len(seen) * 64

    follower.feed(rng.normal(size=10_000))
    before = size()
    for _ in range(5):
        follower.feed(rng.normal(size=10_000))
        follower.notes_.clear()
    assert size() < before + 16_384  # SPOT gathers up to 1,000 peaks


def test_the_defaults_are_those_of_the_page_on_alarms():
    live = LiveDetector(warmup=20)
    live.feed(np.sin(np.arange(60)))
    assert (type(live.threshold_).__name__, live.threshold_.risk) == ("SPOT", 1e-3)
    flags = np.zeros(200, dtype=bool)
    flags[[50, 80, 150]] = True
    assert [(e.start, e.stop) for e in live.stream_.rule.events(flags)] == [(50, 81), (150, 151)]
