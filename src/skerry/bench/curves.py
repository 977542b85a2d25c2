"""Curves of training as a self-contained SVG: no script, no plotting library, readable in print and on a phone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

__all__ = ["curves"]

WIDTH, HEIGHT = 680, 360
LEFT, RIGHT, TOP, BOTTOM = 58, 190, 34, 44
COLOURS = ("#d1495b", "#2e6f95", "#3a7d44", "#b07d2b", "#6d597a", "#17818c", "#8c564b", "#5c6b79", "#c05299", "#7f7f2a")


def curves(
    title: str,
    lines: Mapping[str, Sequence[tuple[float, float]]],
    x_label: str,
    y_label: str,
    *,
    log: bool = False,
    level: tuple[str, float] | None = None,
) -> str:
    """Return an SVG picture of lines with their names at the right end.

    Parameters
    ----------
    title : str
    lines : mapping of name to sequence of (x, y)
        Points that are not finite, or not positive on a log scale, are left out; so are lines without points.
    x_label, y_label : str
    log : bool, default False
        A logarithmic vertical axis.
    level : (str, float), optional
        A named dashed horizontal line: a floor.

    Examples
    --------
    >>> curves("Loss", {"Adam": [(0, 2.0), (100, 1.5)]}, "step", "nats").count("<polyline")
    1
    """
    kept = {
        name: [(x, y) for x, y in points if math.isfinite(y) and (y > 0 or not log)] for name, points in lines.items()
    }
    kept = {name: points for name, points in kept.items() if points}
    values = [y for points in kept.values() for _, y in points] + ([level[1]] if level else [])
    xs = [x for points in kept.values() for x, _ in points]
    low, high, x_high = (min(values), max(values), max(xs)) if kept else (0.0, 1.0, 1.0)
    x_low = min(0.0, *xs) if kept else 0.0
    scale = math.log10 if log else float
    a, b = scale(low), scale(high)
    margin = 0.06 * (b - a or 1.0)
    a, b = a - margin, b + margin

    def px(x: float) -> float:
        return LEFT + (x - x_low) / ((x_high - x_low) or 1.0) * (WIDTH - LEFT - RIGHT)

    def py(y: float) -> float:
        return HEIGHT - BOTTOM - (scale(y) - a) / (b - a) * (HEIGHT - TOP - BOTTOM)

    body = [f'<text x="{LEFT}" y="18" font-weight="600" fill="#1d2a36">{escape(title)}</text>']
    for t in _ticks(a, b, log):
        y = py(t)
        body.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dfe5ea"/>')
        body.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{t:g}</text>')
    for t in _ticks(x_low, x_high, False):
        body.append(f'<text x="{px(t):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{t:g}</text>')
    if level:
        y = py(level[1])
        body.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#1d2a36" '
            'stroke-dasharray="5 4"/>'
            f'<text x="{LEFT + 4}" y="{y - 5:.1f}" fill="#1d2a36">{escape(level[0])}</text>'
        )
    ends = sorted(((py(points[-1][1]), name) for name, points in kept.items()))
    places: dict[str, float] = {}
    at = -math.inf
    for y, name in ends:  # labels keep 14 points apart
        at = max(y, at + 14)
        places[name] = at
    over = max(0.0, at - (HEIGHT - 6))
    for (name, points), colour in zip(kept.items(), COLOURS * (1 + len(kept) // len(COLOURS)), strict=False):
        line = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in points)
        y = places[name] - over
        body.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        body.append(f'<text x="{WIDTH - RIGHT + 8}" y="{y + 4:.1f}" fill="{colour}">{escape(name)}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    body.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>'
    )
    body.append(
        f'<text transform="translate(14 {middle:.0f}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}" font-family="system-ui,sans-serif" font-size="12" fill="#5c6b79">'
        f'<rect width="100%" height="100%" fill="#ffffff"/>{"".join(body)}</svg>\n'
    )


def _ticks(a: float, b: float, log: bool) -> list[float]:
    """Return round values; of a log axis, whose ends are exponents, powers of ten with 2 and 5 between if few."""
    if log:
        found = [m * 10.0**k for k in range(math.floor(a), math.ceil(b) + 1) for m in (1, 2, 5)]
        found = [t for t in found if a <= math.log10(t) <= b]
        return [t for t in found if f"{t:e}"[0] == "1"] if len(found) > 7 else found
    span = b - a
    if span <= 0:
        return [a]
    step = 10.0 ** math.floor(math.log10(span / 5))
    step *= next(m for m in (1, 2, 5, 10) if span / (step * m) <= 6)
    first = math.ceil(a / step)
    return [round(k * step, 10) + 0.0 for k in range(first, math.floor(b / step + 1e-9) + 1)]
