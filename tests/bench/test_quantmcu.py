"""The study of patches runs at a tiny size; what it says comes from what it measured."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra 'deep'")

from skerry.bench import quantmcu as study
from skerry.core.errors import DataError

TINY = {"seeds": 1, "train": 130, "test": 12, "epochs": 1, "lams": (0.6, 0.0), "jobs": 1}


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    arrays = {}
    for part, n in (("train", 150), ("test", 20)):
        arrays[f"x_{part}"] = rng.integers(0, 255, (n, 28, 28)).astype(np.uint8)
        arrays[f"y_{part}"] = np.arange(n) % 10
    np.savez(tmp_path / "images" / "fashion_mnist.npz", **arrays)
    return tmp_path


def test_quick_path(monkeypatch, data):
    monkeypatch.setitem(study.SIZES, "quick", TINY)
    lines = []
    result = study.run(True, data, 0, lines.append)
    rows = {r["plan"]: r for r in result["table"]}
    assert len(lines) == 1 and len(rows) == 3 + 3 + 2 * 3 + 1
    times = "fewer than int8 in patches, times"
    assert rows[study.PATCHES][times] == 1.0 and rows[study.LAYERS][times] > 1.0  # patches repeat work
    assert rows[study.LAYERS]["peak KiB"] > rows[study.PATCHES]["peak KiB"] > rows["4 bits in patches"]["peak KiB"]
    every, ours = rows["VDQS, every patch, λ 0.0"], rows["QuantMCU, λ 0.0"]
    assert every[times] > 1.5 and every["mean bits in patches"] == 2.0 and every[times] >= ours[times]
    assert rows["VDQS, every patch, λ 0.6, three quarters of the memory"]["peak KiB"] <= (
        0.75 * rows[study.PATCHES]["peak KiB"]
    )
    assert f"{rows[study.LAYERS]['accuracy']:.3f}" in result["claim"]
    assert {r["met"] for r in result["tables"]["Expectations"]} <= {"yes", "no"}


def test_garments_lie_whole_on_the_canvas():
    images = np.full((4, 28, 28), 255, np.uint8)
    x = study.paste(images, np.random.default_rng(0), 40)
    assert x.shape == (4, 1, 40, 40) and ((x == 1.0).sum((1, 2, 3)) == 28 * 28).all()
    assert x[x != 1.0].max() < 0.7
    spots = [tuple(np.argwhere(v[0].numpy() == 1.0)[0]) for v in x]
    assert len(set(spots)) > 1


def test_absent_data(tmp_path):
    with pytest.raises(DataError, match="fashion_mnist"):
        study.read(tmp_path, TINY, 0)
