"""From a table with a time column to events: read, score each series, flag, merge into alarms, tell who is to blame."""

from __future__ import annotations

import math
import time as clock
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from skerry.core.block_conformal import BlockConformal, block_maxima
from skerry.core.errors import DataError, ParameterError, nearest
from skerry.core.events import AlarmRule, Event
from skerry.core.files import atomic_write
from skerry.core.metrics import average_precision, roc_auc
from skerry.core.series_detector import SeriesDetector, forward_filled
from skerry.core.series_findings import ScoredSeries, SeriesEvent, SeriesFindings
from skerry.core.threshold import Auto, Threshold, conformal_p_value
from skerry.data.series import SeriesFrame, read_series
from skerry.data.tables import open_table
from skerry.detect.series.reasons import blame_of
from skerry.detect.series.registry import MERGE_GAP
from skerry.detect.series.resemblance import resemblances
from skerry.detect.series.series_model import SeriesModel, longest_pieces

__all__ = ["find_events"]

FRAME = "<DataFrame>"
OWN_NOTES = 8  # of single series among many, told with the result; each series keeps all of its own
LABELS = 201  # stamps kept for the axis of a chart


def find_events(
    source: Any,
    *,
    detector: str | SeriesDetector = "ensemble",
    threshold: str | float | Threshold = "auto",
    alarm: AlarmRule | None = None,
    train_share: float | None = None,
    reference: Any = None,
    model: SeriesModel | None = None,
    label: str | None = None,
    out: str | Path | None = None,
    top: int | None = None,
    explain: bool = True,
    random_state: int = 0,
    on_progress: Callable[[int, int | None], None] = lambda done, total: None,
    on_fitted: Callable[[SeriesModel], None] | None = None,
    **reading: Any,
) -> SeriesFindings:
    """Find the stretches of time that do not belong, in one series or many.

    Parameters
    ----------
    source : path, frame, array or Table
        Whatever :func:`skerry.data.series.read_series` takes.
    detector : str or SeriesDetector, default "ensemble"
        Fitted anew to each series.
    threshold : str, float or Threshold, default "auto"
        As of :func:`~skerry.core.series_threshold.parse_series_threshold`: beside the rules of tables also
        "block-conformal:0.05" and "adaptive:0.01".
    alarm : AlarmRule, optional
        How flagged steps become events; by default those up to 32 unflagged steps apart are one.
    train_share : float in (0, 1), optional
        Fit to this first share of each series, and score all of it. By default a series is judged as a whole.
    reference : path, frame, array or Table, optional
        Series known to be quiet: the detectors are fitted to them, by key, and score those of ``source``.
    model : SeriesModel, optional
        A fitted model: nothing is fitted, ``source`` is only scored. A channel that it knows and ``source`` lacks is
        missing throughout, one that it does not know is left out, and so is a series among others; all is noted.
    label : str, optional
        A 0/1 column that is kept out of the channels; metrics are computed from it.
    out : path, optional
        ``.parquet`` or ``.csv`` with series, time, row, score, outlier and event of every step.
    top : int, optional
        Keep only that many events in the result.
    explain : bool, default True
    random_state : int, default 0
    on_progress : callable (done, total), optional
        Told after each series.
    on_fitted : callable (SeriesModel), optional
        Receives the model, to keep or save it.
    **reading
        Options of :func:`~skerry.data.series.read_series`: ``time``, ``by``, ``channel``, ``channels``, ``step`` ...

    Raises
    ------
    DataError
        If the source cannot be read as series, or a series cannot be scored; the message names it. If ``model`` or
        ``reference`` has none of the series, or no channel of one.
    ModelError
        If ``model`` is not whole.
    ParameterError
        For an argument out of range.

    Examples
    --------
    >>> x = np.sin(np.arange(600) / 5)
    >>> x[400:410] += 2.0
    >>> found = find_events(x, detector="forecast", threshold="contamination:0.01", time=False)
    >>> any(e.start < 410 and e.stop > 400 for e in found.events)
    True
    """
    started = clock.perf_counter()
    alarm = AlarmRule(merge_gap=MERGE_GAP) if alarm is None else alarm
    if train_share is not None and not 0.0 < train_share < 1.0:
        raise ParameterError(f"train_share must lie between 0 and 1, got {train_share!r}")
    if out is not None and Path(out).suffix not in (".parquet", ".csv"):
        raise DataError(f"{out}: must end in .parquet or .csv")
    learner = SeriesModel(detector, threshold, random_state)
    template = learner.template()  # a name that does not exist is told before anything is read
    name, labels, source = _without_label(source, label)
    if reference is not None:
        learner.fit(read_series(_without(reference, label), **reading)).remember(reading)
        model = learner
    if model is not None:
        model.check()
        if not isinstance(source, np.ndarray):
            reading = model.reading(open_table(source).columns, **reading)
        template = next(iter(model.detectors_.values()))
    frames = read_series(source, **reading)
    for frame in frames if name else []:
        frame.name = frame.name.replace(FRAME, name)  # the table without its label is a bare frame
    told: list[str] = []
    if model is not None:
        frames, told = _known(frames, model)
    series: list[ScoredSeries] = []
    found: list[tuple[float, SeriesEvent]] = []
    every: list[list[Event]] = []
    learnt = {id(frame) for frame in longest_pieces(frames)} if on_fitted is not None else set()
    if model is None:
        learner.start().remember(reading)
    else:
        learner = model
    on_progress(0, len(frames))
    for i, frame in enumerate(frames):
        if model is None:
            fitted = clone(template)
            scores = _fit_score(fitted, frame, train_share)
            if id(frame) in learnt:
                learner.keep(frame, fitted)
        else:
            fitted, scores = model.match(frame)[0], model.anomaly_score(frame)
        scored, events, ranked = _one(frame, fitted, scores, alarm, explain, top)
        series.append(scored)
        every.append(events)
        found += ranked
        on_progress(i + 1, len(frames))
    if on_fitted is not None:
        on_fitted(learner)
    found.sort(key=lambda pair: -pair[0])
    notes = told + _notes(series)
    metrics = {}
    if labels is not None:
        metrics, words = _metrics(frames, series, labels, label)
        notes += words
    if out is not None:
        _write(Path(out), frames, series, every)
    return SeriesFindings(
        source=frames[0].name if name is None and len(frames) == 1 else name or f"{len(frames)} series",
        steps=sum(len(f) for f in frames),
        detector=type(template).__name__,
        threshold_rule=str(threshold if model is None else model.threshold),
        seconds=clock.perf_counter() - started,
        n_events=sum(map(len, every)),
        events=[event for _, event in found[:top]],
        series=series,
        metrics=metrics,
        notes=notes,
    )


