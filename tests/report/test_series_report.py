"""The page of events in series: whole, small, escaped, its data true to the series."""

import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from skerry.core.series_findings import ScoredSeries, SeriesEvent, SeriesFindings, Similarity
from skerry.detect.series.pipeline import find_events
from skerry.detect.series.themis import Themis
from skerry.report.series_html import LEVELS, render_series_report, write_series_report
from skerry.report.series_svg import envelope

HOSTILE = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def found():
    rng = np.random.default_rng(0)
    x = np.sin(np.arange(3_000) / 9) + 0.05 * rng.normal(size=3_000)
    x[2_000:2_020] += 3.0
    gap = rng.normal(size=3_000)
    gap[100:400] = np.nan
    frame = pl.DataFrame({HOSTILE: x, "größe": gap, "leer": np.full(3_000, np.nan), "fest": np.full(3_000, 2.0)})
    return find_events(frame, detector="forecast", threshold="contamination:0.01", time=False)


def test_names_from_the_data_are_escaped_and_charts_are_sound(found):
    page = render_series_report(found)
    assert HOSTILE not in page
    assert "größe" in page
    assert "http" not in page.replace("http-equiv", "")
    charts = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(charts) >= 2
    for chart in charts:
        ET.fromstring(chart.replace("&nbsp;", " "))
        assert "nan" not in chart.lower().replace("anomaly", "")


def test_the_data_of_the_zoom_are_those_of_the_series(found):
    page = render_series_report(found)
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.DOTALL).group(1))
    series = found.series[0]
    lows, highs, bottom, span = data["panels"][-1]
    low, high = envelope(series.scores, len(lows))
    assert bottom == pytest.approx(min(low.min(), series.threshold), rel=1e-5)
    assert bottom + span == pytest.approx(max(high.max(), series.threshold), rel=1e-5)
    assert (len(lows), highs) == (3_000, 0)  # every step is a point: one list is enough
    np.testing.assert_allclose(np.array(lows) / LEVELS * span + bottom, high, atol=span / LEVELS)
    assert data["events"] == [[e.start, e.stop] for e in found.events]
    assert data["n"] == 3_000
    assert len(data["labels"]) == 201
    gap = data["panels"][[c for c in _order(found)].index("größe")][0]
    assert any(v < 0 for v in gap)


def _order(found):
    blame = {c: np.mean([e.blame.get(c, 0.0) for e in found.events]) for c in found.series[0].channels}
    return sorted(found.series[0].channels, key=lambda c: -blame[c])


def test_a_page_without_events_and_one_of_a_single_step_are_whole(tmp_path):
    for n in (1, 500):
        quiet = find_events(np.zeros(n), detector="spectral-residual", time=False)
        page = write_series_report(quiet, tmp_path / "r.html").read_text()
        assert "0 events" in page
        assert "No step scores above" in page


def test_a_long_and_wide_page_stays_small():
    rng = np.random.default_rng(1)
    names = [f"channel {j}" for j in range(38)]
    series, events = [], []
    for k in range(25):
        n = 100_000 if k == 0 else 2_000
        X = rng.normal(size=(n, 38))
        scored = ScoredSeries(f"s{k}", ["a", "z"], X, names, rng.random(n), rng.random(n) > 0.99, 0.99)
        series.append(scored)
        events += [
            SeriesEvent(f"s{k}", i, i + 3, "a", "b", "a", i, 1.0, 0.01, ("why",), {"channel 3": 1.0})
            for i in range(0, n - 5, n // 20)
        ]
    page = render_series_report(SeriesFindings("x", 148_000, "D", "auto", 1.0, len(events), events, series))
    assert len(page.encode()) < 3_000_000
    assert "and 5 more series" in page
    assert "32 more channels" in page


def test_envelope_holds_every_value():
    x = np.random.default_rng(2).normal(size=1_003)
    low, high = envelope(x, 100)
    assert len(low) == 100
    assert low.min() == x.min()
    assert high.max() == x.max()
    assert (low <= high).all()


def test_a_browser_draws_the_page(found, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    page = write_series_report(found, tmp_path / "report.html")
    picture = tmp_path / "report.png"
    subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--screenshot={picture}", "--window-size=420,2000",
         f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()],
        capture_output=True, timeout=120, check=True,
    )  # fmt: skip
    assert picture.stat().st_size > 10_000


