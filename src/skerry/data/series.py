"""From a table with a time column to series of equal steps: read anything, guess little, tell everything.

:func:`read_series` finds the time column, the key and the channels, puts each series on its clock by the rules of
:mod:`skerry.data.series_clock`, and returns :class:`SeriesFrame` objects whose ``notes`` say in words what was found
and what was done. What cannot be decided is a ``DataError`` that names the argument which decides it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skerry.core.errors import DataError, ParameterError, nearest
from skerry.data.series_clock import (
    Clock,
    Duplicates,
    Order,
    count_words,
    order_rows,
    set_grid,
    snap,
    unique_stamps,
)
from skerry.data.series_columns import choose_time, find_key, pick_channels
from skerry.data.series_frame import SeriesFrame
from skerry.data.stamps import MISSING_STAMP, StampFormat, localise
from skerry.data.tables import Table, open_table

if TYPE_CHECKING:
    import polars as pl

__all__ = ["SeriesFrame", "TimeColumn", "find_time_column", "read_series"]

ROW = "\x00row"  # the column of row numbers; no name begins with a null character
UNITS = {"us": 1.0, "ms": 1e3, "s": 1e6, "min": 60e6, "h": 3_600e6, "d": 86_400e6}


@dataclass(frozen=True)
class TimeColumn:
    """What :func:`find_time_column` found.

    Attributes
    ----------
    name : str
    words : str
        How it is written, and why it was taken.
    by : list of str
        The columns that tell several series apart, maybe none.
    steady : bool
        Whether most steps are equally long: then the table is better read as a series than as rows.
    """

    name: str
    words: str
    by: list[str]
    steady: bool


def find_time_column(source: Any) -> TimeColumn | None:
    """Return the time column of a table, judged by its first 65,536 rows; None if there is none, or no telling.

    Parameters
    ----------
    source : path, frame or Table
        Whatever ``open_table`` takes.

    Examples
    --------
    >>> import polars as pl
    >>> table = pl.DataFrame({"ts": [f"2024-01-01 00:{m:02d}" for m in range(30)], "load": range(30)})
    >>> found = find_time_column(table)
    >>> found.name, found.steady
    ('ts', True)
    """
    import polars as pl

    frame = next(_open(source).batches(), None)
    if frame is None or frame.height < 3:
        return None
    try:
        name, form, words = choose_time(frame, "", None, None)
        stamps = form.read(frame[name])
        by, _ = find_key(frame, name, stamps, "")
    except DataError:
        return None
    ordered = frame.with_columns(pl.Series(ROW, stamps)).select(*by, ROW).sort([*by, ROW])
    steps = np.diff(ordered[ROW].to_numpy().astype(np.float64))
    steps = steps[(steps > 0) & np.isfinite(steps)]
    steady = steps.size >= 2 and float(np.mean(np.abs(steps / np.median(steps) - 1.0) <= 0.1)) >= 0.5
    return TimeColumn(name, words, by, bool(steady))


def read_series(
    source: Any,
    *,
    time: str | bool | None = None,
    by: str | list[str] | None = None,
    channel: str | None = None,
    value: str | None = None,
    channels: list[str] | None = None,
    time_zone: str | None = None,
    time_format: str | None = None,
    step: str | float | None = None,
    order: Order = "auto",
    duplicates: Duplicates = "auto",
    max_gap: int = 1000,
) -> list[SeriesFrame]:
    """Read one series or many from a table.

    Parameters
    ----------
    source : path, frame, array or Table
        Whatever ``open_table`` takes; also an array of shape (T,). A pandas index of dates is a column too.
    time : str or False, optional
        The time column; by default it is found. False: there is none, rows are steps.
    by : str or list of str, optional
        The columns whose values tell several series apart. Where stamps repeat, they are looked for.
    channel, value : str, optional
        For a long table, the column that names the channel and the one that holds its value (which may be left
        out where it is the only number): the channels become the columns of one series.
    channels : list of str, optional
        Only these; by default every column of numbers, truth values (0 and 1) and text that is numbers.
    time_zone : str, optional
        The zone of a local clock, such as "Europe/Paris"; stamps are turned into UTC.
    time_format : str, optional
        How text stamps are written, in the notation of ``strftime``; or "s", "ms", "us", "ns" for counts since
        1970. By default it is found.
    step : str or float, optional
        Put every series on a grid of this step ("500ms", "1s", "5min", "1h", "1d"; a number where the time is plain
        numbers): rows of one step are averaged. By default rows stay rows.
    order : {"auto", "sort", "keep", "error"}, default "auto"
        What it means where the time goes back; see :mod:`skerry.data.series_clock`.
    duplicates : {"auto", "mean", "first", "last", "error"}, default "auto"
        What to do with rows of one stamp; "auto" averages them unless most rows are such.
    max_gap : int >= 0, default 1000
        Missing steps that are filled with NaN; a longer gap cuts the series.

    Returns
    -------
    list of SeriesFrame
        In the order in which their keys first occur.

    Raises
    ------
    DataError
        If no time column or no channel is found, several fit, half the stamps cannot be read, or a rule of the
        clock cannot decide; the message names the column or row and the argument that helps.
    ParameterError
        For an argument that is out of range or an unknown zone.

    Examples
    --------
    >>> import polars as pl
    >>> table = pl.DataFrame({"ts": ["2024-01-01 00:00", "2024-01-01 00:01", "2024-01-01 00:03",
    ...                              "2024-01-01 00:04"], "load": [1.0, 2.0, 4.0, 5.0]})
    >>> (series,) = read_series(table)
    >>> series.values[:, 0]
    array([ 1.,  2., nan,  4.,  5.])
    >>> series.notes[-1]
    '1 gap, 1 missing step in all, the longest gap (1) after row 1; filled with NaN'
    """
    import polars as pl

    _check_options(order, duplicates, max_gap)
    table = _open(source)
    frame = table.read().with_row_index(ROW).with_columns(pl.col(ROW).cast(pl.Int64))
    notes = list(table.notes)
    form: StampFormat | None = None
    if time is False:
        stamps: NDArray = np.arange(frame.height, dtype=np.float64)
        name = ""
    else:
        name, form, words = choose_time(frame.drop(ROW), table.name, time or None, time_format)
        notes.append(f"time is column {name!r} ({words})")
        stamps = form.read(frame[name])
    lost = (stamps == MISSING_STAMP) if stamps.dtype.kind == "i" else np.isnan(stamps)
    if lost.any():
        first = int(np.flatnonzero(lost)[0])
        what = f"{int(lost.sum()):,} of {lost.size:,} rows have no readable stamp in column {name!r}, the first at row"
        if 2 * lost.sum() > lost.size:
            raise DataError(f"{table.name}: {what} {first} ({frame[name][first]!r}); check it, or give time_format=")
        notes.append(f"{what} {first}; left out")
        frame, stamps = frame.filter(pl.Series(~lost)), stamps[~lost]

    keys = [by] if isinstance(by, str) else list(by or [])
    for column in [*keys, *(c for c in (channel, value) if c is not None), *(channels or [])]:
        if column not in frame.columns:
            raise DataError(f"{table.name}: no column {column!r}; {nearest(column, table.columns)}")
    if by is None and channel is None and form is not None:
        keys, found = find_key(frame.drop(ROW), name, stamps, table.name)
        notes += found
    if (value is not None) and channel is None:
        raise ParameterError("value= goes with channel=, the column that names the channels of a long table")

    used = {name, *keys, channel} - {None}
    picked = [value] if value is not None else channels
    numbers, channel_notes = pick_channels(frame.drop(ROW), used, picked, table.name, hint=not (keys or channel))
    notes += channel_notes
    if channel is not None and len(numbers.columns) != 1:
        raise DataError(
            f"{table.name}: a long table needs one column of values, found {numbers.columns}; name it with value="
        )
    work = numbers.with_columns(frame[ROW], pl.Series("\x00stamp", stamps))
    for i, c in enumerate([*keys, *_one(channel)]):
        work = work.with_columns(_labels(frame[c], table.name).alias(f"\x00key{i}"))
    by_columns = [f"\x00key{i}" for i in range(len(keys))]
    groups = work.partition_by(by_columns, maintain_order=True) if by_columns else [work]
    reader = _Reader(table.name, name, form, time_zone, step, order, duplicates, max_gap, notes, keys)
    out: list[SeriesFrame] = []
    for group in groups:
        label = " / ".join(str(group[c][0]) for c in by_columns) or table.name
        out += reader.read(label, group, numbers.columns, f"\x00key{len(keys)}" if channel is not None else None)
    if not out:
        raise DataError(f"{table.name}: no row with a readable stamp")
    return out


def _open(source: Any) -> Table:
    """Open a table; a pandas index of dates becomes a column, an array of shape (T,) a table of one."""
    if isinstance(source, np.ndarray) and source.ndim == 1:
        source = source[:, None]
    if hasattr(source, "iloc"):
        if source.ndim == 1:
            source = source.to_frame("value" if source.name is None else source.name)
        levels = [source.index.get_level_values(i) for i in range(source.index.nlevels)]
        if any(hasattr(level, "tz") or hasattr(level, "to_timestamp") for level in levels):
            if hasattr(source.index, "to_timestamp"):
                source = source.set_axis(source.index.to_timestamp(), axis=0)
            named = ["time" if name is None else name for name in source.index.names]
            source = source.rename_axis(index=named).reset_index()
    return open_table(source)


def _check_options(order: str, duplicates: str, max_gap: int) -> None:
    for option, given, known in (
        ("order", order, ("auto", "sort", "keep", "error")),
        ("duplicates", duplicates, ("auto", "mean", "first", "last", "error")),
    ):
        if given not in known:
            raise ParameterError(f"unknown {option} {given!r}; {nearest(str(given), known)}")
    if isinstance(max_gap, bool) or not isinstance(max_gap, (int, np.integer)) or max_gap < 0:
        raise ParameterError(f"max_gap must be a whole number of at least 0, got {max_gap!r}")


def _labels(column: pl.Series, source: str) -> pl.Series:
    """Return a key column as text."""
    import polars as pl

    if column.dtype.is_nested() or column.dtype in (pl.Binary, pl.Duration, pl.Object):
        raise DataError(f"{source}: column {column.name!r} holds {column.dtype}, which can name no series or channel")
    return column.cast(pl.String).fill_null("missing")


def _one(value: str | None) -> list[str]:
    return [] if value is None else [value]


# ---- one series ----------------------------------------------------------------------------------------------


@dataclass
class _Reader:
    """What all series of one table share."""

    source: str
    time_column: str
    form: StampFormat | None
    time_zone: str | None
    step: str | float | None
    order: Order
    duplicates: Duplicates
    max_gap: int
    notes: list[str]
    keys: list[str]

    def __post_init__(self) -> None:
        self.calendar = self.form is not None and self.form.calendar
        self.zone = self.form.time_zone if self.form is not None else None
        self.local = self.calendar and self.zone is None and self.time_zone is not None
        if self.time_zone is not None:
            localise(np.zeros(0, dtype=np.int64), self.time_zone)  # checks its name
            if not self.calendar:
                raise ParameterError("time_zone= needs stamps of the calendar; the time here is plain numbers")
        self.grid = _step_size(self.step, self.calendar)

    def read(self, label: str, group: pl.DataFrame, columns: list[str], channel: str | None) -> list[SeriesFrame]:
        clock = Clock(group["\x00stamp"].to_numpy().copy(), group[ROW].to_numpy().copy(), list(self.notes))
        if self.local:
            clock.time, notes = localise(clock.time, str(self.time_zone))
            clock.notes += notes
        values = group.select(columns).to_numpy().astype(np.float64)
        if channel is not None:
            columns = group[channel].unique(maintain_order=True).to_list()
            clock, values = self._widen(clock, values[:, 0], group[channel], columns)
        else:
            rows = clock.rows  # they ascend
            clock = order_rows(clock, self.order, label)
            values = values[np.searchsorted(rows, clock.rows)]
        if self.grid is None:
            clock, values = unique_stamps(clock, values, self.duplicates, label)
        else:
            clock, values = snap(clock, values, self.grid)
        grid = set_grid(clock, values, self.max_gap, self.grid)
        return [self._frame(label, i, part, columns, grid.step, grid.regular) for i, part in enumerate(grid.parts)]

    def _widen(
        self, clock: Clock, x: NDArray[np.float64], names: pl.Series, columns: list[str]
    ) -> tuple[Clock, NDArray[np.float64]]:
        """Turn (stamp, channel, value) into one row a stamp; values of one cell are averaged."""
        import polars as pl

        code = names.replace_strict(columns, range(len(columns)), return_dtype=pl.Int64).to_numpy()
        t, first, place = np.unique(clock.time, return_index=True, return_inverse=True)
        cell, seen = place * len(columns) + code, ~np.isnan(x)
        size = t.size * len(columns)
        count = np.bincount(cell[seen], minlength=size)
        total = np.bincount(cell[seen], weights=x[seen], minlength=size)
        more = int(np.maximum(np.bincount(cell, minlength=size) - 1, 0).sum())
        if more:
            if self.duplicates == "error":
                raise DataError(f"{self.source}: {more:,} rows repeat the stamp and channel of another")
            clock.notes.append(f"{count_words(more, 'row')} with the stamp and channel of another; averaged")
        values = np.where(count > 0, total / np.maximum(count, 1), np.nan).reshape(t.size, len(columns))
        return Clock(t, clock.rows[first], clock.notes), values

    def _frame(
        self,
        label: str,
        i: int,
        part: tuple[Clock, NDArray[np.float64]],
        columns: list[str],
        step: float,
        regular: bool,
    ) -> SeriesFrame:
        clock, values = part
        missing = np.isnan(values[clock.rows >= 0])
        if missing.any():
            worst = int(missing.sum(axis=0).argmax())
            clock.notes.append(
                f"{count_words(int(missing.sum()), 'missing value')} of {missing.size:,} ({missing.mean():.1%}), "
                f"most in {columns[worst]!r}; left as NaN"
            )
        low = np.where(np.isnan(values), np.inf, values).min(axis=0)
        high = np.where(np.isnan(values), -np.inf, values).max(axis=0)
        for kind, flat in (("without any value", low > high), ("constant", (low == high) & (len(values) > 1))):
            if flat.any():
                names = [c for c, f in zip(columns, flat, strict=True) if f]
                clock.notes.append(f"{kind}: {', '.join(map(repr, names[:8]))}{' ...' if len(names) > 8 else ''}")
        return SeriesFrame(
            name=label if i == 0 else f"{label} #{i + 1}",
            time=clock.time.view("datetime64[us]") if self.calendar else clock.time,
            values=values,
            channels=list(columns),
            rows=clock.rows,
            time_column=self.time_column,
            step=step,
            regular=regular,
            time_zone=self.zone or (self.time_zone if self.local else None),
            notes=clock.notes,
            keys=list(self.keys),
            piece=i,
        )


def _step_size(step: str | float | None, calendar: bool) -> float | None:
    """Return the step in microseconds, or in the units of plain numbers."""
    if step is None:
        return None
    if isinstance(step, str) and calendar:
        found = re.fullmatch(r"\s*(\d+\.?\d*)\s*([a-z]+)\s*", step.lower())
        size = float(found[1]) * UNITS[found[2]] if found and found[2] in UNITS else 0.0
        if size >= 1.0:
            return size
    elif isinstance(step, (int, float)) and not isinstance(step, bool) and not calendar and step > 0:
        return float(step)
    wanted = "a length of time such as '500ms', '1s', '5min', '1h' or '1d'" if calendar else "a number above 0"
    raise ParameterError(f"step must be {wanted}, got {step!r}")
