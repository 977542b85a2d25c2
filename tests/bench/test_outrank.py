"""The ranking study at a tiny size: its tables, its one-hot codes, its peers."""

import sys

import numpy as np
import polars as pl
import pytest

from skerry.bench import outrank
from skerry.bench.outrank_downstream import OneHot, loss_by_columns
from skerry.bench.outrank_peer import Ranked, by_package, by_skerry
from skerry.bench.outrank_tables import planted_table, real_tables


def test_planted_table_is_what_it_says():
    frame, share = planted_table(20_000, 3)
    assert frame.width == 101
    assert share.mean() == pytest.approx(0.22, abs=1e-3)
    assert (frame["label"] == "1").mean() == pytest.approx(0.22, abs=0.02)
    assert [frame[f"f{j}"].n_unique() for j in (0, 20, 40)] == [2, 10, 100]
    assert frame.equals(planted_table(20_000, 3)[0])


def test_one_hot_equals_naive():
    rng = np.random.default_rng(0)
    codes = {"a": rng.integers(0, 4, 60), "b": rng.integers(0, 3, 60)}
    train, test = np.arange(20), np.arange(20, 60)
    got = OneHot(codes, [("a",), ("a", "b")], train).matrix(test).toarray()
    pairs = {(u, v) for u, v in zip(codes["a"][:20], codes["b"][:20], strict=True)}
    known = [sorted(set(codes["a"][train])), sorted(pairs)]
    for row, i in enumerate(test):
        wanted = [codes["a"][i] == v for v in known[0]] + [(codes["a"][i], codes["b"][i]) == v for v in known[1]]
        assert got[row].tolist() == wanted


def test_loss_falls_with_the_right_columns():
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, 800)
    frame = pl.DataFrame({"a": np.where(rng.random(800) < 0.8, y, 1 - y), "id": np.arange(800), "label": y})
    frame = frame.with_columns(pl.all().cast(pl.String))
    rows = {r["ranking"]: r for r in loss_by_columns([("t", frame, "label", ["1"])], True, 0, lambda text: None)}
    assert rows["Skerry"]["k = 1"] < 0.55 < rows["plain information"]["k = 1"]
    assert rows["Skerry"]["all"] == rows["random forest"]["all"]


def test_commands_rank_the_same_file(tmp_path, monkeypatch):
    rng = np.random.default_rng(2)
    y = rng.integers(0, 2, 500)
    frame = pl.DataFrame({"good": np.where(rng.random(500) < 0.8, y, 1 - y), "id": np.arange(500), "label": y})
    frame.write_csv(tmp_path / "data.csv")
    got = by_skerry(tmp_path / "data.csv", "label", "--pairwise")
    assert got.order == ["good", "id"]
    assert got.pairs[frozenset(("good", "label"))] == pytest.approx(got.scores["good"], rel=0.05)
    assert got.cpu > got.inside > 0
    assert by_skerry(tmp_path / "data.csv", "none").problem
    monkeypatch.setenv("SKERRY_OUTRANK_PYTHON", sys.executable)
    absent = by_package(tmp_path / "data.csv", "label")
    assert absent.problem == "not installed" or absent.scores


def test_recovered_rows():
    scores = {f"f{j}": 1.0 - j / 100 for j in range(100)}
    row = outrank._recovered("ours", [Ranked(scores, {}, 2.0, 3.0, 1.0), Ranked(problem="stopped")])
    assert row["worst rank of f3, f25, f45, by seed"] == "46"
    assert row["CPU s"] == 2.0
    assert outrank._recovered("x", [Ranked(problem="not installed")]) == {"method": "x (not installed)"}


def test_real_tables_have_two_classes(adbench):
    tables, notes = real_tables(adbench.parent)
    assert len(tables) + len(notes) == 2
    for _, frame, target, ones in tables:
        share = frame[target].is_in(ones).mean()
        assert 0.1 < share < 0.9
        assert "difficulty" not in frame.columns
