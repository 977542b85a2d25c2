"""The clock of a stream: the rules of :mod:`skerry.data.series_clock` for rows that come one after another.

Nothing can be sorted any more, and the next row is not known. Applied to each stamp, in this order:

1. **Late or repeated.** A row at most three steps behind the last one, or with its stamp, is left out and counted. If
   more than three such rows come in a row, the clock was set back or stands still.
2. **Set back.** A row further behind: the order of arrival is kept, and the time moves on by one step. A later gap in
   the stamps takes that shift back as far as it reaches.
3. **Gaps.** Where the steps are regular, up to ``max_gap`` missing ones become steps of NaN; beyond that the series
   starts anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skerry.core.errors import DataError
from skerry.data.series_clock import LATE_ROWS, REGULAR_SHARE, TOLERANCE, count_words, duration_words

__all__ = ["Placed", "StreamClock", "told_count"]


def told_count(n: int) -> bool:
    """Say whether the ``n``-th of its kind is told: the first, the tenth, the hundredth ...

    >>> [n for n in range(1, 200) if told_count(n)]
    [1, 10, 100]
    """
    return n > 0 and str(n).strip("0") == "1"


@dataclass
class Placed:
    """Where rows stand among the steps.

    Attributes
    ----------
    rows : ndarray of shape (m,), int64
        The row of each step, -1 for one that is missing.
    time : ndarray of shape (m,), int64 or float64
        The stamps as the stream writes them, missing ones reckoned back from the next.
    anew : list of int
        Steps at which the series starts anew.
    """

    rows: NDArray[np.int64]
    time: NDArray
    anew: list[int]


class StreamClock:
    """Put the rows of a stream on steps, in constant memory.

    Parameters
    ----------
    max_gap : int >= 0, default 1000
        Missing steps that are filled; a longer gap starts the series anew.
    state : dict, optional
        What :meth:`state` of an earlier clock returned.

    Attributes
    ----------
    step : float
        The typical step, in microseconds or in the units of plain numbers; 0 before :meth:`fit`.
    regular : bool
        Whether steps are equally long; otherwise each row is a step and nothing is filled.
    notes : list of str
        What there is to tell; the caller takes them away.

    Examples
    --------
    >>> clock = StreamClock().fit(np.arange(10.0))
    >>> placed = clock.place(np.array([10.0, 13.0, 12.0, 14.0]))  # two steps missing, then a late row
    >>> placed.rows
    array([ 0, -1, -1,  1,  3])
    >>> clock.notes[-1]
    '1 row late by at most 3 steps or with the stamp of the one before, the last at 12; left out'
    """

    _FIELDS = ("step", "regular", "last", "shift", "held", "n_late", "n_back", "n_gaps", "calendar", "max_gap")

    def __init__(self, max_gap: int = 1000, state: dict[str, Any] | None = None) -> None:
        self.max_gap = max_gap
        self.step, self.regular, self.calendar = 0.0, True, False
        self.last: float | int | None = None  # the running time of the last step
        self.shift: float | int = 0  # what the stamps are behind it
        self.held = 0  # rows in a row that were left out
        self.n_late = self.n_back = self.n_gaps = 0
        self.notes: list[str] = []
        if state is not None:
            if not isinstance(state, dict) or set(state) != set(self._FIELDS):
                raise DataError("not the state of a stream's clock: use what StreamClock.state() returned")
            for name in self._FIELDS:
                setattr(self, name, state[name])

    def state(self) -> dict[str, Any]:
        """Return all that is remembered, as plain numbers."""
        return {name: getattr(self, name) for name in self._FIELDS}

    def fit(self, time: NDArray) -> StreamClock:
        """Learn the step from the first stamps, of shape (n,).

        Raises
        ------
        DataError
            If most rows share their stamp with the row before: then several series lie on top of each other.
        """
        steps = np.diff(time.astype(np.float64))
        forward = steps[steps > 0]
        self.calendar = time.dtype.kind == "i"
        if not forward.size or 2 * int((steps == 0).sum()) > steps.size:
            raise DataError(
                f"{int((steps == 0).sum()):,} of the first {time.size:,} rows have the stamp of the row before: follow "
                "one series at a time, or say --time '' (time=False) to take rows as steps"
            )
        self.step = float(np.median(forward))
        count = np.round(forward / self.step)
        on_grid = (np.abs(forward / self.step - count) <= TOLERANCE) & (count >= 1)
        self.regular = bool(on_grid.mean() >= REGULAR_SHARE)
        pace = duration_words(self.step, self.calendar)
        self.notes.append(f"one step is {pace}" if self.regular else f"the steps are irregular (median {pace})")
        return self

    def place(self, time: NDArray) -> Placed:
        """Take the next stamps, of shape (n,), and return where their rows stand."""
        if self.last is None and time.size:
            self.last = time[0].item() - (round(self.step) if self.calendar else self.step)
        if time.size and self.shift == 0:
            steps = np.diff(time, prepend=np.asarray(self.last, dtype=time.dtype))
            low, high = (0.5, 1.5) if self.regular else (0.0, float(self.max_gap + 1))
            if ((steps > low * self.step) & (steps < high * self.step)).all():
                self.last, self.held = time[-1].item(), 0
                return Placed(np.arange(time.size), time, [])
        rows: list[int] = []
        stamps: list[float | int] = []
        anew: list[int] = []
        for i, t in enumerate(time.tolist()):
            missing = self._missing(t)
            if missing < 0:
                continue
            if missing > self.max_gap:
                self.n_gaps += 1
                anew.append(len(rows))
                if told_count(self.n_gaps):
                    self.notes.append(
                        f"{missing:,} steps are missing before {self._when(t)}, more than {self.max_gap:,}: the series "
                        "starts anew there"
                    )
            elif self.regular and missing:
                rows += [-1] * missing
                back = [self.step * k for k in range(missing, 0, -1)]
                stamps += [t - round(b) if self.calendar else t - b for b in back]
            rows.append(i)
            stamps.append(t)
        return Placed(np.array(rows, dtype=np.int64), np.array(stamps, dtype=time.dtype), anew)

    def _missing(self, t: float | int) -> int:
        """Return the steps that are missing before a stamp, -1 if its row is to be left out."""
        step = round(self.step) if self.calendar else self.step
        assert self.last is not None
        d = t + self.shift - self.last
        if d <= 0:
            if -d <= LATE_ROWS * self.step and self.held < LATE_ROWS:
                self.held += 1
                self.n_late += 1
                if told_count(self.n_late):
                    self.notes.append(
                        f"{count_words(self.n_late, 'row')} late by at most {LATE_ROWS} steps or with the stamp of the "
                        f"one before, the last at {self._when(t)}; left out"
                    )
                return -1
            self.n_back += 1
            if told_count(self.n_back):
                self.notes.append(
                    f"the clock goes back at {self._when(t)}, by {duration_words(float(-d), self.calendar)} "
                    f"({count_words(self.n_back, 'time')} so far): the order of arrival is kept"
                )
            self.shift += step - d
            d = step
        elif self.shift > 0 and d > 1.5 * self.step:
            back = min(self.shift, d - step)
            self.shift -= back
            d -= back
        self.last += d
        self.held = 0
        return max(round(d / self.step) - 1, 0)

    def _when(self, t: float | int) -> str:
        return str(np.datetime64(int(t), "us")).replace("T", " ") if self.calendar else f"{t:g}"
