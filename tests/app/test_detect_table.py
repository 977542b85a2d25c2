"""What is printed of a table: whole lines in a pipe, and words where nothing, or nearly all, is flagged."""

import numpy as np
import polars as pl
import pytest

from skerry.app.detect_table import print_findings
from skerry.core.findings import Finding, Findings
from skerry.detect.tabular.pipeline import find_outliers


def findings(n_flagged=1, **more):
    flagged = [Finding(7, 9.5, 0.01, ("`a` 9 is above 99 % of rows and is told in rather many words",))][:n_flagged]
    return Findings(
        "t.csv", 100, 2, "KNN", "auto", 3.0, 0.1, n_flagged, flagged, np.arange(100.0),
        columns=[{"column": "a" * 90, "kind": "date", "action": "days", "note": "a note of some length"}],
        metrics={"auroc": 0.9, "average_precision": 0.5, "precision_at_flagged": 1.0}, **more,
    )  # fmt: skip


def test_lines_are_not_cut_in_a_pipe(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    print_findings(findings(notes=["word " * 30 + "end"]), explain=True)
    lines = capsys.readouterr().out.splitlines()
    assert f"  {'a' * 90}: date, days; a note of some length" in lines
    assert any(line.startswith("note: word") and line.endswith("end") for line in lines)
    assert "AUROC 0.9000   average precision 0.5000   precision among the 1 flagged 1.0000" in lines


def test_no_precision_among_nothing(capsys):
    print_findings(findings(0), explain=True)
    assert "AUROC 0.9000   average precision 0.5000\n" in capsys.readouterr().out


def test_nothing_flagged_is_told_with_the_highest_score():
    X = np.random.default_rng(0).normal(size=(300, 2))
    X[17] = 6.0
    found = find_outliers(X, detector="hbos", threshold="extreme:1e-9")
    assert found.n_flagged == 0
    assert any("nothing is above the threshold; the highest score is" in n and "of row 17," in n for n in found.notes)


@pytest.mark.parametrize("shift", [0.0, 50.0])
def test_a_reference_of_another_kind_is_suspected(shift):
    rng = np.random.default_rng(1)
    found = find_outliers(rng.normal(size=(200, 2)) + shift, detector="pca", reference=rng.normal(size=(200, 2)))
    assert any("another kind of table" in n for n in found.notes) is bool(shift)


def test_an_output_that_cannot_be_written_is_told_without_the_source(skerry, payments):
    done = skerry("detect", payments, "--out", "/proc/scores.csv", "--detector", "hbos")
    assert done.returncode == 1
    assert done.stderr.startswith("skerry: error: /proc/scores.csv: cannot be written")


def test_rank_in_a_narrow_terminal_keeps_whole_words(skerry, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    n = 60
    frame = pl.DataFrame({"amount": np.arange(n) / 7, "kind": ["a", "b"] * (n // 2), "y": [0, 1] * (n // 2)})
    frame.write_csv(tmp_path / "t.csv")
    done = skerry("rank", "t.csv", "--target", "y")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "60 rows, 2 columns ranked against y"
    assert lines[1].split() == ["feature", "score"]
    assert "…" not in done.stdout
    assert any(line.startswith("note: numbers that hardly repeat in amount:") for line in lines)
