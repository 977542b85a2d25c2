import datetime as dt
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.core.errors import DataError, ParameterError
from skerry.data.series import find_time_column, read_series

DATA = Path(os.environ.get("SKERRY_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")) / "series"
START = dt.datetime(2024, 1, 1)


def minutes(n, step=1, start=START):
    return [start + dt.timedelta(minutes=step * i) for i in range(n)]


def wide(n=60, **columns):
    return pl.DataFrame({"ts": minutes(n), "load": np.arange(n, dtype=float), "temp": np.arange(n) * 2, **columns})


def said(series, words):
    return any(words in note for note in series.notes)


# ---- finding -------------------------------------------------------------------------------------------------


def test_a_wide_table_is_one_series_with_everything_told():
    (s,) = read_series(wide())
    assert (s.channels, s.time_column, s.step, s.regular, len(s)) == (["load", "temp"], "ts", 60e6, True, 60)
    np.testing.assert_array_equal(s.values, np.c_[np.arange(60.0), 2 * np.arange(60.0)])
    assert s.time[1] == np.datetime64("2024-01-01T00:01") and s.rows.tolist() == list(range(60))
    assert said(s, "time is column 'ts' (date and time; found")
    assert s.when(61 - 2) == "2024-01-01 00:59:00"
    assert s.to_polars().columns == ["ts", "load", "temp"]
    assert "60 steps of 1 min x 2 channels" in repr(s)


def test_from_a_file_with_text_stamps(tmp_path):
    path = tmp_path / "sensor.csv"
    path.write_text("when;x\n" + "".join(f"01.02.2024 10:{m:02d};{m / 10}\n" for m in range(30)))
    (s,) = read_series(path)
    assert s.time[0] == np.datetime64("2024-02-01T10:00") and s.values[3, 0] == 0.3
    assert said(s, "%d.%m.%Y %H:%M") and said(s, "separated by semicolon")


def test_the_time_may_be_named_and_need_not_exist():
    table = wide(other=minutes(60, 2))
    with pytest.raises(DataError, match="'ts', 'other' could all be the time|time="):
        read_series(table.rename({"ts": "first"}), time=None)
    assert read_series(table)[0].time_column == "ts"  # its name says so
    assert read_series(table, time="other")[0].step == 120e6
    (s,) = read_series(table, time=False)
    assert s.time.tolist() == list(range(60)) and s.time_column == "" and s.channels == ["load", "temp"]
    (s,) = read_series(np.arange(12.0), time=False)
    assert s.values.shape == (12, 1) and s.when(3) == "3"
    (s,) = read_series(table.select(pl.col("load").alias("x"), "temp"), time="x")
    assert s.step == 1.0 and s.channels == ["temp"]


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (pl.DataFrame({"a": [1.0, 2.0], "b": ["x", "y"]}), {}, "no column of dates or times"),
        (wide(), {"time": "tsx"}, "no column 'tsx'; did you mean 'ts'"),
        (wide(name=["abc"] * 60), {"time": "name"}, "does not read as time ('abc')"),
        (wide().select("ts"), {}, "no column of numbers beside the time"),
        (wide(), {"by": "host"}, "no column 'host'"),
        (wide(note=["n"] * 60), {"channels": ["note"]}, "column 'note' holds String"),
        (wide(name=["a", "b"] * 30), {"channel": "name"}, "one column of values"),
    ],
)
def test_what_cannot_be_read_is_said(table, options, message):
    with pytest.raises(DataError, match=".*".join(map(__import__("re").escape, [message]))):
        read_series(table, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "sorted"}, "did you mean 'sort'"),
        ({"duplicates": "avg"}, "unknown duplicates"),
        ({"max_gap": -1}, "max_gap"),
        ({"step": "5 lightyears"}, "step must be a length of time"),
        ({"step": 5}, "step must be a length of time"),
        ({"time_zone": "Mars/Olympus"}, "unknown time zone"),
        ({"value": "load"}, "value= goes with channel="),
        ({"time": "temp", "time_zone": "UTC"}, "plain numbers"),
    ],
)
def test_bad_options_say_what_is_allowed(options, message):
    with pytest.raises(ParameterError, match=message):
        read_series(wide(), **options)


# ---- many series ---------------------------------------------------------------------------------------------


def stacked():
    one, names = wide(40), (pl.lit("eu").alias("zone"),)
    return pl.concat(
        [one.with_columns(pl.col("load") + i, pl.lit(h).alias("host"), *names) for i, h in enumerate("ba")]
    )


