"""A stream that is cut anywhere tells the same events as one that is not."""

import numpy as np
import pytest

from skerry.core.errors import DataError, ModelError, ParameterError
from skerry.detect.series.live import LiveDetector


def series(n=400, c=2, seed=0):
    rng = np.random.default_rng(seed)
    X = np.sin(np.arange(n)[:, None] / 5 + np.arange(c)) + 0.05 * rng.normal(size=(n, c))
    X[250:256] += 3.0
    X[330:333, 0] -= 4.0
    X[100, 0] = np.nan
    return X


def live(detector="forecast", **more):
    return LiveDetector(detector, warmup=120, threshold="extreme:1e-3", **more)


@pytest.mark.parametrize("detector", ["forecast", "half-space-trees"])
def test_blocks_of_any_size_tell_the_same(detector):
    X = series()
    whole = live(detector).feed(X)
    one = live(detector)
    assert [e for x in X for e in one.feed(x[None])] == whole
    assert len(whole) > 0


def test_a_cut_at_every_step_loses_and_repeats_nothing(tmp_path):
    X, t = series(), np.arange(400) * 1_000_000
    whole = live().feed(X, t)
    assert {e.kind for e in whole} == {"alarm", "end"}
    for cut in [*range(1, 400, 13), *range(245, 275)]:
        first = live()
        told = first.feed(X[:cut], t[:cut])
        first.save(tmp_path / "state")
        assert told + LiveDetector.load(tmp_path / "state").feed(X[cut:], t[cut:]) == whole


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
