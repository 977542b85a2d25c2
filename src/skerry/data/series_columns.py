"""Which column of a table is the time, which tells several series apart, which are channels."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skerry.core.errors import DataError, nearest
from skerry.data.encoder_values import parse_numbers
from skerry.data.series_clock import count_words
from skerry.data.stamps import TIME_NAMES, StampFormat, plain_name, recognise, stamp_columns

if TYPE_CHECKING:
    import polars as pl

__all__ = ["choose_time", "find_key", "pick_channels"]

KEY_SHARE = 0.05  # of rows that share their stamp, from which on a key is looked for
MAX_KEY_SHARE = 0.2  # of the rows: a column with more levels is no key
NUMBER_SHARE = 0.9  # of the cells of a text column that must be numbers
REPEATED_SHARE = 0.01  # of rows that may still share their stamp within one series
KEY_NAME = r"(^|[^a-z])(id|key|no|nr|run|unit|machine|sensor|device|host|station|node|series)$"  # of whole numbers


def choose_time(
    frame: pl.DataFrame, source: str, name: str | bool | None, time_format: str | None
) -> tuple[str, StampFormat, str]:
    """Return the time column, how it is written, and both in words."""
    if isinstance(name, str):
        if name not in frame.columns:
            raise DataError(f"{source}: no column {name!r}; {nearest(name, frame.columns)}")
        form = recognise(frame[name], named=True, time_format=time_format)
        if form is None:
            example = frame[name].drop_nulls().head(1).to_list()
            raise DataError(
                f"{source}: column {name!r} does not read as time ({example[0]!r})"
                if example
                else f"{source}: column {name!r} is empty"
            )
        return name, form, form.words
    found = stamp_columns(frame, time_format)
    if not found:
        raise DataError(
            f"{source}: no column of dates or times; name one with time=, or say time=False: rows are steps"
        )
    if len(found) > 1:
        named = {c: f for c, f in found.items() if plain_name(c) in TIME_NAMES}
        if len(named) != 1:
            raise DataError(f"{source}: {', '.join(map(repr, found))} could all be the time; name one with time=")
        found = named
    column, form = next(iter(found.items()))
    return column, form, f"{form.words}; found, say time= if it is another"


def find_key(frame: pl.DataFrame, time: str, stamps: NDArray, source: str) -> tuple[list[str], list[str]]:
    """Return the columns that tell several series apart, where the stamps say that there are several; and a note.

    They say so where one stamp in twenty is shared (series side by side), or where the time goes back (series one
    after another). A column tells them apart if within its levels the stamps are unique and go forward.
    """
    import polars as pl

    n = frame.height
    back = int((np.diff(stamps) < 0).sum())
    ordered = np.sort(stamps) if back else stamps
    shared = bool((np.diff(ordered) == 0).sum() > KEY_SHARE * n)
    if not shared and back == 0:
        return [], []

    def tells(columns: list[str]) -> bool:
        code = frame.select(pl.struct(columns).rank("dense")).to_series().to_numpy().astype(np.int64)
        by_key = np.argsort(code, kind="stable")
        t, same = stamps[by_key], np.diff(code[by_key]) == 0
        by_both = np.lexsort((stamps, code))
        if ((np.diff(stamps[by_both]) == 0) & (np.diff(code[by_both]) == 0)).sum() > REPEATED_SHARE * n:
            return False
        stacked = (np.diff(code) != 0).sum() <= 2 * code.max() and int(((np.diff(t) < 0) & same).sum()) <= 0.1 * back
        return shared or bool(stacked)

    candidates = [c for c in frame.columns if c != time and _key_like(frame[c]) and frame[c].n_unique() > 1]
    alone = [c for c in candidates if tells([c])]
    if len(alone) > 1:
        names = " or ".join(map(repr, alone))
        raise DataError(f"{source}: stamps repeat or go back, and {names} may tell the series apart; choose with by=")
    keys = alone or (candidates if len(candidates) > 1 and tells(candidates) else [])
    if not keys:
        return [], []
    levels = frame.select(pl.struct(keys).n_unique()).item()
    told = " and ".join(map(repr, keys))
    why = "repeat" if shared else "go back"
    return keys, [f"{levels:,} series, told apart by {told}; found because stamps {why}, say by= if it is another"]


def _key_like(s: pl.Series) -> bool:
    """Say whether a column may name series: text or whole numbers named so, of few levels."""
    import polars as pl

    text = s.dtype in (pl.String, pl.Categorical, pl.Enum)
    named = s.dtype.is_integer() and bool(re.search(KEY_NAME, s.name.lower()))
    return (text or named) and s.n_unique() <= max(2, MAX_KEY_SHARE * len(s))


def pick_channels(
    frame: pl.DataFrame, used: set[Any], picked: list[str] | None, source: str, hint: bool
) -> tuple[pl.DataFrame, list[str]]:
    """Return the columns of numbers as float64 with NaN, and notes on what was left out or repaired.

    ``hint`` asks for a word on columns that might tell several series apart.
    """
    import polars as pl

    notes: list[str] = []
    out: dict[str, NDArray[np.float64]] = {}
    left: list[str] = []
    for column in picked if picked is not None else [c for c in frame.columns if c not in used]:
        s = frame[column]
        if s.dtype.is_numeric() or s.dtype == pl.Boolean:
            number = s.cast(pl.Float64, strict=False)
        elif s.dtype == pl.Duration:
            number = s.dt.total_microseconds().cast(pl.Float64) / 1e6
        elif s.dtype == pl.String:
            number = parse_numbers(s)
            present = int((s.str.strip_chars().fill_null("") != "").sum())
            read = number.len() - number.null_count()
            if present == 0 or read < NUMBER_SHARE * present:
                number = None
            elif read < present:
                notes.append(f"{count_words(present - read, 'cell')} of {column!r} with text; counted as missing")
        else:
            number = None
        if number is None:
            left.append(column)
            continue
        x = number.to_numpy().astype(np.float64, copy=True)
        infinite = np.isinf(x)
        if infinite.any():
            notes.append(f"{count_words(int(infinite.sum()), 'infinite value')} of {column!r}; counted as missing")
            x[infinite] = np.nan
        out[column] = x
    if picked is not None and left:
        raise DataError(f"{source}: column {left[0]!r} holds {frame[left[0]].dtype}, not numbers; it can be no channel")
    if not out:
        raise DataError(f"{source}: no column of numbers beside the time; a series needs at least one channel")
    if left:
        notes.append(f"not numbers, left out: {', '.join(map(repr, left[:8]))}" + (" ..." if len(left) > 8 else ""))
        if hint and (keys := [c for c in left if _key_like(frame[c]) and frame[c].n_unique() > 1]):
            notes.append(f"if {' or '.join(map(repr, keys[:4]))} tells several series apart, say by=")
    return pl.DataFrame(out), notes
