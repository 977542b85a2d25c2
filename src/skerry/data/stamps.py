"""Time stamps: which column is the time, how it is written, and what moment each row means.

Moments are int64 microseconds since 1970 (UTC, or the local clock where no zone is known); a column of plain
numbers (seconds of a run, step counters) stays float64.
"""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from skerry.core.errors import DataError, ParameterError, nearest

if TYPE_CHECKING:
    import polars as pl

__all__ = ["MISSING_STAMP", "StampFormat", "localise", "recognise", "stamp_columns"]

MISSING_STAMP = np.iinfo(np.int64).min  # of a moment; a missing plain number is NaN
PARSED_SHARE = 0.95  # of the values that must read as stamps
SAMPLE = 5000  # values looked at to tell the format

TIME_NAMES = frozenset(
    "time timestamp timestamps ts t date datetime dt epoch unix unixtime stamp when clock year day hour seconds sec "
    "timeutc utctime utc timesec timems times".split()
)
_OFFSET = "%+"  # ISO 8601 with an offset from UTC
_DAYS = ("%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y")
_CLOCKS = (" %H:%M:%S%.f", "T%H:%M:%S%.f", " %H:%M", "T%H:%M", " %I:%M:%S %p", " %I:%M %p", "")
TEXT_FORMATS = tuple(day + clock for day in _DAYS for clock in _CLOCKS)
EPOCH_UNITS = {"s": 1_000_000, "ms": 1_000, "us": 1, "ns": -1_000}  # microseconds a unit; negative: units a us


@dataclass(frozen=True)
class StampFormat:
    """How a time column is written.

    Attributes
    ----------
    kind : {"temporal", "text", "epoch", "number"}
    text : str
        The format of text stamps, in the notation of ``strftime``.
    unit : str
        "s", "ms", "us" or "ns" of stamps counted since 1970.
    time_zone : str or None
        "UTC" or the zone of the column's type where the stamps say it themselves.
    words : str
        The same in words, for the report.
    """

    kind: str
    words: str
    text: str = ""
    unit: str = ""
    time_zone: str | None = None

    @property
    def calendar(self) -> bool:
        """Whether stamps are moments of the calendar (else plain numbers)."""
        return self.kind != "number"

    def read(self, s: pl.Series) -> NDArray:
        """Return the moments of shape (n,): int64 with ``MISSING_STAMP``, or float64 with NaN for plain numbers."""
        import polars as pl

        if self.kind == "number":
            value = s.cast(pl.Float64, strict=False).to_numpy().astype(np.float64, copy=True)
            value[~np.isfinite(value)] = np.nan
            return value
        if self.kind == "epoch":
            return _from_epoch(s, self.unit)
        if self.kind == "text":
            stamps = _read_text(s.cast(pl.String).str.strip_chars(), self.text)
        else:
            stamps = s.cast(pl.Datetime("us", getattr(s.dtype, "time_zone", None)))
        return stamps.cast(pl.Int64).fill_null(MISSING_STAMP).to_numpy().astype(np.int64, copy=True)


def _from_epoch(s: pl.Series, unit: str) -> NDArray[np.int64]:
    import polars as pl

    per_unit = EPOCH_UNITS[unit]
    if s.dtype.is_integer():
        count = s.cast(pl.Int64, strict=False)
        limit = 2**62 // max(per_unit, 1)
        count = count.set((count > limit) | (count < -limit), None)  # no moment that can be counted in microseconds
        micro = count // -per_unit if per_unit < 0 else count * per_unit
        return micro.fill_null(MISSING_STAMP).to_numpy().astype(np.int64, copy=True)
    value = s.cast(pl.Float64, strict=False).to_numpy().astype(np.float64)
    value = value / -per_unit if per_unit < 0 else value * per_unit
    known = np.isfinite(value) & (np.abs(value) < 2**62)
    return np.where(known, np.round(np.where(known, value, 0.0)).astype(np.int64), MISSING_STAMP)


