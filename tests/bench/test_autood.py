"""The study of searches runs at a tiny size, and its claim and expectations come from what it measured."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra 'deep'")

from skerry.bench import autood as study
from skerry.core.errors import DataError

TINY = {"tables": 1, "rows": 300, "children": 3, "epochs": 1, "final": 2, "seeds": 1}


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "adbench").mkdir()
    X = np.r_[rng.normal(size=(270, 5)), rng.normal(scale=4, size=(30, 5))]
    np.savez(tmp_path / "adbench" / "6_cardio.npz", X=X, y=np.r_[np.zeros(270), np.ones(30)])
    return tmp_path


def test_quick_path(monkeypatch, data):
    monkeypatch.setitem(study.SIZES, "quick", TINY)
    lines = []
    result = study.run(True, data, 0, lines.append)
    rows = {r["method"]: r for r in result["table"]}
    assert set(rows) == {study.FIXED, "IsolationForest", "KNN", *study.SEARCHES}
    assert all(0 <= r["test AUROC"] <= 1 for r in rows.values())
    assert rows[study.BLIND]["curve area"] is None and rows[study.AUTOOD]["curve area"] > 0
    assert 1 <= rows[study.RANDOM]["distinct strings"] <= TINY["children"]
    assert lines and f"{rows[study.AUTOOD]['test AUROC']:.3f}" in result["claim"]
    assert {r["met"] for r in result["tables"]["Expectations"]} <= {"yes", "no"}
    again = study.run(True, data, 0, lines.append)
    assert [r["test AUROC"] for r in again["table"]] == [r["test AUROC"] for r in result["table"]]


def test_the_parts_share_no_row_and_the_labels_are_few():
    y = np.r_[np.ones(40), np.zeros(960)]
    train, val, labelled, test = study._split(y, np.random.default_rng(0))
    assert len(np.unique(np.r_[train, val, test])) == 1000
    assert len(train) == 500 and len(labelled) == 50
    assert set(labelled) <= set(val)
    assert y[labelled].sum() == 5


def test_absent_tables_are_named(tmp_path):
    (tmp_path / "adbench").mkdir()
    np.savez(tmp_path / "adbench" / "1_other.npz", X=np.zeros((9, 2)), y=np.zeros(9))
    with pytest.raises(DataError, match="annthyroid"):
        study.run(True, tmp_path, 0, lambda text: None)
