"""The clock of one series: rows put in order of time, one row a stamp, gaps made visible, all of it told in words.

The rules, applied in this order to stamps ``t`` as they stand in the file:

1. **Order.** Newest first is turned round. Where one step in a hundred or more goes back, the rows are shuffled and
   are sorted. Fewer steps back cut the file into stretches: stretches that do not overlap are sorted as blocks; a
   stretch that goes back over at most three rows holds late rows, which are sorted in; any other means that the
   **clock was set back**: the order of the file is kept, and the stretch is moved on so that it goes on one step
   after the last; a gap in the stamps takes the shift back as far as it reaches. Where every stretch goes back over
   more than half of the time before it, several series seem to lie on top of each other, which is an error.
2. **Duplicates.** Equal rows are dropped; rows of one stamp that differ are averaged, unless more than half of all
   rows are such, which is an error.
3. **Gaps.** The step is the median one. Where 95 % of the steps are whole multiples of it (to a tenth), missing
   stamps become rows of NaN; a gap of more than ``max_gap`` of them cuts the series in two. Otherwise the steps are
   irregular and the rows stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from skerry.core.errors import DataError

__all__ = ["Clock", "count_words", "duration_words", "order_rows", "set_grid", "snap", "unique_stamps"]

SHUFFLED_SHARE = 0.01  # of steps that go back, from which on rows are taken to be in no order
LATE_ROWS = 3  # rows that a late one may be late by
REGULAR_SHARE = 0.95
TOLERANCE = 0.1  # of a step
MAX_FILL = 4  # inserted rows for each row that is there,
FREE_FILL = 10_000  # or so many in all

Order = Literal["auto", "sort", "keep", "error"]
Duplicates = Literal["auto", "mean", "first", "last", "error"]


@dataclass
class Clock:
    """Stamps of one series and the rows of the file that they come from.

    Attributes
    ----------
    time : ndarray of shape (T,), float64 or int64
        Microseconds, or plain numbers.
    rows : ndarray of shape (T,), int64
        The row of the file; -1 for an inserted one.
    notes : list of str
    """

    time: NDArray
    rows: NDArray[np.int64]
    notes: list[str]

    @property
    def calendar(self) -> bool:
        """Whether ``time`` is in microseconds since 1970."""
        return self.time.dtype.kind == "i"


def duration_words(step: float, calendar: bool) -> str:
    """Return a length of time in words: ``"5 min"``, ``"1.5 h"``; a plain number stays one.

    >>> duration_words(300_000_000, True)
    '5 min'
    """
    if not calendar:
        return f"{step:g}"
    for unit, size in (("d", 86_400e6), ("h", 3_600e6), ("min", 60e6), ("s", 1e6), ("ms", 1e3)):
        if abs(step) >= size:
            return f"{step / size:.4g} {unit}"
    return f"{step:.4g} us"


def count_words(n: int, what: str) -> str:
    """Return ``"1 row"`` or ``"1,200 rows"``."""
    return f"{n:,} {what}" + ("" if n == 1 else "s")


def _typical_step(t: NDArray) -> float:
    """Return the median of the steps that go forward (0 if none does)."""
    steps = np.diff(t.astype(np.float64))
    forward = steps[steps > 0]
    return float(np.median(forward)) if forward.size else 0.0


# ---- order ---------------------------------------------------------------------------------------------------


def order_rows(clock: Clock, order: Order, name: str) -> Clock:
    """Put the rows in order of time by rule 1; ``order`` other than "auto" decides what a step back means.

    "sort" sorts the rows by their stamps, "keep" takes the order of the file and moves the stamps, "error" raises.
    """
    t, notes = clock.time, clock.notes
    steps = np.diff(t)
    back = np.flatnonzero(steps < 0)
    if back.size == 0:
        return clock
    where = f"row {clock.rows[back[0] + 1]}"
    if order == "error":
        raise DataError(f"{name}: the time goes back at {where}; order='sort' or 'keep' says what that means")
    if order == "auto" and back.size == steps.size:
        notes.append("the rows were newest first; turned round")
        return Clock(t[::-1].copy(), clock.rows[::-1].copy(), notes)
    if order == "auto":
        order = _judge(clock, back, name)
    if order == "sort":
        by_time = np.argsort(t, kind="stable")
        moved = int((by_time != np.arange(t.size)).sum())
        notes.append(
            f"the rows were not in order of time ({count_words(back.size, 'step')} back, the first at {where}); sorted"
        )
        assert moved
        return Clock(t[by_time], clock.rows[by_time], notes)
    return _move_on(clock, back)


def _judge(clock: Clock, back: NDArray, name: str) -> Order:
    t = clock.time
    first, last = np.r_[0, back + 1], np.r_[back + 1, t.size]
    reached = np.maximum.accumulate(t[last - 1])[:-1]
    far_back = (t[first[1:]] >= t[0]) & (t[first[1:]] - t[0] < 0.5 * (reached - t[0]))
    if far_back.all() and (last - first).min() > LATE_ROWS:
        raise DataError(
            f"{name}: the stamps start again at row {clock.rows[first[1]]}: several series seem to lie on top of each "
            "other; name the column that tells them apart (by=), or say order='sort', or 'keep' if the clock was reset"
        )
    if back.size > max(SHUFFLED_SHARE * t.size, 3):
        return "sort"
    steps = np.diff(t.astype(np.float64))
    gaps = np.flatnonzero((steps < 0) | (steps > 1.5 * _typical_step(t)))  # a block may end in a jump ahead as well
    first, last = np.r_[0, gaps + 1], np.r_[gaps + 1, t.size]
    by_start = np.argsort(t[first], kind="stable")
    if (t[last - 1][by_start][:-1] < t[first][by_start][1:]).all():
        return "sort"
    high = np.maximum.accumulate(t[last - 1])[:-1]  # a stretch overlaps what came before in its first rows alone
    overlap = [np.searchsorted(t[a:b], h, side="right") for a, b, h in zip(first[1:], last[1:], high, strict=True)]
    return "sort" if max(overlap) <= LATE_ROWS else "keep"


def _move_on(clock: Clock, back: NDArray) -> Clock:
    """Move the stamps after each step back, so that time runs on."""
    t = clock.time
    step = max(_typical_step(t), 1.0 if clock.calendar else 0.0)
    shift, moved, start = 0.0, np.zeros(t.size), 0
    steps = np.diff(t.astype(np.float64))
    breaks = np.flatnonzero((steps < 0) | (steps > 1.5 * step))
    largest = 0.0
    for i in breaks:  # one round for each gap and each step back
        moved[start : i + 1] = shift
        shift = max(0.0, shift - (steps[i] - step))
        largest, start = max(largest, shift), i + 1
    moved[start:] = shift
    hint = ""
    jumps = step - steps[back]
    if clock.calendar and np.isin(np.round(jumps / 60e6), (30, 60)).any():
        hint = "; it may be the end of daylight saving time: time_zone= reads such stamps rightly"
    clock.notes.append(
        f"the clock goes back at {count_words(back.size, 'place')}, the first at row "
        f"{clock.rows[back[0] + 1]} by {duration_words(float(-steps[back[0]]), clock.calendar)}; the order of the "
        f"file was kept and later stamps were moved on by up to {duration_words(largest, clock.calendar)}{hint}"
    )
    time = t + moved.astype(np.int64) if clock.calendar else t + moved
    time = np.maximum.accumulate(time)  # against rounding
    return Clock(time, clock.rows, clock.notes)


# ---- duplicates ----------------------------------------------------------------------------------------------


def unique_stamps(
    clock: Clock, values: NDArray[np.float64], duplicates: Duplicates, name: str
) -> tuple[Clock, NDArray[np.float64]]:
    """Leave one row a stamp by rule 2; ``values`` of shape (T, c) are in the order of the clock."""
    t = clock.time
    new = np.r_[True, t[1:] != t[:-1]] if t.size else np.zeros(0, dtype=bool)
    n_more = int(t.size - new.sum())
    if n_more == 0:
        return clock, values
    same = np.r_[False, ((values[1:] == values[:-1]) | (np.isnan(values[1:]) & np.isnan(values[:-1]))).all(axis=1)]
    repeated = same & ~new
    n_equal = int(repeated.sum())
    if n_equal:
        clock.notes.append(f"{count_words(n_equal, 'row')} with the stamp and values of the one before; dropped")
        t, values, new = t[~repeated], values[~repeated], new[~repeated]
        clock = Clock(t, clock.rows[~repeated], clock.notes)
    if new.all():
        return clock, values
    group = np.cumsum(new) - 1
    size = np.bincount(group)
    involved = int(size[size > 1].sum())
    where = f"the first at row {clock.rows[np.flatnonzero(~new)[0]]}"
    if duplicates == "error" or (duplicates == "auto" and 2 * involved > t.size and t.size > 3):
        raise DataError(
            f"{name}: {involved:,} of {t.size:,} rows share their stamp with another, {where}; name the column that "
            "tells them apart (by=), or say duplicates='mean', 'first' or 'last'"
        )
    if duplicates in ("first", "last"):
        keep = new if duplicates == "first" else np.r_[new[1:], True]
        how = f"the {duplicates} of each was kept"
        clock, values = Clock(t[keep], clock.rows[keep], clock.notes), values[keep]
    else:
        clock, values = average_rows(clock, values)
        how = "averaged"
    clock.notes.append(f"{count_words(int((~new).sum()), 'row')} with the stamp of another, {where}; {how}")
    return clock, values


def average_rows(clock: Clock, values: NDArray[np.float64]) -> tuple[Clock, NDArray[np.float64]]:
    """Join rows of one stamp by the mean of what each channel has there."""
    starts = np.flatnonzero(np.r_[True, clock.time[1:] != clock.time[:-1]])
    seen = ~np.isnan(values)
    count = np.add.reduceat(seen, starts, axis=0, dtype=np.int64)
    total = np.add.reduceat(np.where(seen, values, 0.0), starts, axis=0)
    values = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return Clock(clock.time[starts], clock.rows[starts], clock.notes), values


def snap(clock: Clock, values: NDArray[np.float64], step: float) -> tuple[Clock, NDArray[np.float64]]:
    """Move every stamp back to a multiple of ``step`` and average the rows that then share theirs."""
    t = clock.time // round(step) * round(step) if clock.calendar else np.floor(clock.time / step) * step
    snapped, values = average_rows(Clock(t, clock.rows, clock.notes), values)
    clock.notes.append(
        f"put on a grid of {duration_words(step, clock.calendar)}: {t.size:,} rows became {snapped.time.size:,} steps"
    )
    return snapped, values


# ---- gaps ----------------------------------------------------------------------------------------------------


@dataclass
class Grid:
    """What rule 3 found: the step, whether it is regular, and the parts between gaps that were too long."""

    step: float
    regular: bool
    parts: list[tuple[Clock, NDArray[np.float64]]]


def set_grid(clock: Clock, values: NDArray[np.float64], max_gap: int, step: float | None = None) -> Grid:
    """Make gaps visible by rule 3, with the step given or the typical one; all parts get the notes."""
    t = clock.time
    few = t.size < (3 if step is None else 2)  # one step tells nothing of the others
    step = _typical_step(t) if step is None else step
    if few or step <= 0.0:
        return Grid(step, True, [(clock, values)])
    steps = np.diff(t.astype(np.float64))
    count = np.round(steps / step)
    on_grid = (np.abs(steps / step - count) <= TOLERANCE) & (count >= 1)
    if on_grid.mean() < REGULAR_SHARE:
        low, high = duration_words(steps.min(), clock.calendar), duration_words(steps.max(), clock.calendar)
        clock.notes.append(
            f"the steps are irregular, from {low} to {high} (median {duration_words(step, clock.calendar)}); each row "
            "is taken as one step, step= puts the series on a grid"
        )
        return Grid(step, False, [(clock, values)])
    missing = np.where(count > 1, count - 1, 0.0)
    while missing[missing <= max_gap].sum() > max(MAX_FILL * t.size, FREE_FILL):
        max_gap //= 2
    cut = np.flatnonzero(missing > max_gap)
    bounds = np.r_[0, cut + 1, t.size]
    n_gaps, n_new = int((missing > 0).sum() - cut.size), int(missing[missing <= max_gap].sum())
    if n_gaps:
        widest = int(np.argmax(np.where(missing <= max_gap, missing, 0)))
        clock.notes.append(
            f"{count_words(n_gaps, 'gap')}, {count_words(n_new, 'missing step')} in all, the longest gap "
            f"({int(missing[widest]):,}) after row {clock.rows[widest]}; filled with NaN"
        )
    if cut.size:
        clock.notes.append(
            f"{count_words(cut.size, 'gap')} longer than {max_gap:,} steps, the first after row "
            f"{clock.rows[cut[0]]} ({duration_words(steps[cut[0]], clock.calendar)}); the series is cut there"
        )
    parts = []
    for a, b in zip(bounds[:-1], bounds[1:], strict=True):
        parts.append(_fill(Clock(t[a:b], clock.rows[a:b], list(clock.notes)), values[a:b], missing[a : b - 1]))
    return Grid(step, True, parts)


def _fill(clock: Clock, values: NDArray[np.float64], missing: NDArray) -> tuple[Clock, NDArray[np.float64]]:
    """Insert rows of NaN, their stamps equally spaced between those that are there."""
    if not missing.any():
        return clock, values
    n = clock.time.size
    place = np.arange(n) + np.r_[0, np.cumsum(missing.astype(np.int64))]
    size = int(place[-1]) + 1
    out, rows = np.full((size, values.shape[1]), np.nan), np.full(size, -1, dtype=np.int64)
    out[place], rows[place] = values, clock.rows
    time = np.interp(np.arange(size), place, (clock.time - clock.time[0]).astype(np.float64))
    if clock.calendar:
        time = clock.time[0] + np.round(time).astype(np.int64)
    else:
        time = clock.time[0] + time
    time[place] = clock.time
    return Clock(time, rows, clock.notes), out
