"""What a person gets from series: the events ranked, each with its time, score and the channels to blame."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from skerry.core.report_result import ReportResult, as_plain, finite_or_none, joined

if TYPE_CHECKING:
    import polars as pl

__all__ = ["ScoredSeries", "SeriesEvent", "SeriesFindings", "Similarity"]


@dataclass(frozen=True)
class Similarity:
    """How much the moments around an event resemble each other, for a picture.

    Attributes
    ----------
    channel : str
    start : int
        Step of the series that the first row stands for.
    first, last : str
        Stamps of the first and the last row.
    values : ndarray of shape (L, L)
        In [0, 1].
    """

    channel: str
    start: int
    first: str
    last: str
    values: NDArray[np.float64]


@dataclass(frozen=True)
class SeriesEvent:
    """One stretch of time that does not belong.

    Attributes
    ----------
    series : str
    start, stop : int
        Steps of the series, ``stop`` excluded.
    first, last, peak : str
        Stamps of the first, the last and the highest step.
    row : int
        Row of the file at the highest step, -1 where it was filled in.
    score : float
        Of the highest step.
    p_value : float
        Rank of that score among the reference scores.
    reasons : tuple of str
        The channels to blame, in their own names and units; most important first.
    blame : dict of str to float
        Share of each channel in the score of the highest step.
    similarity : Similarity, optional
        Where the detector compares moments with each other.
    """

    series: str
    start: int
    stop: int
    first: str
    last: str
    peak: str
    row: int
    score: float
    p_value: float
    reasons: tuple[str, ...] = ()
    blame: dict[str, float] = field(default_factory=dict)
    similarity: Similarity | None = field(default=None, repr=False, compare=False)


@dataclass
class ScoredSeries:
    """One series with its scores.

    Attributes
    ----------
    name : str
    labels : list of str
        Stamps of at most 201 steps at equal distances, the first and the last among them.
    values : ndarray of shape (T, c)
    channels : list of str
    scores : ndarray of shape (T,)
    flags : ndarray of shape (T,), bool
    threshold : float
    notes : list of str
    """

    name: str
    labels: list[str]
    values: NDArray[np.float64]
    channels: list[str]
    scores: NDArray[np.float64]
    flags: NDArray[np.bool_]
    threshold: float
    notes: list[str] = field(default_factory=list)


@dataclass
class SeriesFindings(ReportResult):
    """The result of a search for events in series.

    Attributes
    ----------
    source, detector, threshold_rule : str
    steps : int
        Of all series together.
    seconds : float
    n_events : int
        All events; ``events`` may hold only the top ones.
    events : list of SeriesEvent
        Ranked by score over the threshold of their series, highest first.
    series : list of ScoredSeries
    metrics : dict
        Filled where a label was given.
    notes : list of str
    command : str
        How to get this again.
    """

    report: ClassVar[tuple[str, str]] = ("skerry.report.series_html", "write_series_report")

    source: str
    steps: int
    detector: str
    threshold_rule: str
    seconds: float
    n_events: int
    events: list[SeriesEvent]
    series: list[ScoredSeries]
    metrics: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    command: str = ""

    def __len__(self) -> int:
        return self.n_events

    def _plain(self) -> dict[str, Any]:
        # the scores of single steps are left to --out
        return {
            "source": self.source,
            "steps": self.steps,
            "detector": self.detector,
            "threshold_rule": self.threshold_rule,
            "seconds": round(self.seconds, 4),
            "n_events": self.n_events,
            "events": [as_plain(e, leave_out=("similarity",)) for e in self.events],
            "series": [
                {
                    "name": s.name,
                    "steps": len(s.scores),
                    "channels": s.channels,
                    "threshold": finite_or_none(s.threshold),
                    "flagged": int(s.flags.sum()),
                    "notes": s.notes,
                }
                for s in self.series
            ],
            "notes": self.notes,
        }

    def to_frame(self) -> pl.DataFrame:
        """Return the events as a polars frame."""
        import polars as pl

        names = ("series", "first", "last", "peak", "start", "stop", "row", "score", "p_value")
        text, whole = pl.String, pl.Int64
        kinds = [text, text, text, text, whole, whole, whole, pl.Float64, pl.Float64]
        columns = {n: [getattr(e, n) for e in self.events] for n in names}
        columns["reasons"] = joined(self.events)
        return pl.DataFrame(columns, schema=dict(zip(names, kinds, strict=True)) | {"reasons": text})