def _without_label(source: Any, label: str | None) -> tuple[str | None, NDArray | None, Any]:
    """Return the source's name, the labels by row, and the source without the label's column."""
    if isinstance(source, np.ndarray):
        if label is not None:
            raise ParameterError("label= names a column; an array has none")
        return None, None, source
    table = open_table(source)
    if label is None:
        return table.name, None, table
    if label not in table.columns:
        raise DataError(f"{table.name}: no column {label!r}; {nearest(label, table.columns)}")
    frame = table.read()
    values = frame[label].to_numpy().astype(np.float64)
    if not np.isin(values, (0.0, 1.0)).all():
        raise DataError(f"{table.name}: the label {label!r} must hold 0 and 1 alone")
    return table.name, values, frame.drop(label)


def _without(source: Any, label: str | None) -> Any:
    """Return a reference without the label's column, if it has one."""
    if isinstance(source, np.ndarray) or label is None:
        return source
    table = open_table(source)
    return table.read().drop(label) if label in table.columns else table


def _known(frames: list[SeriesFrame], model: SeriesModel) -> tuple[list[SeriesFrame], list[str]]:
    """Return the series that the model knows, with its channels, and what to tell of the others."""
    known = [frame for frame in frames if model.knows(frame)]
    if not known:
        model.match(frames[0])  # raises, and says why
    others = [repr(frame.name) for frame in frames if not model.knows(frame)]
    told = [f"{len(others)} series that the model does not know, left out: {', '.join(others[:8])}"] if others else []
    return [model.match(frame)[1] for frame in known], told


