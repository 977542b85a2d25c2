"""What is saved of series, and how it judges series that come later."""

import json
import zipfile

import numpy as np
import polars as pl
import pytest

from skerry.core.errors import DataError, ModelError
from skerry.core.persistence import load, save
from skerry.data.series import read_series
from skerry.detect.series import find_events
from skerry.detect.series.series_model import SeriesModel


def frame(n=500, seed=0, **more):
    rng = np.random.default_rng(seed)
    wave = np.sin(np.arange(n) / 5) + 0.05 * rng.normal(size=n)
    return pl.DataFrame({"t": np.arange(n), "x": wave, "y": rng.normal(size=n), **more})


def burst(table, at=300):
    x = table["x"].to_numpy().copy()
    x[at : at + 8] += 4.0
    return table.with_columns(x=pl.Series(x))


@pytest.fixture
def model(tmp_path):
    keep = []
    find_events(frame(), detector="forecast", time="t", on_fitted=keep.append)
    return load(save(keep[0], tmp_path / "m.skerry"))


def test_a_loaded_model_scores_as_the_fitted_one(tmp_path):
    kept = []
    found = find_events(frame(), detector="ensemble", time="t", on_fitted=kept.append)
    again = find_events(frame(), model=load(save(kept[0], tmp_path / "m.skerry")))
    np.testing.assert_allclose(again.series[0].scores, found.series[0].scores, rtol=1e-9)
    assert again.detector == found.detector == "Ensemble"
    assert again.series[0].threshold == found.series[0].threshold


def test_a_reference_is_learned_from_and_the_rest_judged(model):
    later = burst(frame(seed=1))
    by_model = find_events(later, model=model)
    by_reference = find_events(later, detector="forecast", time="t", reference=frame())
    assert [(e.start, e.stop) for e in by_model.events] == [(e.start, e.stop) for e in by_reference.events]
    assert any(e.start < 308 and e.stop > 300 for e in by_model.events)


def test_a_channel_that_is_gone_or_new_or_moved(model):
    later = burst(frame(seed=1))
    whole = find_events(later, model=model).series[0].scores
    moved = find_events(later.select("y", "t", "x").with_columns(z=1.0 * pl.col("y")), model=model)
    np.testing.assert_array_equal(moved.series[0].scores, whole)
    assert any("left out: 'z'" in note for note in moved.notes)
    gone = find_events(later.drop("y"), model=model)
    assert any("taken as missing throughout: 'y'" in note for note in gone.notes)
    assert any(e.start < 308 and e.stop > 300 for e in gone.events)
    with pytest.raises(DataError, match="none of the channels"):
        find_events(later.rename({"x": "a", "y": "b"}), model=model)


def test_each_series_has_its_own_detector_and_strangers_are_told(tmp_path):
    two = pl.concat([frame(seed=s).with_columns(pump=pl.lit(name)) for s, name in enumerate(("north", "south"))])
    kept = []
    find_events(two, detector="forecast", by="pump", time="t", on_fitted=kept.append)
    model = load(save(kept[0], tmp_path / "m.skerry"))
    assert sorted(model.detectors_) == ["north", "south"]
    later = burst(frame(seed=2)).with_columns(pump=pl.lit("south"))  # its stamps do not repeat: the model knows the key
    (series,) = find_events(later, model=model).series
    south = model.detectors_["south"].anomaly_score(later.select("x", "y").to_numpy())
    np.testing.assert_array_equal(series.scores, south)
    both = pl.concat([later, later.with_columns(pump=pl.lit("west"))])
    found = find_events(both, model=model)
    assert [s.name for s in found.series] == ["south"]
    assert any("does not know, left out: 'west'" in note for note in found.notes)
    with pytest.raises(DataError, match="series 'west' was not learned"):
        find_events(later.with_columns(pump=pl.lit("west")), model=model)


def test_a_model_of_one_series_judges_many(model):
    many = pl.concat([frame(seed=s).with_columns(pump=pl.lit(name)) for s, name in enumerate(("north", "south"))])
    assert len(find_events(many, model=model, by="pump").series) == 2


def test_the_longest_piece_of_a_cut_series_is_learned():
    x = frame(600)
    cut = x.with_columns(t=pl.col("t") + 5000 * (pl.col("t") >= 200))
    kept = []
    assert len(find_events(cut, detector="forecast", time="t", on_fitted=kept.append).series) == 2
    assert list(kept[0].detectors_) == [""]
    pieces = read_series(cut, time="t")
    expected = SeriesModel("forecast").fit(pieces)
    later = find_events(x, model=kept[0]).series[0].scores
    np.testing.assert_array_equal(later, find_events(x, model=expected).series[0].scores)
    np.testing.assert_array_equal(expected.anomaly_score(pieces[1]), kept[0].anomaly_score(pieces[1]))


def test_another_pace_is_told(model):
    slow = frame().with_columns(t=10 * pl.col("t"))
    assert any("learned from steps of 1" in note for note in find_events(slow, model=model).notes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda root: root["v"].pop("detectors_"), "no fitted detectors"),
        (lambda root: root["v"].update(detectors_={"t": "dict", "v": []}), "no fitted detectors"),
        (lambda root: root["v"].update(reading_={"t": "dict", "v": [["engine", "x"]]}), "how its table was read"),
        (lambda root: root["v"]["channels_"]["v"][0][1]["v"].append("z"), "no fitted detector of its 3 channels"),
        (lambda root: root["v"]["detectors_"]["v"][0].__setitem__(1, 7), "no fitted detector"),
        (lambda root: root["v"]["detectors_"]["v"][0][1]["v"].pop("coef_", None), "cannot score"),
        (
            lambda root: root["v"]["detectors_"]["v"][0][1].update(module="os", **{"class": "system"}),
            "not one of skerry",
        ),
    ],
)
def test_a_file_that_was_tampered_with_is_refused(model, tmp_path, change, words):
    path = save(model, tmp_path / "m.skerry")
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    header = json.loads(parts["skerry.json"])
    change(header["root"])
    parts["skerry.json"] = json.dumps(header).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    with pytest.raises(ModelError, match=words):
        find_events(frame(), model=load(path))


def test_a_truncated_file_is_refused(model, tmp_path):
    path = save(model, tmp_path / "m.skerry")
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ModelError, match="not a whole model"):
        load(path)
