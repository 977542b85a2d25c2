"""Small inline SVG charts: sharp on a phone, printable, no script and no bundle of several megabytes.

Each function returns a string of SVG that scales with its container. Values are numbers only; every text passes
through :func:`html.escape`.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["bars", "histogram", "scatter"]

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 16, 40


def _ticks(low: float, high: float, n: int = 5) -> list[float]:
    span = high - low
    if not np.isfinite(span) or span <= 0:
        return [low]
    step = 10.0 ** np.floor(np.log10(span / n))
    step *= next(m for m in (1, 2, 5, 10) if span / (step * m) <= n)
    first = np.ceil(low / step) * step
    return [float(v) + 0.0 for v in np.arange(first, high + step * 1e-9, step)]  # no "-0"


def _frame(label: str, body: str, x_label: str, y_label: str, height: int = HEIGHT) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">{body}'
        f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{height - 6}" text-anchor="middle">'
        f"{escape(x_label)}</text>"
        f'<text class="axis" transform="translate(13 {(TOP + height - BOTTOM) / 2:.0f}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_label)}</text></svg>'
    )


def histogram(values: ArrayLike, threshold: float, n_bins: int = 60) -> str:
    """Return a histogram of scores; bars beyond ``threshold`` are red; counts on a log scale."""
    v = np.asarray(values, dtype=np.float64)
    low, high = float(v.min()), float(v.max())
    if np.isfinite(threshold):
        high = max(high, threshold)
    if high <= low:
        high = low + 1.0
    edges = np.linspace(low, high, n_bins + 1)
    counts, _ = np.histogram(v, edges)
    top = np.log10(counts.max() + 1.0) * 1.06
    plot_h = HEIGHT - TOP - BOTTOM

    def px(x: float) -> float:
        return LEFT + (x - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def py(count: float) -> float:
        return HEIGHT - BOTTOM - np.log10(count + 1.0) / top * plot_h

    body = []
    power = 0
    while 10**power <= counts.max():
        y = py(10**power)
        body.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        body.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{10**power:,}</text>')
        power += 1
    for count, a, b in zip(counts, edges[:-1], edges[1:], strict=True):
        if count:
            kind = "out" if (a + b) / 2 > threshold else "in"
            body.append(
                f'<rect class="{kind}" x="{px(a):.1f}" y="{py(count):.1f}" width="{max(px(b) - px(a) - 1, 1):.1f}" '
                f'height="{HEIGHT - BOTTOM - py(count):.1f}"><title>{count:,} rows, score {a:.4g} to {b:.4g}'
                "</title></rect>"
            )
    for t in _ticks(low, high):
        body.append(f'<text class="tick" x="{px(t):.1f}" y="{HEIGHT - 24}" text-anchor="middle">{t:g}</text>')
    if np.isfinite(threshold):
        x = px(threshold)
        anchor, dx = ("end", -5) if x > WIDTH / 2 else ("start", 5)
        body.append(f'<line class="cut" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 6}" y2="{HEIGHT - BOTTOM}"/>')
        body.append(
            f'<text class="cutlabel" x="{x + dx:.1f}" y="{TOP + 4}" text-anchor="{anchor}">'
            f"threshold {threshold:.4g}</text>"
        )
    return _frame("Distribution of the anomaly scores", "".join(body), "anomaly score", "rows (log)")


def scatter(x: ArrayLike, y: ArrayLike, flagged: Sequence[bool], titles: Sequence[str]) -> str:
    """Return a map of the rows; flagged ones are drawn last, larger and red, with a tooltip each."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    height = 420

    def scaled(v: np.ndarray, low_px: float, high_px: float) -> np.ndarray:
        low, span = v.min(), np.ptp(v)
        return low_px + (v - low) / (span if span > 0 else 1.0) * (high_px - low_px)

    px, py = scaled(x, LEFT, WIDTH - RIGHT - 6), scaled(y, height - BOTTOM - 4, TOP)
    body = []
    for kind in (False, True):
        for i in np.flatnonzero(np.asarray(flagged) == kind):
            r, css = (5, "out") if kind else (2.6, "in")
            tip = f"<title>{escape(titles[i])}</title>" if kind else ""
            body.append(f'<circle class="{css}" cx="{px[i]:.1f}" cy="{py[i]:.1f}" r="{r}">{tip}</circle>')
    return _frame("Map of the rows", "".join(body), "main direction 1", "main direction 2", height)


def bars(shares: dict[str, float], limit: int = 12) -> str:
    """Return horizontal bars of shares that sum to at most one."""
    items = [(k, v) for k, v in list(shares.items())[:limit] if v > 0]
    if not items:
        return ""
    height, row, name_px = 26 * len(items) + 8, 26, 190
    scale = (WIDTH - name_px - 60) / max(v for _, v in items)
    body = []
    for i, (name, value) in enumerate(items):
        y = 4 + i * row
        short = name if len(name) <= 26 else name[:25] + "…"
        body.append(
            f'<text class="name" x="{name_px - 8}" y="{y + 16}" text-anchor="end">{escape(short)}'
            f"<title>{escape(name)}</title></text>"
            f'<rect class="in" x="{name_px}" y="{y + 3}" width="{value * scale:.1f}" height="{row - 8}" rx="2"/>'
            f'<text class="tick" x="{name_px + value * scale + 6:.1f}" y="{y + 16}">{value:.0%}</text>'
        )
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="Most implicated columns">{"".join(body)}</svg>'
