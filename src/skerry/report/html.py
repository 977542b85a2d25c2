"""The report of findings as one HTML file: no script, no network, readable on a phone and on paper."""

from __future__ import annotations

from pathlib import Path

from skerry.core.findings import Findings
from skerry.report import svg
from skerry.report.page import render_page, write_page

__all__ = ["render_report", "write_report"]

MAX_COLUMNS = 200  # rows of the "what was read" table; wider tables are cut, and say so


def render_report(findings: Findings) -> str:
    """Return the page as a string; every value from the data is escaped."""
    points = findings.map_points
    why = {f.row: "; ".join(f.reasons) for f in findings.flagged}
    titles = [
        f"row {r}, score {s:.4g}" + (f": {why[r]}" if why.get(r) else "")
        for r, s in zip(points.get("row", []), points.get("score", []), strict=True)
    ]
    return render_page(
        "findings.html",
        f=findings,
        histogram=svg.histogram(findings.score_sample, findings.threshold),
        map=svg.scatter(points["x"], points["y"], points["outlier"], titles) if points else "",
        bars=svg.bars(findings.importance),
        columns=findings.columns[:MAX_COLUMNS],
        more_columns=max(0, len(findings.columns) - MAX_COLUMNS),
        share=findings.n_flagged / findings.rows if findings.rows else 0.0,
    )


def write_report(findings: Findings, path: str | Path) -> Path:
    """Write the page to ``path`` (beside it first, then renamed) and return the path.

    Raises
    ------
    DataError
        If the file cannot be written.
    """
    return write_page(path, render_report(findings))
