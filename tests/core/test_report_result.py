"""What both kinds of findings share: count, plain data, JSON, a page."""

import json

import numpy as np
import pytest

from skerry.core.findings import Finding, Findings
from skerry.core.report_result import ReportResult
from skerry.core.series_findings import ScoredSeries, SeriesEvent, SeriesFindings


def rows(**more):
    flagged = [Finding(3, 2.5, 0.01, ("a is high", "b is low"), {"a": object()})]
    return Findings("t.csv", 9, 2, "IQR", "auto", np.inf, 0.12345, 4, flagged, np.zeros(9), **more)


def series(**more):
    events = [SeriesEvent("s", 1, 3, "a", "b", "a", 1, 2.5, 0.01, ("x is high", "y too"), {"x": 0.75, "y": 0.25})]
    scored = [ScoredSeries("s", ["a", "b"], np.zeros((5, 2)), ["x", "y"], np.zeros(5), np.zeros(5, dtype=bool), np.inf)]
    return SeriesFindings("t.csv", 5, "Forecast", "auto", 0.12345, 4, events, scored, **more)


@pytest.mark.parametrize("make", [rows, series])
def test_results_count_and_become_strict_json(make):
    found = make()
    assert isinstance(found, ReportResult)
    assert len(found) == 4
    data = json.loads(found.to_json())
    assert data == json.loads(json.dumps(found.to_dict(), default=str))
    assert data["seconds"] == 0.1235
    assert "metrics" not in data
    assert json.loads(make(metrics={"auroc": 0.5}).to_json())["metrics"] == {"auroc": 0.5}


def test_the_plain_data_of_rows():
    data = rows().to_dict()
    assert data["threshold"] is None
    assert data["flagged"] == [{"row": 3, "score": 2.5, "p_value": 0.01, "reasons": ["a is high", "b is low"]}]
    assert rows().to_frame()["reasons"].to_list() == ["a is high; b is low"]


def test_the_plain_data_of_events():
    data = series().to_dict()
    assert data["series"][0]["threshold"] is None
    assert list(data["events"][0]) == [
        "series", "start", "stop", "first", "last", "peak", "row", "score", "p_value", "reasons", "blame",
    ]  # fmt: skip
    assert data["events"][0]["reasons"] == ["x is high", "y too"]
    assert data["events"][0]["blame"] == {"x": 0.75, "y": 0.25}
    assert series().to_frame()["reasons"].to_list() == ["x is high; y too"]


@pytest.mark.parametrize("make", [rows, series])
def test_pages_are_written_where_told(make, tmp_path):
    if make is rows:
        found = rows()
        found.flagged[0].values["a"] = 1.0
    else:
        found = make()
    path = found.to_html(tmp_path / "page.html")
    assert "<!doctype html>" in path.read_text()
