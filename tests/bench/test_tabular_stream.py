"""The study of long tables, at a small size: figures of a real run of the command."""

import sys

import pytest

from skerry.bench import tabular_stream


def test_every_detector_scores_all_rows_and_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(tabular_stream, "QUICK_SIZES", (3_000,))
    monkeypatch.setattr(tabular_stream, "DETECTORS", ("hbos",))
    found = tabular_stream.run(quick=True, data=tmp_path, seed=0, progress=lambda text: None)
    assert [(r["what"], r["rows"]) for r in found["table"]] == [("bare read", 3_000), ("hbos", 3_000)]
    bare, hbos = found["table"]
    assert hbos["peak MiB"] > 50
    assert hbos["times the bare read"] == pytest.approx(hbos["wall s"] / bare["wall s"])
    assert "3,000 rows" in found["claim"]


def test_a_command_that_fails_ends_the_study():
    with pytest.raises(RuntimeError, match="no such thing"):
        tabular_stream.measured([sys.executable, "-c", "raise SystemExit('no such thing')"])