def _read_text(s: pl.Series, fmt: str) -> pl.Series:
    import polars as pl

    if fmt == _OFFSET:
        return s.str.to_datetime(fmt, strict=False, time_unit="us").dt.replace_time_zone(None)
    if "%H" in fmt or "%I" in fmt:
        return s.str.to_datetime(fmt, strict=False, time_unit="us")
    return s.str.to_date(fmt, strict=False).cast(pl.Datetime("us"))


def plain_name(column: str) -> str:
    """Return a column's name in lower case, letters only, for comparison with known names."""
    return re.sub(r"[^a-z]", "", column.lower())


def recognise(s: pl.Series, *, named: bool, time_format: str | None = None) -> StampFormat | None:
    """Return how the column is written as time stamps, None if it is not.

    Parameters
    ----------
    s : polars Series
        The column, or its head.
    named : bool
        Whether the user named it as the time: then plain numbers are taken as they are.
    time_format : str, optional
        The format of text stamps where the user knows it; or "s", "ms", "us", "ns" for numbers since 1970.

    Raises
    ------
    DataError
        If text reads both as day/month and as month/day and neither order is the likelier.
    """
    import polars as pl

    kind = s.dtype
    if kind in (pl.Date, pl.Datetime):
        zone = getattr(kind, "time_zone", None)
        return StampFormat("temporal", "dates" if kind == pl.Date else "date and time", time_zone=zone)
    if kind == pl.String:
        return _recognise_text(s, time_format)
    if kind.is_numeric():
        return _recognise_number(s, named, time_format)
    return None


def _recognise_text(s: pl.Series, time_format: str | None) -> StampFormat | None:
    s = s.str.strip_chars()
    s = s.filter((s != "") & s.is_not_null())
    if len(s) > SAMPLE:  # from the whole column: the first days of a month tell less than all of them
        s = s.gather_every(len(s) // SAMPLE)
    if not len(s):
        return None
    if time_format is not None:
        zone = "UTC" if "%z" in time_format or time_format == _OFFSET else None
        return StampFormat("text", f"text, {time_format}", text=time_format, time_zone=zone)
    if not s.head(20).str.contains(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}").any():
        return None

    def reads(fmt: str) -> pl.Series | None:
        stamps = _read_text(s, fmt)
        likely = stamps.dt.year().is_between(1800, 2300)  # "1.2.3" is a version, not a day of the year 3
        return stamps if likely.sum() >= PARSED_SHARE * len(s) else None

    if s.str.contains(r"\d{2}:\d{2}.*(?:Z|[+-]\d{2}:?\d{2})$").mean() >= PARSED_SHARE and reads(_OFFSET) is not None:
        return StampFormat("text", "text with an offset from UTC", text=_OFFSET, time_zone="UTC")
    found = {fmt: stamps for fmt in TEXT_FORMATS if (stamps := reads(fmt)) is not None}
    if not found:
        return None
    best = next(iter(found))
    other = best.replace("%d/%m", "%m/%d")
    words = f"text, {best}"
    if other != best and other in found:
        backward = {f: int((found[f].drop_nulls().diff().dt.total_microseconds() < 0).sum()) for f in (best, other)}
        total = {f: int(found[f].drop_nulls().diff().dt.total_microseconds().abs().sum()) for f in (best, other)}
        rank = {f: (backward[f], total[f]) for f in (best, other)}
        if rank[best] == rank[other]:
            raise DataError(
                f"column {s.name!r}: {s[0]!r} may be day/month or month/day and nothing tells which; "
                f"give time_format={best!r} or {other!r}"
            )
        best = min(rank, key=lambda f: rank[f])
        words = f"text, read as {best}, in which the rows are in the better order"
    return StampFormat("text", words, text=best)


def _recognise_number(s: pl.Series, named: bool, time_format: str | None) -> StampFormat | None:
    if time_format is not None:
        if time_format not in EPOCH_UNITS:
            raise ParameterError(
                f"column {s.name!r} holds numbers: time_format must be one of s, ms, us, ns, got {time_format!r}; "
                + nearest(time_format, EPOCH_UNITS)
            )
        return StampFormat("epoch", f"{time_format} since 1970", unit=time_format, time_zone="UTC")
    value = s.drop_nulls().to_numpy().astype(np.float64)
    value = value[np.isfinite(value)]
    if not value.size or not (named or plain_name(s.name) in TIME_NAMES):
        return None
    typical = float(np.median(value))
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6), ("ns", 1e9)):
        if 1e8 <= typical / scale <= 5e9 and value.min() > 0:  # 1973 to 2128
            return StampFormat("epoch", f"{unit} since 1970", unit=unit, time_zone="UTC")
    steps = np.diff(value)
    if named or (steps.size and np.mean(steps >= 0) > 0.9):
        return StampFormat("number", "plain numbers")
    return None