def test_series_one_after_another_and_side_by_side_are_told_apart_by_their_key():
    for table in (stacked(), stacked().sort("ts", maintain_order=True)):
        for options in ({}, {"by": "host"}, {"by": ["host", "zone"]}):
            frames = read_series(table, **options)
            assert [s.name.split(" / ")[0] for s in frames] == ["b", "a"]
            assert all(len(s) == 40 and s.channels == ["load", "temp"] for s in frames)
            assert said(frames[0], "told apart by 'host'") == (not options)
            for s in frames:
                assert set(table["host"].gather(s.rows)) == {s.name.split(" / ")[0]}


def test_two_possible_keys_or_none_are_an_error():
    two = stacked().with_columns(pl.col("host").alias("machine"))
    with pytest.raises(DataError, match="'host' or 'machine'"):
        read_series(two)
    with pytest.raises(DataError, match="on top of each other"):
        read_series(stacked().drop("host"))
    with pytest.raises(DataError, match="share their stamp"):
        read_series(stacked().drop("host").sort("ts"))


def test_a_state_column_is_no_key_and_a_hint_is_given():
    (s,) = read_series(wide(mode=["on", "off"] * 30))
    assert said(s, "if 'mode' tells several series apart, say by=") and said(s, "not numbers, left out: 'mode'")


def test_a_long_table_becomes_channels():
    rows = [(t, c, float(i) + (c == "q")) for i, t in enumerate(minutes(20)) for c in ("p", "q")]
    rows.remove((minutes(20)[5], "q", 6.0))
    rows.append((minutes(20)[7], "p", 9.0))  # once more
    table = pl.DataFrame(rows, schema=["t", "sensor", "reading"], orient="row")
    (s,) = read_series(table, channel="sensor", value="reading")
    assert s.channels == ["p", "q"] and len(s) == 20
    assert np.isnan(s.values[5, 1]) and s.values[7, 0] == 8.0 and s.values[9].tolist() == [9.0, 10.0]
    assert said(s, "1 row with the stamp and channel of another; averaged")
    assert [f.name for f in read_series(table.head(39))] == ["p", "q"]  # without being told: a series each
    both = pl.concat([table.with_columns(pl.lit(h).alias("h")) for h in "xy"])
    assert [(f.name, f.channels) for f in read_series(both, by="h", channel="sensor")] == [
        ("x", ["p", "q"]),
        ("y", ["p", "q"]),
    ]


# ---- clocks --------------------------------------------------------------------------------------------------


def test_gaps_and_missing_stamps():
    table = wide(60).filter(~pl.col("load").is_in([10.0, 11.0, 30.0]))
    table = table.with_columns(pl.when(pl.col("load") == 50).then(None).otherwise(pl.col("ts")).alias("ts"))
    (s,) = read_series(table)
    assert len(s) == 60 and np.flatnonzero(s.rows < 0).tolist() == [10, 11, 30, 50]
    assert np.isnan(s.values[[10, 11, 30, 50]]).all()
    assert said(s, "3 gaps, 4 missing steps in all") and said(s, "1 of 57 rows have no readable stamp in column 'ts'")
    with pytest.raises(DataError, match="no readable stamp"):
        read_series(table.with_columns(pl.when(pl.col("load") > 9).then(None).otherwise(pl.col("ts")).alias("ts")))


def test_a_gap_longer_than_allowed_cuts_the_series():
    table = pl.concat([wide(50), wide(50).with_columns(pl.col("ts") + dt.timedelta(days=30))])
    frames = read_series(table)
    assert [s.name.endswith("#2") for s in frames] == [False, True]
    assert frames[1].rows[0] == 50 and said(frames[0], "the series is cut there")


