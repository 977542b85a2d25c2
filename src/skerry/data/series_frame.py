"""One series of steps, whatever it was read from, with what was found and done on the way in words."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from skerry.core.errors import DataError, nearest
from skerry.data.series_clock import duration_words

if TYPE_CHECKING:
    import polars as pl

__all__ = ["SeriesFrame"]


@dataclass(eq=False)
class SeriesFrame:
    """One series of T steps and c channels.

    Attributes
    ----------
    name : str
        The key's values, or the table's name; ``#2`` and so on where a long gap cut the series.
    time : ndarray of shape (T,), datetime64[us] or float64
        Not decreasing. UTC where the table or ``time_zone`` tells the zone, else the clock of the file.
    values : ndarray of shape (T, c), float64
        NaN where nothing was measured.
    channels : list of str
    rows : ndarray of shape (T,), int64
        The row of the file (the first, where several were joined), -1 for a step that was filled in.
    time_column : str
        "" where rows are steps.
    step : float
        The typical step, in microseconds or in the units of plain numbers.
    regular : bool
        Whether all steps are that long.
    time_zone : str or None
        The zone to show the time in; None where it is not known.
    notes : list of str
        What was found and done, in words.
    keys : list of str
        The columns whose values the name is made of; empty where the name is the table's.
    piece : int
        0, but 1 and so on after gaps that cut the series.
    """

    name: str
    time: NDArray
    values: NDArray[np.float64]
    channels: list[str]
    rows: NDArray[np.int64]
    time_column: str = ""
    step: float = 1.0
    regular: bool = True
    time_zone: str | None = None
    notes: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    piece: int = 0

    @property
    def key(self) -> str:
        """The values of the key columns, the same for all pieces of a series; "" without such columns."""
        return self.name.removesuffix(f" #{self.piece + 1}" if self.piece else "") if self.keys else ""

    def __len__(self) -> int:
        return self.values.shape[0]

    def __repr__(self) -> str:
        pace = duration_words(self.step, self.time.dtype.kind == "M")
        return f"<SeriesFrame {self.name!r}: {len(self):,} steps of {pace} x {len(self.channels)} channels>"

    def when(self, step: int) -> str:
        """Return the stamp of a step in words, in ``time_zone`` where it is known."""
        value = self.time[step]
        if self.time.dtype.kind != "M":
            return f"{value:.15g}"
        moment = value.astype("datetime64[us]").item()
        if isinstance(moment, int):  # beyond the year 9999
            return str(value)
        if self.time_zone not in (None, "UTC"):
            import datetime as dt
            import zoneinfo

            moment = moment.replace(tzinfo=dt.UTC).astimezone(zoneinfo.ZoneInfo(self.time_zone)).replace(tzinfo=None)
        text = moment.isoformat(sep=" ", timespec="milliseconds" if moment.microsecond else "seconds")
        return text + " UTC" if self.time_zone == "UTC" else text

    def select(self, channels: list[str]) -> SeriesFrame:
        """Return the series with exactly these channels, as a detector fitted on others asks for.

        A channel that is not there is NaN throughout, one too many is left out; both are noted.

        Raises
        ------
        DataError
            If none of the channels is there.
        """
        lost = [c for c in channels if c not in self.channels]
        if len(lost) == len(channels):
            raise DataError(f"{self.name}: none of the channels {channels[:8]} is there; it has {self.channels[:8]}")
        place = {c: j for j, c in enumerate(self.channels)}
        values = np.full((len(self), len(channels)), np.nan)
        for j, c in enumerate(channels):
            if c in place:
                values[:, j] = self.values[:, place[c]]
        notes = list(self.notes)
        if lost:
            hint = nearest(lost[0], self.channels)
            notes.append(f"not there, taken as missing throughout: {', '.join(map(repr, lost[:8]))} ({hint})")
        if extra := [c for c in self.channels if c not in channels]:
            notes.append(f"not asked for, left out: {', '.join(map(repr, extra[:8]))}")
        return replace(self, values=values, channels=list(channels), notes=notes)

    def to_polars(self) -> pl.DataFrame:
        """Return a frame of the time column and the channels."""
        import polars as pl

        columns = {self.time_column or "step": self.time}
        return pl.DataFrame(columns | dict(zip(self.channels, self.values.T, strict=True)))
