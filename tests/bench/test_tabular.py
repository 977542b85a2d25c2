"""The accuracy studies of tables, on small made tables."""

import numpy as np
import pytest

from skerry.bench import tabular, tabular_apart
from skerry.bench.tables import adbench_tables, apart_tables
from skerry.core.errors import DataError


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("adbench/1_one", "adbench_cv/net/a", "adbench_cv/other/a", "adbench_nlp/words"):
        path = tmp_path / f"{name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        y = (np.arange(120) < 6).astype(int)
        np.savez(path, X=rng.normal(size=(120, 4)) + 9 * y[:, None], y=y)
    return tmp_path


@pytest.fixture
def few(monkeypatch):
    def broken(X, seed):
        raise ValueError("no good")

    def ours(X, seed):
        return np.abs(X - np.median(X, axis=0)).sum(axis=1)

    def worse(X, seed):
        return np.random.default_rng(seed).random(len(X))

    todo = {"skerry ensemble": (ours, False), "pyod KNN": (worse, True), "pyod Bad": (broken, False)}
    monkeypatch.setattr(tabular, "methods", lambda: (todo, ["a peer is absent"]))


def test_tables_kept_apart_have_names_of_their_own_and_share_nothing_with_the_development_tables(folder):
    assert [t[0] for t in adbench_tables(folder)] == ["one"]
    apart = apart_tables(folder, max_rows=60)
    assert [t[0] for t in apart] == ["net/a", "other/a", "words"]
    for _, X, y in apart:
        assert X.shape == (60, 4)
        assert X.dtype == np.float64
        assert y.sum() == 3


def test_no_table_is_told(tmp_path):
    with pytest.raises(DataError, match="adbench_cv"):
        apart_tables(tmp_path)


def test_the_default_is_compared_with_the_best_peer_and_a_broken_peer_is_told(folder, few):
    found = tabular_apart.run(quick=True, data=folder, seed=0, progress=lambda text: None)
    assert [r["method"] for r in found["table"]] == ["skerry ensemble", "pyod KNN"]
    assert found["table"][0]["mean AUROC"] == 1.0
    assert found["claim"].endswith("It is number 1 of 2 by mean AUROC.")
    assert any("pyod Bad: left out after net/a: ValueError: no good" in n for n in found["notes"])
    assert "a peer is absent" in found["notes"]
    [by_table] = found["tables"].values()
    assert [r["table"] for r in by_table] == ["net/a", "other/a", "words"]


def test_a_default_that_fails_is_a_result_too(folder, few, monkeypatch):
    todo, notes = tabular.methods()
    todo["skerry ensemble"] = todo["pyod Bad"]
    monkeypatch.setattr(tabular, "methods", lambda: (todo, notes))
    found = tabular.run(quick=True, data=folder, seed=0, progress=lambda text: None)
    assert found["claim"] == "The default gave no result."
