"""Line charts of long series as small inline SVG: the envelope of the values, the score, its threshold, the events.

Every chart is drawn from at most a few thousand pairs of lowest and highest values, whatever the series' length.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from skerry.core.series_findings import ScoredSeries, SeriesEvent

__all__ = ["close_up", "envelope", "overview"]

WIDTH, PANEL, GAP, TOP = 900, 74, 20, 6
BINS = 450  # of the chart that stands without a script


def envelope(x: NDArray[np.float64], bins: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the lowest and the highest value in each of at most ``bins`` equal parts of ``x`` (T,); NaN for none.

    >>> envelope(np.array([1.0, 4.0, np.nan, np.nan, 2.0, 0.0]), 3)
    (array([ 1., nan,  0.]), array([ 4., nan,  2.]))
    """
    starts = np.unique(np.linspace(0, len(x), min(bins, len(x)), endpoint=False).astype(np.int64))
    return np.fmin.reduceat(x, starts), np.fmax.reduceat(x, starts)


def _limits(low: NDArray, high: NDArray, *more: float) -> tuple[float, float]:
    values = np.concatenate([low, high, np.asarray(more, dtype=np.float64)])
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    bottom, top = float(values.min()), float(values.max())
    return (bottom, top) if top > bottom else (bottom - 0.5, top + 0.5)


def _path(low: NDArray, high: NDArray, limits: tuple[float, float], top: float, height: float) -> str:
    """Return the band between two envelopes as path data; NaN cuts it."""
    n = len(low)
    x = np.arange(n) * (WIDTH / n)
    wide = WIDTH / n
    scale = height / (limits[1] - limits[0])
    upper, lower = top + (limits[1] - high) * scale, top + (limits[1] - low) * scale
    lower = np.maximum(lower, upper + 1.2)  # a flat stretch keeps the width of a line
    known = np.isfinite(low)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], known, [False]]).astype(np.int8)))
    parts = []
    for a, b in zip(edges[::2], edges[1::2], strict=True):
        forth = [f"{x[i]:.1f} {upper[i]:.1f}" for i in range(a, b)] + [f"{x[b - 1] + wide:.1f} {upper[b - 1]:.1f}"]
        back = [f"{x[b - 1] + wide:.1f} {lower[b - 1]:.1f}"] + [
            f"{x[i]:.1f} {lower[i]:.1f}" for i in range(b - 1, a - 1, -1)
        ]
        parts.append("M" + "L".join(forth + back) + "Z")
    return "".join(parts)


def _short(name: str, most: int = 40) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _panel(name: str, x: NDArray, top: float, bins: int, cut: float = np.nan, kind: str = "line") -> str:
    low, high = envelope(x, bins)
    limits = _limits(low, high, cut)
    out = [
        f'<text class="name" x="2" y="{top - 4:.0f}">{escape(_short(name))}<title>{escape(name)}</title></text>',
        f'<text class="range" x="{WIDTH - 2}" y="{top - 4:.0f}" text-anchor="end">'
        f"{limits[0]:.4g} to {limits[1]:.4g}</text>",
        f'<rect class="panel" x="0" y="{top:.0f}" width="{WIDTH}" height="{PANEL}"/>',
        f'<path class="{kind}" d="{_path(low, high, limits, top, PANEL)}"/>',
    ]
    if np.isfinite(cut):
        y = top + (limits[1] - cut) / (limits[1] - limits[0]) * PANEL
        out.append(f'<line class="cut" x1="0" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
    return "".join(out)


def _bands(spans: Sequence[tuple[float, float]], height: float) -> str:
    """Return the events as bands; ``spans`` are shares of the width."""
    return "".join(
        f'<rect class="event" x="{a * WIDTH:.1f}" y="0" width="{max((b - a) * WIDTH, 2.0):.1f}" height="{height:.0f}"/>'
        for a, b in spans
    )


def overview(series: ScoredSeries, events: Sequence[SeriesEvent], channels: Sequence[int]) -> str:
    """Return the chosen channels above the score of one series, with its events as bands."""
    n = len(series.scores)
    step = PANEL + GAP
    height = (len(channels) + 1) * step + TOP + 14
    body = [f'<g class="bands">{_bands([(e.start / n, e.stop / n) for e in events], height - 14)}</g>']
    for i, j in enumerate(channels):
        body.append(_panel(series.channels[j], series.values[:, j], TOP + i * step + GAP - 4, BINS))
    top = TOP + len(channels) * step + GAP - 4
    body.append(_panel("anomaly score", series.scores, top, BINS, series.threshold, "score"))
    first, last = series.labels[0], series.labels[-1]
    body.append(f'<text class="from" x="2" y="{height - 3}">{escape(first)}</text>')
    body.append(f'<text class="to" x="{WIDTH - 2}" y="{height - 3}" text-anchor="end">{escape(last)}</text>')
    body.append(f'<text class="at" x="{WIDTH / 2}" y="{height - 3}" text-anchor="middle"></text>')
    body.append(f'<line class="hair" x1="-9" x2="-9" y1="{TOP}" y2="{height - 14}"/>')
    label = escape(f"{series.name}: channels, anomaly score and events")
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">{"".join(body)}</svg>'


def close_up(series: ScoredSeries, event: SeriesEvent, channels: Sequence[int]) -> str:
    """Return an event with twice its length on both sides: the blamed channels with their usual range."""
    n = len(series.scores)
    around = max(2 * (event.stop - event.start), 30)
    a, b = max(event.start - around, 0), min(event.stop + around, n)
    step = PANEL + GAP
    height = len(channels) * step + TOP + 14
    body = [_bands([((event.start - a) / (b - a), (event.stop - a) / (b - a))], height - 14)]
    for i, j in enumerate(channels):
        x, top = series.values[a:b, j], TOP + i * step + GAP - 4
        panel = _panel(series.channels[j], x, top, BINS)
        if not np.isnan(series.values[:, j]).all():
            low, high = np.nanquantile(series.values[:, j], [0.05, 0.95])
            limits = _limits(*envelope(x, BINS))
            scale = PANEL / (limits[1] - limits[0])
            y1, y2 = (float(np.clip((limits[1] - v) * scale, 0, PANEL)) for v in (high, low))
            body.append(f'<rect class="usual" x="0" y="{top + y1:.1f}" width="{WIDTH}" height="{y2 - y1:.1f}"/>')
        body.append(panel)
    body.append(f'<text x="2" y="{height - 3}">{event.start - a} steps before</text>')
    body.append(f'<text x="{WIDTH - 2}" y="{height - 3}" text-anchor="end">{b - event.stop} steps after</text>')
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="close-up of the event">{"".join(body)}</svg>'
