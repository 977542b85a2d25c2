"""Alarms are events, not points: flags in, events out, all at once or one step at a time.

A detector flags steps; a person wants to be called once. :class:`AlarmRule` turns flags into events by three
rules, in this order of meaning:

* **merge**: flagged steps with at most ``merge_gap`` unflagged steps between them belong to one event;
* **minimum length**: an event shorter than ``min_length`` steps is dropped, and leaves no trace;
* **cool-down**: in the ``cooldown`` steps after an event's end flags are ignored. An anomaly that outlasts them
  raises a new event at its first flag after the silence, so that nothing long is ever lost.

:class:`EventStream` keeps the same rules with one flag at a time and constant memory, and gives the same events.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skerry.core.errors import DataError, ParameterError

__all__ = ["AlarmRule", "Event", "EventStream", "event_flags", "flag_runs"]


@dataclass(frozen=True)
class Event:
    """A stretch of steps that belong together.

    Attributes
    ----------
    start, stop : int
        The steps ``start <= t < stop``; first and last are flagged.
    peak : int
        The flagged step with the highest score, the first of several (``start`` where no scores were given).
    score : float
        The score at the peak (NaN where no scores were given).
    """

    start: int
    stop: int
    peak: int
    score: float = math.nan

    @property
    def length(self) -> int:
        """``stop - start``, in steps."""
        return self.stop - self.start

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Event):
            return NotImplemented
        same_score = self.score == other.score or (math.isnan(self.score) and math.isnan(other.score))
        return same_score and (self.start, self.stop, self.peak) == (other.start, other.stop, other.peak)

    def __hash__(self) -> int:
        return hash((self.start, self.stop, self.peak))


def check_flags(flags: ArrayLike, name: str = "flags") -> NDArray[np.bool_]:
    """Return a boolean array of shape (T,); anything but 0 and 1 is an error that names the row."""
    f = np.asarray(flags)
    if f.ndim != 1:
        raise DataError(f"{name} must have shape (T,), got {f.shape}")
    if f.dtype == bool:
        return f
    try:
        value = f.astype(np.float64)
    except (TypeError, ValueError):
        raise DataError(f"{name} must be 0 or 1, got dtype {f.dtype}") from None
    bad = np.flatnonzero((value != 0) & (value != 1))
    if bad.size:
        raise DataError(f"{name} must be 0 or 1, got {f[bad[0]]} at row {bad[0]}")
    return value == 1


def flag_runs(flags: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return ``(starts, stops)`` of the runs of flagged steps, each of shape (n_runs,), stops exclusive.

    Raises
    ------
    DataError
        If the flags are not one-dimensional or hold anything but 0 and 1; the message names the row.

    Examples
    --------
    >>> flag_runs([0, 1, 1, 0, 1])
    (array([1, 4]), array([3, 5]))
    """
    f = check_flags(flags).astype(np.int8)
    edges = np.diff(np.r_[np.int8(0), f, np.int8(0)])
    return np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)


def event_flags(events: Iterable[Event], n_steps: int) -> NDArray[np.bool_]:
    """Return flags of shape (n_steps,), true within the events.

    Raises
    ------
    DataError
        If an event lies outside ``0..n_steps``.

    Examples
    --------
    >>> event_flags([Event(1, 3, 1)], 4)
    array([False,  True,  True, False])
    """
    depth = np.zeros(n_steps + 1, dtype=np.int64)
    for e in events:
        if not 0 <= e.start < e.stop <= n_steps:
            raise DataError(f"event {e.start}..{e.stop} lies outside the {n_steps} steps")
        depth[e.start] += 1
        depth[e.stop] -= 1
    return np.cumsum(depth[:-1]) > 0


