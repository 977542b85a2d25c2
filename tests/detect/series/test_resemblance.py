"""Which similarity matrices a page gets, and that they are those of the detector."""

import numpy as np
import polars as pl

from skerry.core.events import Event
from skerry.data.series import read_series
from skerry.detect.series.forecast import Forecast
from skerry.detect.series.resemblance import PICTURES, resemblances
from skerry.detect.series.themis import Themis


def test_the_highest_events_get_the_matrix_of_their_channel():
    rng = np.random.default_rng(0)
    X = np.sin(np.arange(600)[:, None] / np.array([6.0, 9.0, 5.0])) + 0.01 * rng.normal(size=(600, 3))
    frame = read_series(pl.DataFrame(X, schema=["a", "b", "c"]), time=False)[0]
    model = Themis(window=100, channels=[0, 2]).fit(X)
    events = [Event(20 * k, 20 * k + 4, 20 * k + 2, float(k)) for k in range(1, PICTURES + 5)]
    # channel b is not used by the detector: it cannot be looked at
    looks = resemblances(frame, model, events, {e.peak: np.array([0.0, 9.0, 1.0]) for e in events})
    assert sorted(looks) == [e.peak for e in events[-PICTURES:]]
    for peak, look in looks.items():
        start, S = model.similarity(X, at=peak, channel=2)
        assert (look.channel, look.start) == ("c", start)
        np.testing.assert_array_equal(look.values, S.astype(np.float32))
        assert (look.first, look.last) == (frame.when(start), frame.when(start + 99))


def test_a_reference_is_cut_off_and_other_detectors_have_no_matrix():
    x = np.sin(np.arange(300) / 6)
    frame = read_series(pl.DataFrame({"x": x}), time=False)[0]
    event = [Event(100, 104, 101, 1.0)]
    model = Themis(window=100, reference=8).fit(frame.values)
    blame = {101: np.ones(1)}
    assert resemblances(frame, model, event, blame)[101].values.shape == (100, 100)
    assert resemblances(frame, model, event, None) == {}
    assert resemblances(frame, Forecast().fit(frame.values), event, blame) == {}
