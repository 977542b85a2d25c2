"""Interactive plotly figures of findings, for notebooks."""

from __future__ import annotations

from typing import Any

import numpy as np

from skerry.core.findings import Findings

__all__ = ["map_figure", "score_figure"]

INLIER, OUTLIER = "#6b8fb3", "#d1495b"


def score_figure(findings: Findings) -> Any:
    """Return a plotly histogram of the scores with the threshold as a line."""
    import plotly.graph_objects as go

    figure = go.Figure(go.Histogram(x=findings.score_sample, nbinsx=80, marker_color=INLIER))
    if np.isfinite(findings.threshold):
        figure.add_vline(x=findings.threshold, line_color=OUTLIER, annotation_text="threshold")
    return figure.update_layout(
        template="plotly_white", yaxis_type="log", xaxis_title="anomaly score", yaxis_title="rows"
    )


def map_figure(findings: Findings) -> Any:
    """Return a plotly scatter of the rows on their two main directions; outliers are marked."""
    import plotly.graph_objects as go

    points = findings.map_points
    color = [OUTLIER if o else INLIER for o in points["outlier"]]
    text = [f"row {r}, score {s:.4g}" for r, s in zip(points["row"], points["score"], strict=True)]
    figure = go.Figure(go.Scattergl(x=points["x"], y=points["y"], mode="markers", text=text, marker_color=color))
    return figure.update_layout(template="plotly_white", xaxis_title="direction 1", yaxis_title="direction 2")