@dataclass(frozen=True)
class AlarmRule:
    """When flags become one alarm.

    Parameters
    ----------
    merge_gap : int >= 0, default 0
        Unflagged steps that may lie between two flagged steps of one event.
    min_length : int >= 1, default 1
        Shortest event reported, in steps from its first flag to its last.
    cooldown : int >= 0, default 0
        Steps after the end of a reported event in which flags are ignored.

    Raises
    ------
    ParameterError
        If one of them is out of range.

    Examples
    --------
    >>> rule = AlarmRule(merge_gap=1, min_length=2)
    >>> rule.events([1, 0, 1, 0, 0, 0, 1])
    [Event(start=0, stop=3, peak=0, score=nan)]
    """

    merge_gap: int = 0
    min_length: int = 1
    cooldown: int = 0

    def __post_init__(self) -> None:
        for name, least in (("merge_gap", 0), ("min_length", 1), ("cooldown", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
                raise ParameterError(f"{name} must be a whole number of at least {least}, got {value!r}")

    def events(self, flags: ArrayLike, scores: ArrayLike | None = None) -> list[Event]:
        """Return the events in order of time.

        Parameters
        ----------
        flags : array of shape (T,), bool or 0/1
        scores : array of shape (T,), optional
            Only those of flagged steps are looked at; they place the peak.

        Raises
        ------
        DataError
            If the lengths differ, a flag is not 0 or 1, or a flagged step has no score (NaN).
        """
        f = check_flags(flags)
        flagged = np.flatnonzero(f)
        s = _check_scores(scores, f, flagged)
        if flagged.size == 0:
            return []
        new = np.flatnonzero(np.diff(flagged) > self.merge_gap + 1)
        starts, stops = flagged[np.r_[0, new + 1]], flagged[np.r_[new, flagged.size - 1]] + 1
        long = stops - starts >= self.min_length
        starts, stops = starts[long], stops[long]
        if self.cooldown:
            starts, stops = self._silence(flagged, starts, stops)
        peaks, heights = _peaks(flagged, s, starts, stops)
        return [
            Event(int(a), int(b), int(p), float(h)) for a, b, p, h in zip(starts, stops, peaks, heights, strict=True)
        ]

    def stream(self) -> EventStream:
        """Return the incremental twin, at step 0."""
        return EventStream(self)

    def _silence(self, flagged: NDArray, starts: NDArray, stops: NDArray) -> tuple[NDArray, NDArray]:
        """Apply the cool-down; each round of the loop reports an event or is the last trimmed one before it."""
        kept: list[tuple[int, int]] = []
        quiet, i = 0, 0
        while (i := max(i, int(np.searchsorted(stops, quiet, side="right")))) < stops.size:
            start, stop = int(starts[i]), int(stops[i])
            if start < quiet:
                start = int(flagged[np.searchsorted(flagged, quiet)])
            if stop - start >= self.min_length:
                kept.append((start, stop))
                quiet = stop + self.cooldown
            i += 1
        out = np.array(kept, dtype=np.int64).reshape(-1, 2)
        return out[:, 0], out[:, 1]


def _check_scores(scores: ArrayLike | None, flags: NDArray, flagged: NDArray) -> NDArray[np.float64] | None:
    if scores is None:
        return None
    s = np.asarray(scores, dtype=np.float64)
    if s.shape != flags.shape:
        raise DataError(f"flags and scores differ in shape: {flags.shape} and {s.shape}")
    missing = flagged[np.isnan(s[flagged])]
    if missing.size:
        raise DataError(f"the score at row {missing[0]} is NaN, yet the step is flagged")
    return s[flagged]


def _peaks(flagged: NDArray, s: NDArray | None, starts: NDArray, stops: NDArray) -> tuple[NDArray, NDArray]:
    """Return the first highest flagged step of each event, and its score."""
    if s is None or starts.size == 0:
        return starts, np.full(starts.size, np.nan)
    first, last = np.searchsorted(flagged, starts), np.searchsorted(flagged, stops)
    bounds = np.c_[first, last].ravel()
    heights = np.maximum.reduceat(np.r_[s, -np.inf], bounds)[::2]  # the sentinel lets a bound equal the length
    n = last - first
    owner = np.repeat(np.arange(starts.size), n)
    inside = np.arange(n.sum()) + np.repeat(first - (np.cumsum(n) - n), n)
    top = np.flatnonzero(s[inside] == heights[owner])
    places = inside[top[np.searchsorted(owner[top], np.arange(starts.size))]]
    return flagged[places], heights


class EventStream:
    """Events as they happen: one flag at a time, constant memory, the same events as :meth:`AlarmRule.events`.

    Parameters
    ----------
    rule : AlarmRule
    state : dict, optional
        What :meth:`state` of an earlier stream returned: this one goes on from there, without losing or
        repeating an event.

    Attributes
    ----------
    n_steps : int
        Steps seen so far.

    Raises
    ------
    DataError
        If ``state`` is not one that :meth:`state` returned.

    Examples
    --------
    >>> stream = AlarmRule(merge_gap=1).stream()
    >>> [stream.update(flag) for flag in (1, 1, 0)]
    [None, None, None]
    >>> stream.update(0)  # only now is it known that the event is over
    Event(start=0, stop=2, peak=0, score=nan)
    """

    _FIELDS = ("n_steps", "_start", "_last", "_peak", "_height", "_quiet")

    def __init__(self, rule: AlarmRule, state: dict[str, Any] | None = None) -> None:
        self.rule = rule
        self.n_steps = 0
        self._start = self._last = self._peak = -1  # the event under way; -1: none
        self._height = math.nan
        self._quiet = 0  # flags before this step are ignored
        if state is not None:
            if not isinstance(state, dict) or set(state) != {f.lstrip("_") for f in self._FIELDS}:
                raise DataError("not the state of an event stream: use what EventStream.state() returned")
            for field in self._FIELDS:
                value = state[field.lstrip("_")]
                if field == "_height":
                    self._height = math.nan if value is None else float(value)
                else:
                    setattr(self, field, int(value))

    def state(self) -> dict[str, Any]:
        """Return all that is remembered, as plain numbers that JSON can hold."""
        out = {f.lstrip("_"): getattr(self, f) for f in self._FIELDS}
        if math.isnan(self._height):
            out["height"] = None
        return out

    def update(self, flag: bool | int, score: float = math.nan) -> Event | None:
        """Take the next step; return the event that is now known to be over, if any.

        Parameters
        ----------
        flag : bool
            A missing step (nothing measured) is an unflagged one.
        score : float, optional
            Its score; give it always or never.
        """
        t = self.n_steps
        self.n_steps += 1
        over = None
        if not flag and self._start >= 0 and t - self._last > self.rule.merge_gap:
            over = self._close()
        if flag and t >= self._quiet:
            if self._start < 0:
                self._start, self._peak, self._height = t, t, float(score)
            elif score > self._height:
                self._peak, self._height = t, float(score)
            self._last = t
        return over

    def flush(self) -> Event | None:
        """End the stream: return the event under way if it is long enough, and forget it."""
        return self._close() if self._start >= 0 else None

    @property
    def open(self) -> Event | None:
        """The event under way once it is long enough to be reported, so that a person can be called at its start."""
        if self._start < 0 or self._last + 1 - self._start < self.rule.min_length:
            return None
        return Event(self._start, self._last + 1, self._peak, self._height)

    def _close(self) -> Event | None:
        event = self.open
        self._start = self._last = self._peak = -1
        self._height = math.nan
        if event is not None:
            self._quiet = event.stop + self.rule.cooldown
        return event
