"""The speed study runs at its smallest size and says what it compares with."""

import sys

import pytest

pytest.importorskip("torch")

from skerry.bench import quant_speed


def test_it_runs(tmp_path, monkeypatch):
    monkeypatch.delenv("SKERRY_QUANT_PEERS", raising=False)
    monkeypatch.setattr(quant_speed, "QUICK_SIZES", (128,))
    monkeypatch.setattr(quant_speed, "QUICK_SECONDS", 0.001)
    found = quant_speed.run(True, tmp_path, 0, lambda text: None)
    paths = [row["path"] for row in found["table"]]
    assert paths == [  # whatever the processor has: a path without a kernel of its own takes another, and says which
        "float32", "bfloat16", "W8A8, a scale a token", "W8A8 and a branch of rank 32", "LLM.int8",
        "LLM.int8, no outlier", "W8A16", "W4A16, groups of 128", "W4A16 and a branch of rank 32", "W4A8, a scale a row",
    ]  # fmt: skip
    assert all(row["kernel"] for row in found["table"])
    assert all(row["1 tokens ms"] <= row["1 tokens median"] for row in found["table"])
    assert any("SKERRY_QUANT_PEERS" in note for note in found["notes"])


def test_absent_peers_are_said(tmp_path, monkeypatch):
    monkeypatch.setenv("SKERRY_QUANT_PEERS", str(tmp_path / "python"))
    rows, notes = quant_speed._peers((64,), (1,), 0.001, False, lambda text: None)
    assert not rows and "could not be run" in notes[0]
    monkeypatch.setenv("SKERRY_QUANT_PEERS", sys.executable)
    monkeypatch.setattr(quant_speed, "PEERS", "raise SystemExit('no torch')")
    rows, notes = quant_speed._peers((64,), (1,), 0.001, False, lambda text: None)
    assert not rows and "no torch" in notes[0]
