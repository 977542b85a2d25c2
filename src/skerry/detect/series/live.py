"""A series watched as it comes: rows in, alarms out, in constant memory, and all of it can be saved and resumed.

The parts are the library's own: a causal detector, a threshold that learns as it decides
(:mod:`skerry.core.stream_threshold`), the rule that turns flags into events (:mod:`skerry.core.events`) and the clock
of a stream (:mod:`skerry.data.stream_clock`). Rows may come one by one or in blocks:
the result is the same.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, clone

from skerry.core import persistence
from skerry.core.detector import HUGE
from skerry.core.errors import DataError, ModelError, ParameterError
from skerry.core.events import AlarmRule, Event, EventStream
from skerry.core.series_detector import SeriesDetector, forward_filled
from skerry.core.stream_threshold import StreamThreshold
from skerry.data.series import SeriesFrame
from skerry.data.stream_clock import StreamClock
from skerry.detect.series.live_event import LiveEvent
from skerry.detect.series.reasons import blame_of
from skerry.detect.series.registry import MERGE_GAP, make_series_detector
from skerry.detect.series.stream_rules import make_stream_threshold

__all__ = ["LiveDetector"]

BLOCK = 4096  # steps scored together
CONTEXT = 64  # steps kept to explain an event by, where the detector does not say how far back it looks


class LiveDetector(BaseEstimator):
    """Follow one series.

    Parameters
    ----------
    detector : str or SeriesDetector, default "forecast"
        One that has ``update``: "forecast", "half-space-trees", "windowed", "windowed:NAME".
    threshold : str or StreamThreshold, default "auto"
        As of :func:`~skerry.detect.series.stream_rules.make_stream_threshold`.
    alarm : AlarmRule, optional
        By default flags up to 32 steps apart are one event.
    warmup : int >= 20, default 500
        Rows that are learned from before the first score.
    max_gap : int >= 0, default 1000
        Missing steps that are filled with NaN; a longer gap starts the series anew.
    channels : list of str, optional
        Their names.
    time_zone : str, optional
        Told with the stamps.
    random_state : int, default 0

    Attributes
    ----------
    detector_, threshold_
        Fitted to the warm-up; they do not exist before.
    n_steps_ : int
        Steps scored so far, missing ones included.
    reading_ : dict
        Room for whoever reads the stream: saved with the rest (numbers, text, lists and dicts of such).
    notes_ : list of str
        What there is to tell beside events; the caller takes it away.

    Notes
    -----
    The threshold starts from scores of the warm-up by a detector fitted to its other half, so that it does not take
    the small residuals of training for ordinary; the detector that goes on is fitted to all of it. A step without any
    value is scored by nobody: it is neither flagged nor learned. :meth:`save` between any two calls, and
    :meth:`load` goes on as if nothing had happened.

    Examples
    --------
    >>> x = np.sin(np.arange(1200) / 5) + 0.01 * np.random.default_rng(0).normal(size=1200)
    >>> x[1000:1004] += 2.0
    >>> live = LiveDetector(threshold="extreme:1e-4")
    >>> [(e.kind, e.start) for e in live.feed(x)]
    [('alarm', '1000'), ('end', '1000')]
    """

    detector_: SeriesDetector
    threshold_: StreamThreshold

    def __init__(
        self,
        detector: str | SeriesDetector = "forecast",
        threshold: str | StreamThreshold = "auto",
        *,
        alarm: AlarmRule | None = None,
        warmup: int = 500,
        max_gap: int = 1000,
        channels: list[str] | None = None,
        time_zone: str | None = None,
        random_state: int = 0,
    ) -> None:
        self.detector = detector
        self.threshold = threshold
        self.alarm = alarm
        self.warmup = warmup
        self.max_gap = max_gap
        self.channels = channels
        self.time_zone = time_zone
        self.random_state = random_state
        self._reset()

    def _reset(self) -> None:
        for name, least in (("warmup", 20), ("max_gap", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
                raise ParameterError(f"{name} must be a whole number of at least {least}, got {value!r}")
        self._model = make_series_detector(self.detector, random_state=self.random_state)
        if not hasattr(self._model, "update"):
            raise ParameterError(
                f"{type(self._model).__name__} looks at a whole series and cannot follow one; use forecast, "
                "half-space-trees or windowed"
            )
        self._rule = make_stream_threshold(self.threshold)
        self.clock_ = StreamClock(self.max_gap)
        self.stream_ = EventStream(self.alarm or AlarmRule(merge_gap=MERGE_GAP))
        self.learned_: list[NDArray] = []  # values of the warm-up so far
        self.learned_time_: list[NDArray] = []
        self.n_rows_ = self.n_events_ = 0
        self.told_ = False  # of the event under way
        self.stamps_: dict[int, float | int] = {}  # of the steps of the event under way
        self.silent_: NDArray[np.int64] | None = None  # steps since each channel had a value
        self.reading_: dict[str, Any] = {}
        self.notes_: list[str] = []

    # ---- saved and resumed -----------------------------------------------------------------------------------
    def __getstate__(self) -> dict[str, Any]:
        state = dict(vars(self))
        state["alarm"] = None if self.alarm is None else asdict(self.alarm)
        state["clock_"] = self.clock_.state()
        state["stream_"] = self.stream_.state()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.alarm = None if state["alarm"] is None else AlarmRule(**state["alarm"])
        self.clock_ = StreamClock(state=state["clock_"])
        self.stream_ = EventStream(self.alarm or AlarmRule(merge_gap=MERGE_GAP), state["stream_"])

    def save(self, path: str | Path) -> None:
        """Write everything to ``path``; the file is whole or the old one at any moment."""
        persistence.save(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Return what :meth:`save` wrote.

        Raises
        ------
        ModelError
            If the file is missing, damaged, or holds something else.
        """
        live = persistence.load(path)
        if not isinstance(live, cls):
            raise ModelError(f"{path}: holds a {type(live).__name__}, not the state of a stream")
        return live

    # ---- rows in, events out ---------------------------------------------------------------------------------
    @property
    def warm(self) -> bool:
        """Whether the warm-up is over."""
        return hasattr(self, "detector_")

    @property
    def n_steps_(self) -> int:
        """Steps scored so far."""
        return self.stream_.n_steps

    def feed(self, rows: ArrayLike, time: ArrayLike | None = None) -> list[LiveEvent]:
        """Take the next rows and return what they tell.

        Parameters
        ----------
        rows : array of shape (n, c), or (n,) for one channel
            NaN where a value is missing; infinite values count as missing.
        time : array of shape (n,), optional
            Their stamps: int64 microseconds since 1970, ``datetime64`` or plain numbers. Without them rows are steps.

        Returns
        -------
        list of LiveEvent

        Raises
        ------
        DataError
            If the number of channels changes, stamps are missing, or the warm-up holds no value at all.
        """
        X, t = self._checked(rows, time)
        self.n_rows_ += len(X)
        events: list[LiveEvent] = []
        if not self.warm:
            room = self.warmup - sum(map(len, self.learned_))
            self.learned_.append(X[:room].copy())
            self.learned_time_.append(t[:room].copy())
            if len(X) < room:
                return events
            self._begin()
            X, t = X[room:], t[room:]
        for start in range(0, len(X), BLOCK):
            events += self._steps(X[start : start + BLOCK], t[start : start + BLOCK])
        return events

    def leave(self) -> list[LiveEvent]:
        """Return the event under way, if any, as one that is open; nothing is changed."""
        event = self.stream_.open
        return [] if event is None or not self.told_ else [self._event("open", event, self.threshold_.threshold_)]

    def _checked(self, rows: ArrayLike, time: ArrayLike | None) -> tuple[NDArray[np.float64], NDArray]:
        X = np.asarray(rows, dtype=np.float64)
        X = np.ascontiguousarray(X[:, None] if X.ndim == 1 else X)
        known = self.learned_[0].shape[1] if self.learned_ else getattr(self, "n_channels_", X.shape[-1])
        if X.ndim != 2 or X.shape[1] != known or known == 0:
            raise DataError(f"rows have shape {X.shape}; {known} channels are followed")
        X = np.clip(np.where(np.isinf(X), np.nan, X), -HUGE, HUGE)
        if time is None:
            return X, np.arange(self.n_rows_, self.n_rows_ + len(X), dtype=np.float64)
        t = np.asarray(time)
        if t.dtype.kind == "M":
            t = t.astype("datetime64[us]").astype(np.int64)
        t = t.astype(np.int64 if t.dtype.kind == "i" else np.float64)
        if t.shape != (len(X),) or (t.dtype.kind == "f" and not np.isfinite(t).all()):
            raise DataError(f"{len(X)} rows need {len(X)} stamps, none of them missing")
        return X, t

    # ---- the warm-up -----------------------------------------------------------------------------------------
    def _begin(self) -> None:
        """Learn from the warm-up: the step of the clock, the detector, the threshold."""
        t = np.concatenate(self.learned_time_)
        placed = self.clock_.fit(t).place(t)
        X = np.concatenate(self.learned_)
        X = _spread(X, placed.rows)
        self._take_notes()
        if np.isnan(X).all():
            raise DataError(f"the first {len(t)} rows hold no number; check the columns")
        missing = np.isnan(X)
        flat = np.where(missing, np.inf, X).min(axis=0) >= np.where(missing, -np.inf, X).max(axis=0)
        if flat.any():
            names = [self._names(X.shape[1])[j] for j in np.flatnonzero(flat)]
            self.notes_.append(f"constant or empty in the warm-up: {', '.join(map(repr, names[:8]))}")
        half = len(X) // 2
        scores = np.empty(len(X))
        scores[half:] = clone(self._model).fit(X[:half]).anomaly_score(X)[half:]
        scores[:half] = clone(self._model).fit(X[half:]).anomaly_score(X)[:half]
        scores[np.isnan(X).all(axis=1)] = np.nan
        self.detector_ = clone(self._model).fit(X)
        reach = self.detector_.reach or 0
        if half > 2 * reach:
            scores = scores[reach:]  # the first know too little of the past
        self.threshold_ = clone(self._rule).fit(scores)
        self.n_channels_ = X.shape[1]
        self.usual_ = np.nanquantile(np.where(np.isnan(X).all(axis=0), 0.0, X), [0.05, 0.95], axis=0)
        self.silent_ = np.zeros(X.shape[1], dtype=np.int64)
        self.learned_, self.learned_time_ = [], []
        self._forget()
        self._advance(X)

    # ---- steps -----------------------------------------------------------------------------------------------
    def _steps(self, X: NDArray[np.float64], t: NDArray) -> list[LiveEvent]:
        placed = self.clock_.place(t)
        self._take_notes()
        X = _spread(X, placed.rows)
        events: list[LiveEvent] = []
        bounds = [0, *placed.anew, len(placed.rows)]
        for k, (a, b) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
            if k:  # a gap that nothing spans
                if (over := self.stream_.flush()) is not None:
                    events.append(self._event("end", over, self.threshold_.threshold_))
                self.told_, self.stamps_ = False, {}
                self._forget()
            if b > a:
                events += self._decide(X[a:b], placed.time[a:b])
        return events

    def _decide(self, X: NDArray[np.float64], t: NDArray) -> list[LiveEvent]:
        before = self.context_
        scores = self._advance(X)
        scores[np.isnan(X).all(axis=1)] = np.nan
        self._watch(X)
        rule, stream, base = self.threshold_, self.stream_, self.stream_.n_steps
        events: list[LiveEvent] = []
        for i, score in enumerate(scores.tolist()):
            cut = rule.threshold_
            flag = rule.update(score)
            over = stream.update(flag, score)
            if over is not None:
                events.append(self._event("end", over, cut, base, t))
                self.told_ = False
            if flag and not self.told_ and (now := stream.open) is not None:
                self.told_ = True
                self.n_events_ += 1
                events.append(self._event("alarm", now, cut, base, t, self._blame(before, X, t, i)))
        state = stream.state()
        ends = [state[k] for k in ("start", "last", "peak") if state["start"] >= 0]
        self.stamps_ = {step: self._stamp(step, base, t) for step in ends}
        return events

    def _forget(self) -> None:
        self.detector_.reset()
        self.context_ = np.empty((0, self.n_channels_))

    def _advance(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        """Score the next steps together: what ``update`` would say to them one by one."""
        detector, seen = self.detector_, len(self.context_)
        joined = np.concatenate([self.context_, X])
        self.context_ = self._latest(joined)
        return detector.update_many(X) if detector.reach is None else detector.anomaly_score(joined)[seen:]

    def _latest(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the last steps, as many as a later score looks back to, the first of them without a gap."""
        reach = CONTEXT if self.detector_.reach is None else max(1, self.detector_.reach)
        if len(X) <= reach:
            return X
        out = X[-reach:].copy()
        gone = np.isnan(out[0])
        if gone.any():
            out[0, gone] = forward_filled(X[: len(X) - reach + 1], self.detector_.feature_medians_)[-1, gone]
        return out

    # ---- words -----------------------------------------------------------------------------------------------
    def _names(self, n: int) -> list[str]:
        return self.channels if self.channels is not None and len(self.channels) == n else [f"x{j}" for j in range(n)]

    def _take_notes(self) -> None:
        self.notes_ += self.clock_.notes
        self.clock_.notes = []

    def _watch(self, X: NDArray[np.float64]) -> None:
        """Tell of channels that fall silent for as long as the warm-up, and of those that come back."""
        gone = np.isnan(X)
        for j in np.flatnonzero(gone.any(axis=0) | (self.silent_ > 0)):
            heard = np.flatnonzero(~gone[:, j])
            was = int(self.silent_[j])
            longest = was + (int(heard[0]) if heard.size else len(X))
            self.silent_[j] = len(X) - 1 - heard[-1] if heard.size else longest
            name = repr(self._names(X.shape[1])[j])
            if was < self.warmup <= longest:
                self.notes_.append(f"channel {name} has had no value for {self.warmup:,} steps")
            if longest >= self.warmup and heard.size:
                self.notes_.append(f"channel {name} is back after {longest:,} steps without a value")

    def _stamp(self, step: int, base: int, t: NDArray) -> float | int:
        return t[step - base].item() if step >= base else self.stamps_[step]

    def _frame(self, value: NDArray, stamp: float | int) -> SeriesFrame:
        time = np.array([stamp])
        time = time.view("datetime64[us]") if self.clock_.calendar else time.astype(np.float64)
        names = self._names(len(value))
        return SeriesFrame("", time, value[None], names, np.zeros(1, dtype=np.int64), time_zone=self.time_zone)

    def _when(self, stamp: float | int) -> str:
        return self._frame(np.empty(0), stamp).when(0) if self.clock_.calendar else f"{stamp:.15g}"

    def _event(
        self,
        kind: str,
        event: Event,
        cut: float,
        base: int | None = None,
        t: NDArray | None = None,
        blame: tuple[tuple[str, ...], dict[str, float]] = ((), {}),
    ) -> LiveEvent:
        t = np.empty(0) if t is None else t
        base = event.stop if base is None else base
        start, last, peak = (self._when(self._stamp(s, base, t)) for s in (event.start, event.stop - 1, event.peak))
        steps, score = event.stop - event.start, float(event.score)
        return LiveEvent(kind, self.n_events_, start, last, peak, steps, score, float(cut), *blame)

    def _blame(self, before: NDArray, X: NDArray, t: NDArray, i: int) -> tuple[tuple[str, ...], dict[str, float]]:
        past = self._latest(np.concatenate([before, X[:i]]))
        parts = self.detector_.explain(np.concatenate([past, X[i : i + 1]]))[-1]
        return blame_of(self._frame(X[i], t[i].item()), 0, parts, self.usual_)


def _spread(X: NDArray[np.float64], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the row of each step, NaN for a missing one."""
    if not len(X):
        return np.empty((len(rows), X.shape[1]))
    return np.where(rows[:, None] < 0, np.nan, X[rows])
