"""The script of the page of events, executed: wheel, drag, pinch, double click and links move the charts."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from skerry.detect.series.pipeline import find_events
from skerry.report.series_html import render_series_report

VOID = {"meta", "link", "img", "br", "hr", "input"}
N = 3_000


class _Tree(HTMLParser):
    """The page as nested dicts."""

    def __init__(self):
        super().__init__()
        self.root = {"tag": "", "attributes": {}, "children": [], "text": ""}
        self.stack = [self.root]

    def handle_starttag(self, tag, attrs):
        node = {"tag": tag, "attributes": {k: v or "" for k, v in attrs}, "children": [], "text": ""}
        self.stack[-1]["children"].append(node)
        if tag not in VOID:
            self.stack.append(node)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.stack.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.stack[-1]["tag"] == tag, f"</{tag}> closes <{self.stack[-1]['tag']}>"
            self.stack.pop()

    def handle_data(self, data):
        self.stack[-1]["text"] += data


@pytest.fixture(scope="module")
def found():
    rng = np.random.default_rng(0)
    x = np.sin(np.arange(N) / 9) + 0.05 * rng.normal(size=N)
    x[2_000:2_020] += 3.0
    gap = rng.normal(size=N)
    gap[100:400] = np.nan
    frame = pl.DataFrame({"t": np.arange(N), "x": x, "gap": gap})
    return find_events(frame, detector="forecast", threshold="contamination:0.01", time="t")


@pytest.fixture(scope="module")
def seen(found):
    return looks(found)


def looks(found):
    """Run the script of the page; return what is seen after each act."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node on this machine to run the script of the page")
    tree = _Tree()
    tree.feed(render_series_report(found))
    done = subprocess.run(
        [node, str(Path(__file__).parent / "zoom_dom.js")],
        input=json.dumps(tree.root), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {look["name"]: look for look in json.loads(done.stdout)}


def ends(look):
    return float(look["from"]), float(look["to"])


def test_the_hint_is_shown_where_the_script_runs(seen):
    assert seen["whole"]["shown"]


def test_the_wheel_zooms_about_the_pointer(seen):
    first, last = ends(seen["in"])
    assert last - first == pytest.approx((N - 1) * np.exp(-2.0), abs=30)
    assert (0.7 * (N - 1) - first) / (last - first) == pytest.approx(0.7, abs=0.06)
    assert seen["in"]["paths"] != seen["whole"]["paths"]


def test_a_drag_moves_by_what_the_pointer_moved_and_ends_with_it(seen):
    span = np.diff(ends(seen["in"]))[0]
    moved = ends(seen["in"])[0] - ends(seen["dragged"])[0]
    assert moved == pytest.approx(0.2 * span, abs=30)
    assert np.diff(ends(seen["dragged"]))[0] == pytest.approx(span, abs=30)


def test_no_zoom_leaves_the_series(seen):
    for name in ("out", "double", "whole again"):
        assert ends(seen[name]) == (0.0, N - 1.0)
    first, last = ends(seen["deep"])
    assert 0 <= first <= last <= N - 1
    assert last - first <= 40


def test_two_pointers_pinch(seen):
    assert np.diff(ends(seen["pinched"]))[0] == pytest.approx(N / 2, abs=60)


def test_the_link_of_an_event_shows_it(seen, found):
    event = found.events[0]
    first, last = ends(seen["event"])
    assert first <= event.start
    assert event.stop <= last
    assert last - first < N / 5
    bands = [(x, width) for x, width in seen["event"]["bands"] if width > 0]
    assert any(x > 100 and width > 20 for x, width in bands)  # in the middle, and wider than before


def test_a_moment_pointed_at_tells_its_stamp_and_values(seen, found):
    series, whole, pointed = found.series[0], seen["whole"], seen["pointed"]
    step = int(0.4567 * N)
    assert pointed["at"] == str(step)
    shown = [float(text) for text in pointed["ranges"]]
    columns = [*sorted(series.channels, key=lambda c: -_blame(found, c)), None]
    for value, name in zip(shown, columns, strict=True):
        x = series.scores if name is None else series.values[:, series.channels.index(name)]
        assert value == pytest.approx(x[step], abs=1e-3 * np.ptp(x[np.isfinite(x)]))
    assert "missing" in seen["pointed at a gap"]["ranges"]
    for name in ("whole", "left", "event"):
        assert seen[name]["at"] == ""
        assert seen[name]["ranges"] == whole["ranges"]


def _blame(found, channel):
    return np.mean([e.blame.get(channel, 0.0) for e in found.events])


@pytest.mark.parametrize(("unit", "tail"), [("1m", " UTC"), ("250ms", "")])
def test_stamps_between_two_labels_are_read_off_them(unit, tail):
    n = 5_000  # 25 steps from label to label
    rng = np.random.default_rng(1)
    stamps = pl.datetime_range(pl.datetime(2026, 3, 1), pl.datetime(2027, 1, 1), unit, eager=True)[:n]
    if tail:
        stamps = stamps.dt.replace_time_zone("UTC")
    frame = pl.DataFrame({"t": stamps, "x": rng.normal(size=n)})
    seen = looks(find_events(frame, detector="forecast", threshold="contamination:0.01", time="t"))
    want = stamps[int(0.4567 * n)].replace(tzinfo=None)
    want = want.isoformat(sep=" ", timespec="milliseconds" if want.microsecond else "seconds") + tail
    assert seen["pointed"]["at"] == want
    assert seen["deep"]["from"] != seen["deep"]["to"]


def test_what_is_drawn_is_finite_and_inside_the_chart(seen):
    for look in seen.values():
        for path in look["paths"]:
            numbers = [float(v) for v in re.findall(r"-?[\d.]+", path)]
            assert "NaN" not in path
            assert all(-1.0 <= v <= 2_000.0 for v in numbers)
        assert all(0 <= x <= 1_000 and 0 <= width <= 1_000 for x, width in look["bands"])
    steps = re.findall(r"([\d.]+) ([\d.]+)", seen["event"]["paths"][0])  # a slope between steps, not a staircase
    across = [float(x) for x, _ in steps[: len(steps) // 2]]
    assert all(a < b for a, b in zip(across[1:-3], across[2:-2], strict=True))
    whole = seen["whole again"]["paths"]
    assert sum(p.count("M") for p in whole) >= len(whole) + 1  # the gap stays one