def test_local_clocks_through_daylight_saving():
    utc = pl.Series(minutes(96, 15, dt.datetime(2024, 10, 26, 12))).dt.replace_time_zone("UTC")
    local = utc.dt.convert_time_zone("Europe/Paris").dt.replace_time_zone(None)
    table = pl.DataFrame({"ts": local, "x": np.arange(96.0)})
    (s,) = read_series(table, time_zone="Europe/Paris")
    np.testing.assert_array_equal(s.time, utc.dt.replace_time_zone(None).to_numpy())
    assert s.time_zone == "Europe/Paris" and s.when(0) == "2024-10-26 14:00:00" and said(s, "show twice")
    (s,) = read_series(table)  # not told: the clock was set back
    assert len(s) == 96 and s.rows.tolist() == list(range(96)) and said(s, "daylight saving")
    assert (np.diff(s.time) == np.timedelta64(15, "m")).all()
    aware = table.with_columns(utc.dt.convert_time_zone("Europe/Paris").alias("ts"))
    (s,) = read_series(aware)
    np.testing.assert_array_equal(s.time, utc.dt.replace_time_zone(None).to_numpy())
    spring = pl.Series(minutes(96, 15, dt.datetime(2024, 3, 30, 12))).dt.replace_time_zone("UTC")
    jump = pl.DataFrame(
        {"ts": spring.dt.convert_time_zone("Europe/Paris").dt.replace_time_zone(None), "x": np.arange(96.0)}
    )
    assert len(read_series(jump, time_zone="Europe/Paris")[0]) == 96
    assert len(read_series(jump)[0]) == 100  # not told: four steps seem missing


def test_newest_first_shuffled_and_duplicated():
    table = wide(200)
    for order, words in (
        (table.reverse(), "newest first"),
        (table.sample(fraction=1.0, shuffle=True, seed=0), "sorted"),
    ):
        (s,) = read_series(order)
        np.testing.assert_array_equal(s.values[:, 0], np.arange(200.0))
        np.testing.assert_array_equal(order["load"].to_numpy()[s.rows], s.values[:, 0])
        assert said(s, words)
    twice = pl.concat([table, table.head(3).with_columns(pl.col("load") + 1)]).sort("ts", maintain_order=True)
    assert read_series(twice)[0].values[:3, 0].tolist() == [0.5, 1.5, 2.5]
    assert read_series(twice, duplicates="last")[0].values[:3, 0].tolist() == [1, 2, 3]
    with pytest.raises(DataError, match="share their stamp"):
        read_series(twice, duplicates="error")


def test_irregular_steps_stay_rows_unless_a_grid_is_asked_for():
    rng = np.random.default_rng(0)
    stamps = [START + dt.timedelta(seconds=int(v)) for v in np.cumsum(rng.integers(1, 100, 300))]
    table = pl.DataFrame({"ts": stamps, "x": np.ones(300)})
    (s,) = read_series(table)
    assert len(s) == 300 and not s.regular and said(s, "irregular, from 1 s to 1.65 min")
    (s,) = read_series(table, step="5min")
    assert s.regular and s.step == 300e6 and (np.diff(s.time) == np.timedelta64(5, "m")).all()
    assert np.nanmax(s.values) == np.nanmin(s.values) == 1.0 and said(s, "put on a grid of 5 min: 300 rows became")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.floats(-9, 9)), min_size=1, max_size=40), st.integers(1, 6))
