"""The speed studies at a small size: every case in a process of its own, what is absent said in words."""

import numpy as np
import pytest

from skerry.bench import tabular_speed, tabular_speed_real


@pytest.fixture
def two_methods(monkeypatch):
    methods = {"hbos": tabular_speed.METHODS["hbos"], "none": {"skerry": ("no_such_module", "X", {})}}
    monkeypatch.setattr(tabular_speed, "METHODS", methods)


def test_blobs(two_methods, tmp_path):
    found = tabular_speed.run(True, tmp_path, 0, lambda text: None)
    hbos, absent = found["table"]
    assert hbos["n"] == 2000 and hbos["skerry CPU s"] >= 0.0 and hbos["skerry MiB"] >= 0.0
    assert absent["skerry CPU s"] == "not installed"
    assert "n = 2,000" in found["claim"]


def test_real_tables(two_methods, tmp_path):
    (tmp_path / "adbench").mkdir()
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "adbench" / "32_shuttle.npz", X=rng.normal(size=(500, 4)), y=np.zeros(500))
    found = tabular_speed_real.run(True, tmp_path, 0, lambda text: None)
    assert [(r["table"], r["n"], r["d"]) for r in found["table"]] == [("32_shuttle", 500, 4)] * 2
    assert "of 1 tables" in found["claim"]


def test_ratios():
    rows = [{"method": "a", "pyod CPU s": 3.0, "skerry CPU s": 1.5}, {"method": "b", "pyod CPU s": "> 30 s"}]
    assert tabular_speed.ratios(rows) == "a 2.0x"
    assert tabular_speed.ratios(rows[1:]) == "no peer"
