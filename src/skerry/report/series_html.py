"""The report of events in series as one HTML file: charts that stand alone, and zoom where a script may run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skerry.core.series_findings import ScoredSeries, SeriesEvent, SeriesFindings
from skerry.report import svg
from skerry.report.heat_map import heat_map
from skerry.report.page import render_page, write_page
from skerry.report.series_svg import PANEL, WIDTH, close_up, envelope, overview

__all__ = ["render_series_report", "write_series_report"]

MAX_SERIES, MAX_CHANNELS, MAX_EVENTS, MAX_BANDS = 20, 6, 10, 400
MAX_SHARES, LEAST_SHARE = 8, 0.005  # channels in the blame of an event, and the share from which one is told
ZOOM_VALUES = 180_000  # numbers embedded for zooming, over all charts
MAX_BINS = 20_000  # parts of a series that the zoom tells apart
LEVELS = 4_095  # values are rounded to this many levels of their chart


def render_series_report(findings: SeriesFindings) -> str:
    """Return the page as a string; every value from the data is escaped."""
    ranked = list(dict.fromkeys([e.series for e in findings.events] + [s.name for s in findings.series]))
    by_name = {s.name: s for s in findings.series}
    drawn = [by_name[name] for name in ranked[:MAX_SERIES]]
    panels = sum(min(len(s.channels), MAX_CHANNELS) + 1 for s in drawn)
    bins = int(np.clip(ZOOM_VALUES // max(2 * panels, 1), 200, MAX_BINS))
    charts = []
    for series in drawn:
        own = [e for e in findings.events if e.series == series.name]
        channels = _channels(series, own)
        charts.append(
            {
                "series": series,
                "svg": overview(series, own[:MAX_BANDS], channels),
                "zoom": _zoom(series, own[:MAX_BANDS], channels, bins),
                "events": own,
                "hidden": len(series.channels) - len(channels),
                "part": -(-len(series.scores) // bins),
            }
        )
    close = []
    for event in findings.events[:MAX_EVENTS]:
        series = by_name[event.series]
        order = [series.channels.index(c) for c in sorted(event.blame, key=lambda c: -event.blame[c])] or [0]
        keep = [j for j in order if event.blame.get(series.channels[j], 1.0) >= 0.1][:3] or order[:1]
        close.append({"event": event, "svg": close_up(series, event, keep), "heat": _heat(event)})
    return render_page(
        "series.html",
        f=findings,
        charts=charts,
        shares=[_shares(e) for e in findings.events],
        place={name: i for i, name in enumerate(ranked[:MAX_SERIES])},
        close=close,
        more_series=max(0, len(findings.series) - len(drawn)),
        bars=svg.bars(_blame(findings.events)) if any(len(s.channels) > 1 for s in findings.series) else "",
        many=len(findings.series) > 1,
        width=WIDTH,
        panel=PANEL,
        levels=LEVELS,
    )


def write_series_report(findings: SeriesFindings, path: str | Path) -> Path:
    """Write the page to ``path`` (beside it first, then renamed) and return the path.

    Raises
    ------
    DataError
        If the file cannot be written.
    """
    return write_page(path, render_series_report(findings))


def _blame(events: list[SeriesEvent]) -> dict[str, float]:
    """Return the mean share of each channel in the events, largest first."""
    total: dict[str, float] = {}
    for event in events:
        for name, share in event.blame.items():
            total[name] = total.get(name, 0.0) + share / len(events)
    return dict(sorted(total.items(), key=lambda pair: -pair[1]))


def _shares(event: SeriesEvent) -> tuple[list[tuple[str, float]], int]:
    """Return the most blamed channels with their shares, and how many more there are; nothing of a single channel."""
    ranked = sorted(((c, v) for c, v in event.blame.items() if v >= LEAST_SHARE), key=lambda pair: -pair[1])
    if len(event.blame) < 2:
        return [], 0
    return ranked[:MAX_SHARES], max(0, len(ranked) - MAX_SHARES)


def _heat(event: SeriesEvent) -> str:
    look = event.similarity
    if look is None:
        return ""
    return heat_map(look.values, look.start, (event.start, event.stop), look.first, look.last)


def _channels(series: ScoredSeries, events: list[SeriesEvent]) -> list[int]:
    """Return the channels to draw, the most blamed first."""
    blame = _blame(events)
    order = sorted(range(len(series.channels)), key=lambda j: -blame.get(series.channels[j], 0.0))
    return order[:MAX_CHANNELS]


def _zoom(series: ScoredSeries, events: list[SeriesEvent], channels: list[int], bins: int) -> str:
    """Return the chart's data as JSON that is safe inside a script element."""
    found: dict[str, Any] = {
        "n": len(series.scores),
        "labels": series.labels,
        "events": [[e.start, e.stop] for e in events],
        "panels": [_levels(series.values[:, j], bins) for j in channels]
        + [_levels(series.scores, bins, series.threshold)],
    }
    return json.dumps(found, separators=(",", ":")).replace("<", "\\u003c").replace("\u2028", "\\u2028")


def _levels(x: NDArray[np.float64], bins: int, more: float = np.nan) -> list[Any]:
    """Return the lowest and highest level of each part (the same list once where parts are steps), and their range."""
    low, high = envelope(x, bins)
    values = np.concatenate([low, high, [more]])
    values = values[np.isfinite(values)]
    bottom, span = (values.min(), np.ptp(values)) if values.size else (0.0, 0.0)
    if span <= 0:
        bottom, span = bottom - 0.5, 1.0
    out = []
    for edge in (low, high):
        share = np.nan_to_num((edge - bottom) / span * LEVELS, nan=-1.0)
        out.append(np.rint(share).astype(np.int64).tolist())
    return [out[0], 0 if out[0] == out[1] else out[1], float(f"{bottom:.6g}"), float(f"{span:.6g}")]
