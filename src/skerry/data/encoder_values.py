"""From the values of one column to the float columns that its plan promises (see encoder_kinds)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skerry.core.errors import DataError

if TYPE_CHECKING:
    import polars as pl

__all__ = ["CLIP", "days_since_1970", "encode_column", "float_values", "level_of", "parse_dates", "parse_numbers"]

CLIP = 1e100  # larger magnitudes overflow when squared and summed


def encode_column(s: pl.Series, plan: dict[str, Any]) -> Iterable[NDArray[np.float64]]:
    """Yield the float columns of ``s`` that its plan promises, each of shape (n,) and finite."""
    import polars as pl

    kind = plan["kind"]
    if kind in ("few", "many"):
        text = s.cast(pl.String)
        text = text.str.strip_chars()
        text = text.set(text == "", None).fill_null("\x00missing")
        if kind == "many":
            rarest = -math.log(0.5 / plan["n"])
            table = {v: -math.log(share) for v, share in plan["shares"].items()}
            yield text.replace_strict(table, default=rarest, return_dtype=pl.Float64).to_numpy()
            return
        # indicators of one column weigh together as one column of unit variance
        spread = sum(p * (1 - p) for p in (plan["shares"].get(v, 0.0) for v in plan["levels"])) or 1.0
        weight = 1.0 / math.sqrt(max(spread, 1e-12)) if len(plan["levels"]) + plan["rare"] > 1 else 1.0
        known = np.zeros(len(text), dtype=bool)
        for level in plan["levels"]:
            hit = (text == level).to_numpy()
            known |= hit
            yield hit * weight
        if plan["rare"]:
            yield ~known * weight
        return
    if kind == "date":
        stamps = parse_dates(s.cast(pl.String).str.strip_chars(), plan["format"]) if "format" in plan else s
        if stamps.dtype == pl.String:
            raise DataError(f"column {s.name!r} holds text where dates were in fitting")
        x = days_since_1970(stamps)
    elif kind == "text":
        x = float_values(s.cast(pl.String).str.strip_chars().str.len_chars())
    elif s.dtype == pl.Duration:
        x = float_values(s.dt.total_seconds(fractional=True))
    elif s.dtype == pl.Time:
        x = float_values(s.cast(pl.Int64) / 3.6e12)
    elif s.dtype == pl.String:
        x = float_values(parse_numbers(s.str.strip_chars()))
    else:
        x = float_values(s)
    missing = np.isnan(x)
    # an infinity becomes the extreme finite value seen in fitting
    x = np.where(np.isposinf(x), plan["high"], np.where(np.isneginf(x), plan["low"], x))
    filled = np.clip(np.where(missing, plan["median"], x), -CLIP, CLIP)
    if not plan["constant"]:
        yield filled
    if kind == "date":
        for on, period in ((plan["hour"], 1.0), (plan["week"], 7.0)):
            if on:
                angle = 2 * np.pi * (filled % period) / period
                yield np.sin(angle)
                yield np.cos(angle)
    if plan["indicator"]:
        yield missing.astype(np.float64)


def float_values(s: pl.Series) -> NDArray[np.float64]:
    """Return a column as float64, NaN where it is missing or no number."""
    import polars as pl

    return s.cast(pl.Float64, strict=False).to_numpy().astype(np.float64, copy=True)


def days_since_1970(s: pl.Series) -> NDArray[np.float64]:
    """Return dates as days, the hour being the fraction."""
    import polars as pl

    micro = s.cast(pl.Datetime("us")).dt.replace_time_zone(None).cast(pl.Int64)
    return float_values(micro) / 86_400e6


def level_of(value: Any) -> str:
    """Levels are text; missing is a level of its own (no text holds a null character)."""
    return "\x00missing" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def parse_numbers(s: pl.Series) -> pl.Series:
    """Read text as numbers, whatever thousands separators and currency signs it has; null where it is none."""
    import polars as pl

    return s.str.replace_all(r"[,\s$€£¥%_]", "").cast(pl.Float64, strict=False)


def parse_dates(s: pl.Series, fmt: str) -> pl.Series:
    """Read text as dates of one format; null where it is none."""
    import polars as pl

    if "%H" in fmt:
        return s.str.to_datetime(fmt, strict=False, time_unit="us")
    return s.str.to_date(fmt, strict=False).cast(pl.Datetime("us"))