def stamp_columns(frame: pl.DataFrame, time_format: str | None = None) -> dict[str, StampFormat]:
    """Return the columns that could be the time, with their formats; dates before numbers that are only named so."""
    found: dict[str, StampFormat] = {}
    for column in frame.columns:
        numeric = frame[column].dtype.is_numeric()
        if (form := recognise(frame[column], named=False, time_format=None if numeric else time_format)) is not None:
            found[column] = form
    for sure in (("temporal", "text"), ("epoch",), ("number",)):
        chosen = {c: f for c, f in found.items() if f.kind in sure}
        if chosen:
            return chosen
    return {}


def localise(local: NDArray[np.int64], time_zone: str) -> tuple[NDArray[np.int64], list[str]]:
    """Return moments in UTC of stamps of a local clock, in the order of the file, and notes on its two odd hours.

    * A stamp in the hour that the clock skips in spring is read with the offset from before the jump.
    * A stamp in the hour that occurs twice in autumn is the first of the two, until the stamps go back (or, where
      the step is an hour or more, repeat): from there on it is the second.

    Raises
    ------
    ParameterError
        For an unknown time zone.
    """
    import polars as pl

    known = local != MISSING_STAMP
    stamps = pl.Series("t", np.where(known, local, 0)).cast(pl.Datetime("us"))

    def in_utc(s: pl.Series, ambiguous: str) -> pl.Series:
        there = s.dt.replace_time_zone(time_zone, ambiguous=ambiguous, non_existent="null")  # type: ignore[arg-type]
        return there.dt.convert_time_zone("UTC").cast(pl.Int64)

    try:
        first, second = in_utc(stamps, "earliest"), in_utc(stamps, "latest")
    except pl.exceptions.PolarsError:
        import zoneinfo

        hint = nearest(time_zone, zoneinfo.available_timezones())
        raise ParameterError(f"unknown time zone {time_zone!r}; {hint}") from None
    notes = []
    skipped = first.is_null().to_numpy()
    if skipped.any():
        before = in_utc(stamps - dt.timedelta(hours=3), "earliest") + 3 * 3_600_000_000
        first, second = first.fill_null(before), second.fill_null(before)
        notes.append(
            f"{int((skipped & known).sum()):,} stamps lie in an hour that the clocks of {time_zone} skip, the first "
            f"at row {int(np.flatnonzero(skipped)[0])}; they were read as if the clock had not been moved"
        )
    utc, late = first.to_numpy().astype(np.int64, copy=True), second.to_numpy()
    twice = np.flatnonzero((utc != late) & known)
    if twice.size:
        ends = np.r_[np.flatnonzero(np.diff(twice) > 1) + 1, twice.size]
        start = 0
        for end in ends:  # one round a year
            rows = twice[start:end]
            steps = np.diff(local[rows])
            turn = np.flatnonzero((steps < 0) if (steps != 0).any() else (steps == 0))
            if turn.size:
                utc[rows[turn[0] + 1 :]] = late[rows[turn[0] + 1 :]]
            start = end
        notes.append(
            f"{twice.size:,} stamps lie in an hour that the clocks of {time_zone} show twice, the first at row "
            f"{int(twice[0])}; the order of the rows tells the first pass from the second"
        )
    utc[~known] = MISSING_STAMP
    return utc, notes
