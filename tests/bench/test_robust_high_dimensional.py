"""The study runs at a tiny size, and its table, expectations and claim come from what it measured."""

from pathlib import Path

from skerry.bench import robust_high_dimensional as study
from skerry.bench.runner import plain, run_study

TINY = {
    "screen": (200, 12),
    "sparse": (60, 20),
    "seeds": 1,
    "columns": (8,),
    "mixed_seeds": 1,
    "strengths": (0.3,),
}


def test_quick_path(monkeypatch, tmp_path):
    monkeypatch.setitem(study.SIZES, "quick", TINY)
    lines = []
    result = run_study(
        "robust-high-dimensional", quick=True, data=tmp_path, out=tmp_path / "out", progress=lines.append
    )
    assert {r["part"] for r in result["table"]} == {"screening", "optimiser", "recovery", "mixed model"}
    assert lines and "rank" in result["claim"]
    assert (Path(tmp_path) / "out" / "robust-high-dimensional.md").exists()
    unmet = [c for c in result["tables"]["Expectations"] if c["met"] == "no"]
    assert sum(n.startswith("Not met") for n in result["notes"]) == len(unmet)
    again = plain(study.run(True, tmp_path, 0, lambda text: None))
    figures = [r.get("L2 error") for r in again["table"]]
    assert figures == [plain(r.get("L2 error")) for r in result["table"]]


def test_absent_peers_are_rows(monkeypatch, tmp_path):
    monkeypatch.setitem(study.SIZES, "quick", TINY)
    monkeypatch.setattr(study.importlib.util, "find_spec", lambda name: None)
    result = study.run(True, tmp_path, 0, lambda text: None)
    peers = [*result["tables"]["Screening"], *result["tables"]["Mixed model without penalty, 20 columns"]]
    assert sum(r["status"] == "not installed" for r in peers) == 4