def _fit_score(model: SeriesDetector, frame: SeriesFrame, train_share: float | None) -> NDArray[np.float64]:
    X = frame.values
    try:
        if train_share is None:
            return model.fit_score(X)
        return model.fit(X[: max(1, round(train_share * len(X)))]).anomaly_score(X)
    except DataError as error:
        raise DataError(f"series {frame.name!r}: {error}") from None


def _one(
    frame: SeriesFrame,
    model: SeriesDetector,
    scores: NDArray[np.float64],
    alarm: AlarmRule,
    explain: bool,
    top: int | None,
) -> tuple[ScoredSeries, list[Event], list[tuple[float, SeriesEvent]]]:
    """Return the series with its scores, all its events, and the ``top`` ones with rank and reasons, in order."""
    X = frame.values
    flags, cuts = model.decide(scores)
    events = alarm.events(flags, scores)
    spread = max(float(np.std(model.reference_scores_)), 1e-12)
    rank = [(event.score - max(cuts[event.peak], scores.min())) / spread for event in events]
    told = sorted(sorted(range(len(events)), key=lambda i: -rank[i])[:top])
    kept = [events[i] for i in told]
    blame = _explained(model, X, [event.peak for event in kept]) if explain and kept else None
    usual = None
    if blame is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a channel without any value
            usual = np.nanquantile(X, [0.05, 0.95], axis=0)
    looks = resemblances(frame, model, kept, blame)
    ranked = []
    for i, event, p in zip(told, kept, _p_values(model, scores, kept), strict=True):
        reasons, shares = ((), {}) if blame is None else blame_of(frame, event.peak, blame[event.peak], usual)
        ranked.append(
            (
                rank[i],
                SeriesEvent(
                    series=frame.name,
                    start=event.start,
                    stop=event.stop,
                    first=frame.when(event.start),
                    last=frame.when(event.stop - 1),
                    peak=frame.when(event.peak),
                    row=int(frame.rows[event.peak]),
                    score=float(event.score),
                    p_value=float(p),
                    reasons=reasons,
                    blame=shares,
                    similarity=looks.get(event.peak),
                ),
            )
        )
    labels = [frame.when(int(i)) for i in np.linspace(0, len(frame) - 1, min(len(frame), LABELS))]
    cut = float(np.median(cuts))
    notes = list(frame.notes)
    if isinstance(model.threshold_rule_, Auto) and not flags.any() and _out_of_reach(model):
        notes.append(
            "the scores have so long a tail that the automatic threshold lies above all of them: "
            "threshold contamination:0.01 flags the highest hundredth, train_share=0.5 learns from the first half"
        )
    if np.isinf(cuts).all():
        notes.append(f"no step can be flagged by {model.threshold_rule_}: {_too_few(model)}")
    elif np.ptp(cuts[np.isfinite(cuts)]) > 0:
        notes.append(f"the threshold moves with the scores; the one shown, {cut:.4g}, is its median")
    return ScoredSeries(frame.name, labels, X, frame.channels, scores, flags, cut, notes), events, ranked


def _notes(series: list[ScoredSeries]) -> list[str]:
    """Return what is to tell of all series once, then that of single ones under their names."""
    common = [note for note in dict.fromkeys(series[0].notes) if all(note in s.notes for s in series)]
    own = [f"{s.name}: {note}" for s in series for note in dict.fromkeys(s.notes) if note not in common]
    more = [f"and {len(own) - OWN_NOTES} more notes on single series"] if len(own) > OWN_NOTES else []
    return common + own[:OWN_NOTES] + more


