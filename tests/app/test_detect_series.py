"""``skerry detect`` on series, as a user runs it."""

import json

import numpy as np
import polars as pl
import pytest


@pytest.fixture(scope="module")
def sensor(tmp_path_factory):
    t = np.arange(800)
    rng = np.random.default_rng(0)
    value = np.sin(2 * np.pi * t / 50) + 0.05 * rng.normal(size=800)
    value[600:610] += 3.0
    stamps = pl.datetime_range(
        pl.datetime(2026, 1, 1), pl.datetime(2026, 1, 1) + pl.duration(minutes=799), "1m", eager=True
    )
    path = tmp_path_factory.mktemp("series") / "sensor.csv"
    pl.DataFrame({"time": stamps, "value": value}).write_csv(path)
    return path


def test_a_steady_time_column_makes_a_series_and_is_told(skerry, sensor, tmp_path):
    done = skerry("detect", sensor, "--out", tmp_path / "s.parquet")
    assert done.returncode == 0, done.stderr
    flat = " ".join(done.stdout.split())
    assert "read as a series: column 'time' holds steady times" in flat
    assert "800 steps, 1 channel" in flat
    assert "2026-01-01 09:5" in flat or "2026-01-01 10:0" in flat
    assert pl.read_parquet(tmp_path / "s.parquet").height == 800


def test_the_detector_decides_where_only_one_kind_has_it(skerry, sensor):
    assert json.loads(skerry("detect", sensor, "--detector", "hbos", "--json").stdout)["rows"] == 800
    told = json.loads(skerry("detect", sensor, "--detector", "spectral-residual", "--json").stdout)
    assert told["steps"] == 800
    assert "spectral-residual is a detector of series" in told["notes"][0]


def test_the_file_that_is_read_is_never_replaced(skerry, sensor):
    before = sensor.read_bytes()
    for option in ("--report", "--out", "--save-model"):
        done = skerry("detect", sensor, "--detector", "hbos", option, sensor)
        assert done.returncode == 1
        assert "would be replaced" in done.stderr or "must end in" in done.stderr
        assert sensor.read_bytes() == before


def test_json_and_the_way_back_to_a_table(skerry, sensor):
    done = skerry("detect", sensor, "--detector", "forecast", "--json", "--merge-gap", "30")
    told = json.loads(done.stdout)
    assert told["steps"] == 800
    assert told["events"][0]["start"] in range(595, 606)
    done = skerry("detect", sensor, "--kind", "table", "--detector", "hbos", "--json")
    assert json.loads(done.stdout)["rows"] == 800


@pytest.fixture(scope="module")
def readings(tmp_path_factory):
    """A long table by a local clock that is set back in October: a row for each sensor and ten minutes."""
    path = tmp_path_factory.mktemp("long") / "readings.csv"
    stamps = pl.datetime_range(
        pl.datetime(2026, 10, 22), pl.datetime(2026, 10, 26, 4), "10m", eager=True, time_zone="UTC"
    ).dt.convert_time_zone("Europe/Paris")
    n = len(stamps)
    rng = np.random.default_rng(0)
    inlet, outlet = (np.sin(np.arange(n) / k) + 0.05 * rng.normal(size=n) for k in (7, 11))
    outlet[450:456] += 3.0
    frames = [
        pl.DataFrame({"when": stamps.dt.strftime("%d.%m.%Y %H:%M"), "sensor": [name] * n, "reading": x})
        for name, x in (("inlet", inlet), ("outlet", outlet))
    ]
    pl.concat(frames).write_csv(path)
    return path


def test_a_long_table_by_a_local_clock_is_read_by_options_and_so_are_later_ones(skerry, readings, tmp_path):
    how = ["--channel", "sensor", "--value", "reading", "--time-zone", "Europe/Paris", "--time", "when"]
    model = tmp_path / "m.skerry"
    done = skerry("detect", readings, *how, "--detector", "forecast", "--json", "--save-model", model)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["series"][0]["channels"] == ["inlet", "outlet"]
    assert told["steps"] == 601
    worst = told["events"][0]
    assert worst["start"] < 456 and worst["stop"] > 450
    assert worst["reasons"][0].startswith("outlet")
    assert "2026-10-25 03:30:00" <= worst["first"] <= "2026-10-25 05:00:00"  # by the local clock
    again = json.loads(skerry("detect", readings, "--model", model, "--json").stdout)
    assert (again["steps"], again["events"][0]["start"]) == (601, worst["start"])
    hourly = skerry("detect", readings, *how, "--detector", "forecast", "--json", "--step", "1h")
    assert json.loads(hourly.stdout)["steps"] == 101