def test_a_grid_averages_what_falls_in_a_step(rows, step):
    table = pl.DataFrame({"t": [float(t) for t, _ in rows], "x": [v for _, v in rows]})
    (s,) = read_series(table, time="t", step=step, order="sort")
    first = min(t for t, _ in rows) // step
    for i, v in enumerate(s.values[:, 0]):
        inside = [x for t, x in rows if t // step == first + i]
        assert np.isnan(v) if not inside else v == pytest.approx(np.mean(inside), abs=1e-9)
    assert len(s) == max(t for t, _ in rows) // step - first + 1


# ---- channels ------------------------------------------------------------------------------------------------


def test_channels_of_every_kind():
    table = wide(
        text=[f"{i}" for i in range(59)] + ["err"],
        flag=[True, False] * 30,
        spent=[dt.timedelta(seconds=i) for i in range(60)],
        mixed=["a"] * 30 + ["1"] * 30,
        born=[dt.date(2000, 1, 1)] * 60,
        same=[3] * 60,
        none=pl.Series([None] * 60, dtype=pl.Float64),
    ).with_columns(pl.when(pl.col("load") == 4).then(float("inf")).otherwise(pl.col("load")).alias("load"))
    (s,) = read_series(table)
    assert s.channels == ["load", "temp", "text", "flag", "spent", "same", "none"]
    assert np.isnan(s.values[4, 0]) and np.isnan(s.values[59, 2]) and s.values[:2, 3].tolist() == [1, 0]
    assert s.values[7, 4] == 7
    for words in (
        "1 infinite value of 'load'",
        "1 cell of 'text'",
        "left out: 'mixed', 'born'",
        "without any value: 'none'",
        "constant: 'same'",
    ):
        assert said(s, words), words
    assert read_series(table, channels=["temp"])[0].values.shape == (60, 1)


def test_missing_values_are_counted():
    table = wide().with_columns(pl.when(pl.col("load") < 6).then(None).otherwise(pl.col("load")).alias("load"))
    (s,) = read_series(table)
    assert said(s, "6 missing values of 120 (5.0%), most in 'load'; left as NaN")


def test_channels_of_another_series_are_asked_for():
    (s,) = read_series(wide(extra=np.ones(60)))
    other = s.select(["temp", "lod", "load"])
    np.testing.assert_array_equal(other.values[:, [0, 2]], s.values[:, [1, 0]])
    assert np.isnan(other.values[:, 1]).all() and other.channels == ["temp", "lod", "load"]
    assert said(other, "taken as missing throughout: 'lod' (did you mean 'load'?)")
    assert said(other, "not asked for, left out: 'extra'") and not said(s, "not asked for")
    with pytest.raises(DataError, match="none of the channels"):
        s.select(["a", "b"])


def test_a_pandas_index_of_dates_is_the_time():
    pd = pytest.importorskip("pandas")
    x = np.arange(30.0)
    for index in (
        pd.date_range("2024-01-01", periods=30, freq="h"),
        pd.date_range("2024-01-01", periods=30, freq="h", tz="Europe/Paris"),
        pd.period_range("2024-01-01", periods=30, freq="h"),
    ):
        for source in (pd.Series(x, index=index), pd.DataFrame({"value": x}, index=index)):
            (s,) = read_series(source)
            assert (s.time_column, s.channels, s.step, len(s)) == ("time", ["value"], 3600e6, 30)
            assert find_time_column(source).steady
    both = pd.MultiIndex.from_product(
        [["a", "b"], pd.date_range("2024-01-01", periods=15, freq="h")], names=["host", None]
    )
    assert [s.name for s in read_series(pd.DataFrame({"x": x}, index=both))] == ["a", "b"]
    plain = pd.DataFrame({"ts": minutes(30), "x": x}, index=range(5, 35))
    assert read_series(plain)[0].channels == ["x"]


@pytest.mark.parametrize("n", [1, 2])
def test_one_and_two_points(n):
    (s,) = read_series(wide(n))
    assert len(s) == n and s.values[0].tolist() == [0, 0]


# ---- noticing ------------------------------------------------------------------------------------------------


def test_a_steady_time_column_is_noticed_and_a_table_of_events_is_not():
    assert find_time_column(wide()).steady
    found = find_time_column(stacked())
    assert (found.name, found.by, found.steady) == ("ts", ["host"], True)
    rng = np.random.default_rng(0)
    stamps = [START + dt.timedelta(seconds=int(v)) for v in np.cumsum(rng.integers(1, 10_000, 300))]
    assert not find_time_column(pl.DataFrame({"created": stamps, "amount": rng.normal(size=300)})).steady
    assert find_time_column(pl.DataFrame({"a": [1, 2, 3]})) is None
    assert find_time_column(wide(other=minutes(60)).rename({"ts": "first"})) is None  # no telling which


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no data at {DATA}: set SKERRY_DATA")
def test_the_numenta_table_is_read_without_being_told_anything():
    table = pl.read_parquet(DATA / "nab.parquet")
    frames = read_series(DATA / "nab.parquet")
    assert {s.name.split(" #")[0] for s in frames} == set(table["name"])
    for s in frames:
        seen = s.rows >= 0
        assert (table["name"].gather(s.rows[seen]) == s.name.split(" #")[0]).all()
        assert (np.diff(s.time) > np.timedelta64(0, "us")).all()
    machine = next(s for s in frames if s.name == "machine_temperature_system_failure")
    assert said(machine, "the clock goes back at 1 place")


@pytest.mark.parametrize("values", [[[1, 2]] * 60, [dt.timedelta(seconds=1)] * 60, [b"x"] * 60])
def test_what_can_name_no_series_is_said(values):
    for options in ({"by": "key"}, {"channel": "key", "value": "load"}):
        with pytest.raises(DataError, match="can name no series or channel"):
            read_series(wide(key=values), **options)


def test_missing_keys_are_a_series_of_their_own():
    table = stacked().with_columns(pl.when(pl.col("host") == "a").then(None).otherwise(pl.col("host")).alias("host"))
    assert [s.name for s in read_series(table, by="host")] == ["b", "missing"]
