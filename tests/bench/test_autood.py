"""The study of searches runs at a tiny size, and its claim and expectations come from what it measured."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra 'deep'")

from skerry.bench import autood as study
from skerry.bench.autood_images import PICTURED, _parts
from skerry.core.errors import DataError

TINY = {"tables": 1, "rows": 300, "children": 3, "epochs": 1, "final": 2, "seeds": 1}
TINY |= {"classes": 1, "images": 40, "image_children": 2, "image_epochs": 1, "image_final": 2}


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "adbench").mkdir()
    X = np.r_[rng.normal(size=(270, 5)), rng.normal(scale=4, size=(30, 5))]
    np.savez(tmp_path / "adbench" / "6_cardio.npz", X=X, y=np.r_[np.zeros(270), np.ones(30)])
    (tmp_path / "images").mkdir()
    x = rng.integers(0, 256, size=(450, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "images" / "fashion_mnist.npz", x_train=x, y_train=np.repeat(np.arange(3), 150))
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
    pictures = result["tables"]["Images: one class of Fashion-MNIST is normal"]
    assert {r["method"] for r in pictures} == set(PICTURED)
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


def test_images_have_their_share_of_outliers_and_no_image_twice(data):
    parts = _parts(data, 1, 30, np.random.default_rng(0))
    assert [(x.shape, y.sum()) for x, y in parts] == [((30, 196), 3)] * 3
    assert len(np.unique(np.vstack([x for x, _ in parts]), axis=0)) == 90
    assert all(0 <= x.min() and x.max() <= 1 for x, _ in parts)
    with pytest.raises(DataError, match="fashion_mnist"):
        _parts(data / "adbench", 1, 30, np.random.default_rng(0))