def _page_of(events, channels=("a", "b & c", "d")):
    rng = np.random.default_rng(0)
    scored = ScoredSeries(
        "s",
        ["a", "z"],
        rng.normal(size=(300, len(channels))),
        list(channels),
        rng.random(300),
        rng.random(300) > 2,
        0.9,
    )
    return render_series_report(SeriesFindings("x", 300, "Themis", "auto", 1.0, len(events), events, [scored]))


def test_every_event_tells_the_share_of_each_channel():
    blames = [{"a": 0.7, "b & c": 0.296, "d": 0.004}, {"a": 0.0, "b & c": 1.0, "d": 0.0}]
    events = [SeriesEvent("s", 10 * k, 10 * k + 3, "f", "l", "p", k, 1.0, 0.1, (), b) for k, b in enumerate(blames)]
    page = _page_of(events)
    lists = re.findall(r'<ul class="shares">(.*?)</ul>', page, re.DOTALL)
    assert len(lists) == 2
    assert re.findall(r"<b>(\d+) %</b>", lists[0]) == ["70", "30"]
    assert re.findall(r"<span title=\"(.*?)\">", lists[1]) == ["b &amp; c"]
    wide = SeriesEvent("s", 1, 2, "f", "l", "p", 1, 1.0, 0.1, (), {f"c{j}": 0.05 for j in range(20)})
    page = _page_of([wide], [f"c{j}" for j in range(20)])
    assert "and 12 more channels" in page
    alone = SeriesEvent("s", 1, 2, "f", "l", "p", 1, 1.0, 0.1, (), {"a": 1.0})
    assert '<ul class="shares">' not in _page_of([alone], ["a"])


def test_events_lead_to_their_place_in_the_chart():
    page = _page_of([SeriesEvent("s", 40, 52, "f", "l", "p", 45, 1.0, 0.1, (), {"a": 1.0})])
    assert 'id="chart0"' in page
    assert 'href="#chart0" data-from="40" data-to="52"' in page


def test_the_similarity_of_themis_is_drawn_where_it_is_given():
    x = np.sin(np.arange(300) / 6)
    x[200:210] += 2.0
    detector = Themis(window=100).fit(x)
    start, S = detector.similarity(x, at=204)
    look = Similarity("<i>pump</i>", start, "from", "to", S)
    event = SeriesEvent("s", 200, 210, "f", "l", "p", 204, 1.0, 0.1, ("why",), {"a": 1.0}, look)
    page = _page_of([event])
    assert '<svg class="heat"' in page
    assert "&lt;i&gt;pump&lt;/i&gt;" in page
    assert "<i>pump" not in page
    ET.fromstring(re.search(r'<svg class="heat".*?</svg>', page, re.DOTALL).group())
    assert 'class="heat"' not in _page_of([SeriesEvent("s", 200, 210, "f", "l", "p", 204, 1.0, 0.1)])
    assert "similarity" not in SeriesFindings("x", 1, "Themis", "auto", 1.0, 1, [event], []).to_json()


def test_both_reports_share_their_style():
    import skerry
    from skerry.report.html import render_report

    rows = render_report(skerry.find_outliers(pl.DataFrame({"a": [1.0, 2.0, 3.0, 90.0]}), detector="ecod"))
    events = _page_of([])
    shared = (Path(skerry.__file__).parent / "report" / "templates" / "style.css").read_text().strip()
    assert shared in rows
    assert shared in events
