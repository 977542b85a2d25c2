"""What a person gets: the flagged items ranked, each with its score, p-value and reasons."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from skerry.core.report_result import ReportResult, as_plain, finite_or_none, joined

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Finding", "Findings"]


@dataclass(frozen=True)
class Finding:
    """One flagged item.

    Attributes
    ----------
    row : int
        Position in the source, counted from 0.
    score : float
        Higher is more anomalous.
    p_value : float
        Rank of the score among the reference scores; a conformal p-value where the detector was calibrated.
    reasons : tuple of str
        Why, in the data's own names and units; most important first.
    values : dict
        The row itself.
    """

    row: int
    score: float
    p_value: float
    reasons: tuple[str, ...] = ()
    values: dict[str, Any] = field(default_factory=dict)


@dataclass
class Findings(ReportResult):
    """The result of a search for outliers.

    Attributes
    ----------
    source : str
        What was read.
    rows, features : int
        Items scored, and features after encoding.
    detector, threshold_rule : str
    threshold : float
        A score strictly above it was flagged (for a conformal rule: the score of the last rejection).
    seconds : float
    n_flagged : int
        All flagged items; ``flagged`` may hold only the top ones.
    flagged : list of Finding
        Ranked by score, highest first.
    score_sample : ndarray of shape (m,)
        Scores of all items, or of a uniform sample of them.
    columns : list of dict
        What the encoder did to each column.
    importance : dict of str to float
        Share of each column in the flagged items' contributions.
    map_points : dict of str to list
        Coordinates ``x``, ``y``, scores and rows of a sample, for the two-dimensional map.
    metrics : dict
        Filled where a label was given.
    notes : list of str
    command : str
        How to get this again.
    """

    report: ClassVar[tuple[str, str]] = ("skerry.report.html", "write_report")

    source: str
    rows: int
    features: int
    detector: str
    threshold_rule: str
    threshold: float
    seconds: float
    n_flagged: int
    flagged: list[Finding]
    score_sample: NDArray[np.float64]
    columns: list[dict[str, Any]] = field(default_factory=list)
    importance: dict[str, float] = field(default_factory=dict)
    map_points: dict[str, list] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    command: str = ""

    def __len__(self) -> int:
        return self.n_flagged

    def _plain(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "rows": self.rows,
            "features": self.features,
            "detector": self.detector,
            "threshold": finite_or_none(self.threshold),
            "threshold_rule": self.threshold_rule,
            "seconds": round(self.seconds, 4),
            "n_flagged": self.n_flagged,
            "flagged": [as_plain(f, leave_out=("values",)) for f in self.flagged],
            "importance": self.importance,
            "columns": self.columns,
            "notes": self.notes,
        }

    def to_frame(self) -> pl.DataFrame:
        """Return the flagged items as a polars frame: ``row``, ``score``, ``p_value``, ``reasons``."""
        import polars as pl

        return pl.DataFrame(
            {
                "row": [f.row for f in self.flagged],
                "score": [f.score for f in self.flagged],
                "p_value": [f.p_value for f in self.flagged],
                "reasons": joined(self.flagged),
            },
            schema={"row": pl.Int64, "score": pl.Float64, "p_value": pl.Float64, "reasons": pl.String},
        )

    def plot(self) -> Any:
        """Return a plotly figure of the score distribution and the threshold."""
        return importlib.import_module("skerry.report.figures").score_figure(self)
