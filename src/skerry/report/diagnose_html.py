"""The page of ``skerry diagnose``: heat maps of channels and of attention over the layers, and what they advise."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skerry.report.heat_map import png
from skerry.report.page import render_page, write_page

if TYPE_CHECKING:
    from skerry.quant.diagnose.report import OutlierReport

__all__ = ["render_diagnosis", "write_diagnosis"]

WIDE, NAMES, ROW = 720, 150, 16
MOST_COLUMNS = 240


def render_diagnosis(report: OutlierReport, *, losses: Mapping[str, float] | None = None) -> str:
    """Return the page of an outlier report.

    Parameters
    ----------
    report : OutlierReport
    losses : mapping, optional
        ``baseline_loss``, ``zero_loss`` and ``mean_loss`` of the interventions.
    """
    layers = report.activation.layers
    channels = [np.asarray(layer.peaks / max(layer.mean, 1e-30)) for layer in layers]
    attention = [np.asarray(layer.received) / max(len(layer.received), 1) for layer in report.attention]
    weights = sorted(report.weight.items(), key=lambda item: -item[1].score)[:12]
    return render_page(
        "diagnosis.html",
        report=report,
        layers=layers,
        losses=losses,
        weights=weights,
        sinks=[layer for layer in report.attention if layer.sinks],
        life=report.lifecycle,
        channel_map=_map([layer.name for layer in layers], channels, "channel", "times the layer's mean"),
        attention_map=_map([layer.name for layer in report.attention], attention, "key", "share of all attention"),
    )


def write_diagnosis(report: OutlierReport, path: str | Path, *, losses: Mapping[str, float] | None = None) -> Path:
    """Write the page; see :func:`render_diagnosis`.

    Raises
    ------
    DataError
        If the file cannot be written.
    """
    return write_page(path, render_diagnosis(report, losses=losses))


def _map(names: list[str], rows: list[NDArray[Any]], what: str, unit: str) -> str:
    """Return layers by columns as SVG; dark is large, on a scale of logarithms; wide rows show their largest column."""
    if not rows or any(len(row) != len(rows[0]) for row in rows) or not len(rows[0]):
        return ""
    values = np.stack(rows).astype(np.float64)
    count = values.shape[1]
    edges = np.unique(np.linspace(0, count, min(count, MOST_COLUMNS), endpoint=False).astype(int))
    shown = np.log10(np.maximum(np.maximum.reduceat(values, edges, axis=1), 1e-6))
    low, high = float(np.quantile(shown, 0.05)), float(shown.max())
    shades = (shown - low) / (high - low) if high - low > 1e-9 else np.zeros_like(shown)
    data = base64.b64encode(png(shades)).decode()
    height = ROW * len(names)
    body = [
        f'<image x="{NAMES}" y="4" width="{WIDE - NAMES}" height="{height}" preserveAspectRatio="none" '
        f'style="image-rendering: pixelated" href="data:image/png;base64,{data}"/>'
    ]
    for i, name in enumerate(names):
        short = name if len(name) <= 20 else "…" + name[-19:]
        top = int(values[i].argmax())
        body.append(
            f'<text class="tick" x="{NAMES - 6}" y="{4 + ROW * i + 12}" text-anchor="end">{escape(short)}'
            f"<title>{escape(name)}: largest {values[i, top]:.4g} at {what} {top}</title></text>"
        )
    end = height + 20
    body.append(f'<text class="tick" x="{NAMES}" y="{end}">{what} 0</text>')
    body.append(f'<text class="tick" x="{WIDE}" y="{end}" text-anchor="end">{what} {count - 1}</text>')
    middle = (WIDE + NAMES) / 2
    scale = f"{unit}, {10**low:.2g} (light) to {10**high:.3g} (dark)"
    body.append(f'<text class="tick" x="{middle}" y="{end}" text-anchor="middle">{escape(scale)}</text>')
    label = f"{what}s by layer"
    return f'<svg viewBox="0 0 {WIDE} {end + 6}" role="img" aria-label="{label}">{"".join(body)}</svg>'
