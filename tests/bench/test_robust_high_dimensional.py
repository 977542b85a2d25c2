"""The study runs at a tiny size, and its table, expectations and claim come from what it measured."""

from pathlib import Path

import pytest

from skerry.bench import robust_high_dimensional as study
from skerry.bench import robust_high_dimensional_mixed as mixed
from skerry.bench import robust_high_dimensional_screening as screening
from skerry.bench import robust_high_dimensional_sparse as sparse
from skerry.bench.runner import plain, run_study

TINY = {"screen": (200, 12), "sparse": (60, 20), "seeds": 1, "mixed": (8, 1)}


@pytest.mark.filterwarnings("ignore")
def test_quick_path(monkeypatch, tmp_path):
    monkeypatch.setitem(study.SIZES, "quick", TINY)
    monkeypatch.setattr(mixed, "N_ALPHAS", 4)
    monkeypatch.setattr(sparse, "LONGEST", 300)
    lines = []
    result = run_study(
        "robust-high-dimensional", quick=True, data=tmp_path, out=tmp_path / "out", progress=lines.append
    )
    assert {r["part"] for r in result["table"]} == {"screening", "optimiser", "recovery", "mixed model"}
    assert lines and "rank" in result["claim"]
    assert (Path(tmp_path) / "out" / "robust-high-dimensional.md").exists()
    unmet = [c for c in result["tables"]["Expectations"] if c["met"] == "no"]
    assert sum(n.startswith("Not met") for n in result["notes"]) == len(unmet)
    ends = [r["at the end"] for r in result["tables"]["Objective by step"]]
    assert ends == pytest.approx([ends[0]] * 5, abs=1e-6)
    monkeypatch.setattr(mixed, "KINDS", ("clean",))
    again = plain(mixed.penalised(8, 1, 0, lambda text: None))
    figures = [plain(r["L2 error"]) for r in result["table"] if r["part"] == "mixed model"]
    assert figures[: len(again)] == [r["L2 error"] for r in again]


def test_absent_peers_are_rows(monkeypatch):
    monkeypatch.setattr(screening.importlib.util, "find_spec", lambda name: None)
    continuous, binary, notes = screening.screening(100, 6, 0, lambda text: None)
    small = mixed.unpenalised(1, 0, lambda text: None)
    assert sum(r["status"] == "not installed" for r in [*continuous, *binary, *small]) == 5
    assert "not installed" in notes[0]


def test_verdicts_follow_the_figures():
    def rows(key, names, data, error):
        return [{key: n, "data": d, "L2 error": error(n, d), "false positives": 0} for n in names for d in data]

    kinds = mixed.KINDS
    models = [f"skerry {m}, {e}" for m in ("clustered", "joint") for e in ("no random effect", "random intercept")]
    good = rows("method", models, kinds, lambda n, d: 0.1 if "clustered" in n else 1.0)
    bad = rows("method", models, kinds, lambda n, d: 1.0 if "clustered" in n else 0.1)
    recovered = rows(
        "method",
        ("skerry SCAD, squared", "skerry SCAD, Huber", "scikit-learn LassoCV"),
        ("clean", study.SPOILT),
        lambda n, d: {"skerry SCAD, squared": 1.0, "skerry SCAD, Huber": 0.5}.get(n, 2.0),
    )
    signals = {"MI x1^2": 0.3, "MI |x2|": 0.2, "MI x3": 0.1, "worst rank": 3, "ms per column": 1.0}
    screened = [{"estimator": f"skerry {e}", **signals} for e in ("fftkde", "binning", "knn", "pearson")]
    solver = {"after 25": 1.0, "at the end": 0.5, "signals found": 4, "false positives": 0, "steps to 1e-3": 9}
    solvers = [solver | {"solver": s, "after 25": 3.0 - i} for i, s in enumerate(("ista", "ag", "cg"))]
    for figures, expected in ((good, "yes"), (bad, "no")):
        checks = study._checks(screened, screened, solvers, solvers, recovered, figures, figures)
        about = [c for c in checks if c["expectation"].startswith("clustered")]
        assert len(about) == 5 and {c["met"] for c in about} == {expected}