def test_what_is_told_of_reading_names_options_of_the_command(skerry, sensor, readings):
    told = json.loads(skerry("detect", sensor, "--detector", "forecast", "--json").stdout)
    assert any("found, say --time if it is another" in note for note in told["notes"])
    done = skerry("detect", readings, "--time", "when", "--by", "sensor", "--order", "error", "--detector", "forecast")
    assert done.returncode == 1
    assert "--order sort or 'keep'" in done.stderr


def test_several_columns_tell_series_apart(skerry, tmp_path):
    rng = np.random.default_rng(0)
    rows = [(site, pump, k, rng.normal()) for site in "ab" for pump in (1, 2) for k in range(60)]
    path = tmp_path / "pumps.csv"
    pl.DataFrame(rows, schema=["site", "pump", "second", "flow"], orient="row").write_csv(path)
    how = ["--kind", "series", "--time", "second", "--detector", "forecast", "--json"]
    told = json.loads(skerry("detect", path, *how, "--by", "site", "--by", "pump").stdout)
    assert len(told["series"]) == 4 and told["steps"] == 240
    assert {tuple(s["channels"]) for s in told["series"]} == {("flow",)}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--time-zone", "Mars/Olympus"], 1, "unknown time zone"),
        (["--step", "soon"], 1, "step"),
        (["--order", "random"], 1, "unknown order"),
        (["--value", "value"], 1, "--value goes with --channel"),
        (["--follow", "--time-zone", "UTC"], 2, "--time-zone does nothing with --follow"),
        (["--kind", "video"], 2, "--kind must be"),
        (["--detector", "oracle"], 2, "unknown detector"),
        (["--kind", "series", "--detector", "knn"], 2, "unknown series detector"),
        (["--time", "nope"], 1, "nope"),
        (["--model", "nope.skerry"], 1, "no such file"),
        (["--reference", "nope.csv"], 1, "nope.csv"),
        (["--model", "nope.skerry", "--kind", "series", "--follow"], 2, "--model does nothing"),
        (["--reference", "nope.csv", "--train-share", "0.5"], 2, "exclude each other"),
        (["--train-share", "7"], 1, "train_share"),
        (["--out", "/no/such/folder/s.csv"], 1, "does not exist"),
    ],
)
def test_mistakes_end_in_one_line(skerry, sensor, arguments, code, words):
    done = skerry("detect", sensor, "--detector", "forecast", *arguments)
    assert done.returncode == code
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_a_model_is_saved_and_scores_what_comes_later(skerry, sensor, tmp_path):
    lines = sensor.read_text().splitlines()
    early, late, other = tmp_path / "early.csv", tmp_path / "late.csv", tmp_path / "other.csv"
    early.write_text("\n".join(lines[:501]) + "\n")
    late.write_text("\n".join([lines[0].replace("value", "new,value"), *(r.replace(",", ",7,") for r in lines[501:])]))
    other.write_text("\n".join([lines[0].replace("value", "speed"), *lines[501:]]))
    model = tmp_path / "m.skerry"
    done = skerry("detect", early, "--detector", "forecast", "--save-model", model)
    assert done.returncode == 0, done.stderr
    assert f"model: {model.name}" in done.stdout.replace(str(tmp_path) + "/", "")
    told = json.loads(skerry("detect", late, "--model", model, "--json").stdout)  # a new channel is told and left out
    assert told["detector"] == "Forecast"
    assert any("is a model of series" in note for note in told["notes"])
    assert any("left out: 'new'" in note for note in told["notes"])
    assert any(e["start"] < 110 and e["stop"] > 100 for e in told["events"])
    loud = json.loads(skerry("detect", late, "--model", model, "--json", "--threshold", "contamination:0.3").stdout)
    few, many = (sum(e["stop"] - e["start"] for e in t["events"]) for t in (told, loud))
    assert few < many
    by_reference = json.loads(
        skerry("detect", late, "--kind", "series", "--detector", "forecast", "--reference", early, "--json").stdout
    )
    assert by_reference["events"] == told["events"]
    for arguments, words in (
        ((other, "--model", model), "none of the channels"),
        ((late, "--model", model, "--kind", "table"), "is a model of kind series"),
        ((late, "--model", early), "not a whole model"),
    ):
        done = skerry("detect", *arguments)
        assert (done.returncode, "Traceback" in done.stderr) == (1, False)
        assert words in " ".join(done.stderr.split())
