"""From a file to events: what is found, told, written and refused."""

import numpy as np
import polars as pl
import pytest

from skerry.core.errors import DataError, ParameterError
from skerry.core.events import AlarmRule
from skerry.core.metrics import roc_auc
from skerry.core.series_detector import SeriesDetector
from skerry.detect.series.forecast import Forecast
from skerry.detect.series.pipeline import find_events


@pytest.fixture(scope="module")
def pumps():
    """Two pumps, one row a minute; the second one's pressure jumps for a quarter of an hour."""
    rng = np.random.default_rng(0)
    t = np.arange(900)
    frames = []
    for k, name in enumerate(("north", "south")):
        load = np.sin(2 * np.pi * t / 60) + 0.05 * rng.normal(size=900)
        pressure = 5 + np.cos(2 * np.pi * t / 60) + 0.05 * rng.normal(size=900)
        broken = np.zeros(900, dtype=np.int64)
        if k == 1:
            pressure[500:515] += np.linspace(3, 5, 15)
            broken[500:515] = 1
        stamps = pl.datetime_range(
            pl.datetime(2026, 3, 1), pl.datetime(2026, 3, 1) + pl.duration(minutes=899), "1m", eager=True
        )
        frames.append(
            pl.DataFrame({"at": stamps, "pump": [name] * 900, "load": load, "pressure": pressure, "y": broken})
        )
    return pl.concat(frames)


def test_the_event_is_found_in_its_series_with_its_channel_and_time(pumps, tmp_path):
    path = tmp_path / "pumps.csv"
    pumps.write_csv(path)
    found = find_events(path, detector="forecast", threshold="contamination:0.01", label="y", out=tmp_path / "s.csv")
    assert [s.name for s in found.series] == ["north", "south"]
    assert found.series[0].channels == ["load", "pressure"]
    worst = found.events[0]
    assert worst.series == "south"
    assert worst.start < 520
    assert worst.stop > 500
    assert worst.first == str(pumps["at"][worst.start])
    assert worst.reasons[0].startswith("pressure")
    assert worst.blame["pressure"] > 0.7
    assert worst.row == 900 + int(np.argmax(found.series[1].scores))
    y = pumps["y"].to_numpy()[900:]
    assert found.metrics["auroc"] == pytest.approx(roc_auc(y, found.series[1].scores))
    assert found.metrics["auroc"] > 0.7
    assert any("1 series with both labels" in note for note in found.notes)
    written = pl.read_csv(tmp_path / "s.csv")
    assert written.height == 1800
    assert written["row"].to_list() == list(range(1800))
    np.testing.assert_allclose(written["score"][900:], found.series[1].scores)
    assert written["event"].max() == max(len([e for e in found.events if e.series == n]) for n in ("north", "south"))
    assert found.to_frame().height == found.n_events == len(found)
    assert '"series":"south"' in found.to_json().replace(" ", "")


def test_what_is_told_of_many_series_is_told_once_or_under_their_name(pumps):
    holes = pumps.with_columns(
        load=pl.when((pl.col("pump") == "south") & (pl.int_range(pl.len()) % 50 == 0))
        .then(None)
        .otherwise(pl.col("load"))
    ).drop("y")
    notes = find_events(holes, detector="forecast", by="pump").notes
    assert sum("time is column 'at'" in note for note in notes) == 1
    assert [note for note in notes if "missing value" in note] == [
        "south: 18 missing values of 1,800 (1.0%), most in 'load'; left as NaN"
    ]
    many = pl.concat([holes.with_columns(pump=pl.col("pump") + str(k)) for k in range(10)])
    notes = find_events(many, detector="forecast", by="pump").notes
    assert notes[-1] == "and 2 more notes on single series"


def test_the_alarm_rule_and_top_count(pumps):
    south = pumps.filter(pl.col("pump") == "south").drop("pump", "y")
    many = find_events(south, detector="forecast", threshold="contamination:0.05", alarm=AlarmRule())
    few = find_events(south, detector="forecast", threshold="contamination:0.05", alarm=AlarmRule(merge_gap=60))
    assert few.n_events < many.n_events
    assert len(find_events(south, detector="forecast", threshold="contamination:0.05", top=2).events) == 2


@pytest.mark.parametrize("detector", ["ensemble", "forecast"])
def test_the_top_events_are_those_of_the_whole_list_and_explained_as_in_the_whole_series(pumps, detector):
    south = pumps.filter(pl.col("pump") == "south").drop("pump", "y")
    south = south.with_columns(load=pl.when(pl.int_range(pl.len()) % 90 < 3).then(None).otherwise(pl.col("load")))
    options = {"detector": detector, "threshold": "contamination:0.3", "alarm": AlarmRule()}
    every = find_events(south, **options)  # so many that the whole series is explained at once
    few = find_events(south, **options, top=3)  # from what each looks back to
    assert every.n_events == few.n_events > 28
    assert [e.start for e in few.events] == [e.start for e in every.events[:3]]
    for a, b in zip(few.events, every.events[:3], strict=True):
        assert a.reasons == b.reasons
        assert a.blame == pytest.approx(b.blame, abs=2e-4)
        assert (a.score, a.p_value) == (b.score, b.p_value)


def test_learning_from_the_first_share_does_not_see_the_event(pumps):
    south = pumps.filter(pl.col("pump") == "south").drop("pump", "y")
    found = find_events(south, detector="forecast", train_share=0.5)
    model = Forecast().fit(south.select("load", "pressure").to_numpy()[:450])
    np.testing.assert_allclose(found.series[0].scores, model.anomaly_score(found.series[0].values))


class _Itself(SeriesDetector):
    """The score of a step is its value."""

    def __init__(self, threshold="auto"):
        self.threshold = threshold

    def _fit(self, X):
        pass

    def _score(self, X):
        return X[:, 0]


def test_a_threshold_above_every_score_says_how_to_have_a_lower_one():
    skewed = np.minimum(np.exp(1.2 * np.random.default_rng(0).normal(size=2_000)), 12.0)
    found = find_events(skewed, detector=_Itself(), time=False)
    assert found.n_events == 0
    assert any("above all of them: threshold contamination:0.01" in note for note in found.notes)
    for rule, x in (("contamination:0.1", skewed), ("auto", np.sin(np.arange(900.0)))):
        other = find_events(x, detector=_Itself(), threshold=rule, time=False)
        assert not any("above all of them" in note for note in other.notes)


def test_a_quiet_series_has_no_event():
    found = find_events(np.sin(np.arange(500) / 9), detector="forecast", time=False)
    assert found.n_events == 0
    assert found.to_frame().height == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_share": 1.5}, "train_share"),
        ({"label": "nope"}, "no column 'nope'"),
        ({"label": "load"}, "must hold 0 and 1"),
        ({"out": "scores.txt"}, "parquet or .csv"),
        ({"detector": "oracle"}, "unknown series detector"),
        ({"by": "nope"}, "no column 'nope'"),
    ],
)
def test_mistakes_are_told(pumps, options, message):
    with pytest.raises((DataError, ParameterError), match=message):
        find_events(pumps, **{"detector": "forecast"} | options)
