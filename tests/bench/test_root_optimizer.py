"""The study of ROOT runs at a tiny size, and its parts measure what they say."""

import gzip

import pytest

pytest.importorskip("torch", reason="needs the extra 'deep'")

from skerry.bench import optimizers as parts
from skerry.bench import root_optimizer as study
from skerry.core.errors import DataError

TINY = {
    "shapes": ((8, 8), (8, 16)),
    "cost": {"dim": 32, "n_layers": 1, "vocabulary": 20, "repeats": 1},
    "seeds": 1,
    "steps": 4,
    "quadratic": 3,
}


@pytest.fixture
def data(tmp_path):
    (tmp_path / "text").mkdir()
    with gzip.open(tmp_path / "text" / parts.TEXT, "wb") as file:
        file.write(b"It was the best of times, it was the worst of times. " * 60)
    return tmp_path


def test_quick_path(monkeypatch, data):
    monkeypatch.setitem(study.SIZES, "quick", TINY)
    monkeypatch.setattr(parts, "HELD_OUT", 1)
    monkeypatch.setattr(study, "QUADRATIC", 2)
    result = study.run(True, data, 0, lambda text: None)
    rows = {r["optimizer"]: r for r in result["table"]}
    assert set(rows) == set(parts.OPTIMIZERS)
    assert all(0 < r[noise] < 20 for r in rows.values() for noise in parts.NOISES)
    cost = next(t for name, t in result["tables"].items() if name.startswith("Seconds"))
    floors = ["the matrix products alone", "the fewest products alone"]
    assert [r["step"].split(",")[0] for r in cost] == [*floors, "AdamW", "AdamW", "Muon", "ROOT"]
    assert all(r["seconds"] > 0 and r["CPU seconds"] > 0 for r in cost)
    assert {r["met"] for r in result["tables"]["Expectations"]} <= {"yes", "no"}
    assert "ROOT" in result["claim"]


def test_exactness_is_measured_on_unseen_matrices():
    square, wide = parts.precision([(16, 16), (16, 48)], seed=0)
    assert square["fitted"] < square["Muon"] and wide["fitted"] < wide["Muon"] / 10
    assert wide["fitted"] < wide["one triple for all"] < wide["Muon"]


def test_noise_is_only_where_it_is_asked_for(monkeypatch, data):
    text = parts.read_text(data)
    monkeypatch.setattr(parts, "HELD_OUT", 1)
    losses = {noise: parts.train_bytes(text, "Muon", noise, 0, 6, dim=16, n_layers=1)["loss"] for noise in parts.NOISES}
    assert losses["clean"] == losses["spoilt batches"]  # the first would be the fiftieth
    assert losses["clean"] != losses["Student-t entries"]
    assert losses["clean"] == parts.train_bytes(text, "Muon", "clean", 0, 6, dim=16, n_layers=1)["loss"]


def test_all_optimizers_of_the_study_share_rate_and_decay():
    for name in parts.OPTIMIZERS:
        model = parts.Decoder(20, 16, 1)
        groups = parts.build(name, model, 3e-3).param_groups
        assert {g["lr"] for g in groups} == {3e-3}
        assert {id(p) for g in groups for p in g["params"]} == {id(p) for p in model.parameters()}


def test_the_floor_counts_the_products():
    assert parts.flops([(4, 8)], steps=1) == 4 * 16 * 8 + 2 * 64
    parts._products([(4, 8), (8, 8)])()


def test_absent_or_damaged_text_is_named(tmp_path):
    with pytest.raises(DataError, match=parts.TEXT):
        parts.read_text(tmp_path)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / parts.TEXT).write_bytes(b"no gzip")
    with pytest.raises(DataError, match="cannot be read"):
        parts.read_text(tmp_path)