def _explained(model: SeriesDetector, X: NDArray, steps: list[int]) -> dict[int, NDArray[np.float64]]:
    """Return the parts (c,) of each of these steps, from what it looks back to where that is the shorter way."""
    reach = model.reach
    if reach is None or len(steps) * (reach + 1) >= len(X):
        parts = model.explain(X)
        return {step: parts[step] for step in steps}
    filled = forward_filled(X, model.feature_medians_)
    found = {}
    for step in steps:
        first = max(0, step - max(1, reach))
        piece = X[first : step + 1].copy()
        piece[0] = filled[first]
        found[step] = model.explain(piece)[-1]
    return found


def _out_of_reach(model: SeriesDetector) -> bool:
    """Whether scores lie beyond the plain fence of a boxplot, but skewness put the adjusted one above them all."""
    q1, q3 = np.quantile(model.reference_scores_, [0.25, 0.75])
    return bool(q3 + 1.5 * (q3 - q1) < model.reference_scores_[-1] < model.threshold_)


def _too_few(model: SeriesDetector) -> str:
    rule, known = model.threshold_rule_, len(model.reference_in_time_)
    if not isinstance(rule, BlockConformal):
        return f"it needs more reference scores than the {known:,} there are"
    least = math.ceil(1.0 / rule.alpha) - 1
    return (
        f"it needs {least} blocks of {rule.block} reference scores, of which there are {known:,}; "
        f"{rule}:{max(1, known // (2 * least))} takes shorter blocks"
    )


def _p_values(model: SeriesDetector, scores: NDArray, events: list[Event]) -> NDArray[np.float64]:
    """Return the rank of each event's peak among the reference scores; under BlockConformal that of a whole block."""
    peaks = np.array([e.peak for e in events], dtype=np.int64)
    rule = model.threshold_rule_
    if isinstance(rule, BlockConformal):
        return conformal_p_value(block_maxima(model.reference_in_time_, rule.block), scores[peaks])
    return conformal_p_value(model.reference_scores_, scores[peaks])


def _metrics(
    frames: list[SeriesFrame], series: list[ScoredSeries], labels: NDArray, label: str | None
) -> tuple[dict[str, float], list[str]]:
    """Return the means over the series that hold both kinds of steps."""
    found = []
    for frame, scored in zip(frames, series, strict=True):
        y = np.where(frame.rows >= 0, labels[np.maximum(frame.rows, 0)], 0.0)
        if 0 < y.sum() < len(y):
            found.append((roc_auc(y, scored.scores), average_precision(y, scored.scores)))
    if not found:
        return {}, [f"no series has both labels in {label!r}: no metric"]
    auroc, ap = np.mean(found, axis=0)
    told = [] if len(found) == len(series) else [f"metrics are the mean of the {len(found)} series with both labels"]
    return {"auroc": float(auroc), "average_precision": float(ap)}, told


def _write(path: Path, frames: list[SeriesFrame], series: list[ScoredSeries], events: list[list[Event]]) -> None:
    import polars as pl

    parts = []
    for frame, scored, found in zip(frames, series, events, strict=True):
        number = np.zeros(len(frame), dtype=np.int64)
        for k, event in enumerate(found, start=1):
            number[event.start : event.stop] = k
        parts.append(
            pl.DataFrame(
                {
                    "series": pl.repeat(frame.name, len(frame), eager=True),
                    frame.time_column or "step": frame.time,
                    "row": frame.rows,
                    "score": scored.scores,
                    "outlier": scored.flags,
                    "event": number,
                }
            )
        )
    table = pl.concat(parts)
    with atomic_write(path) as file:
        table.write_parquet(file) if path.suffix == ".parquet" else table.write_csv(file)
