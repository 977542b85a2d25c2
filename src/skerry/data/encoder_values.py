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

__all__ = [
    "CLIP",
    "DATE_FORMATS",
    "MISSING",
    "days_since_1970",
    "encode_column",
    "float_values",
    "has_decimal_commas",
    "level_of",
    "parse_dates",
    "parse_numbers",
    "text_of",
]

CLIP = 1e100  # larger magnitudes overflow when squared and summed
MISSING = "\x00missing"  # the level of what is missing: no text begins with a null character
DATE_FORMATS = (
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%dT%H:%M:%S",
    "%Y-%m-%dT%H:%M",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%d",
    "%d/%m/%Y",
)


def encode_column(s: pl.Series, plan: dict[str, Any]) -> Iterable[NDArray[np.float64]]:
    """Yield the float columns of ``s`` that its plan promises, each of shape (n,) and finite."""
    import polars as pl

    kind = plan["kind"]
    if kind in ("few", "many"):
        text = text_of(
            s if plan["label"] != "boolean" or not s.dtype.is_numeric() else s.cast(pl.Boolean), "categories"
        )
        text = text.set(text == "", None).fill_null(MISSING)
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
        x = _dates(s, plan)
    elif kind == "text":
        x = float_values(text_of(s, "text").str.len_chars())
    else:
        x = _numbers(s, plan.get("comma", False))
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


def text_of(s: pl.Series, wanted: str) -> pl.Series:
    """Return a column as stripped text; ``wanted`` says in the error what the model was fitted on."""
    import polars as pl

    worded = (pl.String, pl.Categorical, pl.Enum, pl.Boolean, pl.Null, pl.Date, pl.Datetime, pl.Time)
    if not (s.dtype.is_numeric() or s.dtype in worded):
        raise _changed(s, wanted)
    return s.cast(pl.String).str.strip_chars()


def _numbers(s: pl.Series, comma: bool) -> NDArray[np.float64]:
    import polars as pl

    if s.dtype == pl.Duration:
        return float_values(s.dt.total_seconds(fractional=True))
    if s.dtype == pl.Time:
        return float_values(s.cast(pl.Int64) / 3.6e12)
    if s.dtype.is_numeric() or s.dtype in (pl.Boolean, pl.Null):
        return float_values(s)
    if s.dtype.is_temporal():
        raise _changed(s, "numbers")
    return float_values(parse_numbers(text_of(s, "numbers"), comma))


def _dates(s: pl.Series, plan: dict[str, Any]) -> NDArray[np.float64]:
    import polars as pl

    if s.dtype == pl.Date or s.dtype == pl.Datetime:
        return days_since_1970(s)
    if s.dtype == pl.Null:
        return np.full(len(s), np.nan)
    if s.dtype not in (pl.String, pl.Categorical, pl.Enum):
        raise _changed(s, "dates")
    text = text_of(s, "dates")
    stamps = pl.Series(s.name, [None] * len(s), dtype=pl.Datetime("us"))
    for form in [plan["format"]] if "format" in plan else DATE_FORMATS:  # typed dates then, text now
        stamps = stamps.zip_with(stamps.is_not_null(), parse_dates(text, form))
    return days_since_1970(stamps)


def _changed(s: pl.Series, wanted: str) -> DataError:
    return DataError(f"column {s.name!r} holds {s.dtype} where {wanted} were in fitting; convert it or fit anew")


def float_values(s: pl.Series) -> NDArray[np.float64]:
    """Return a column as float64, NaN where it is missing or no number."""
    import polars as pl

    return s.cast(pl.Float64, strict=False).to_numpy().astype(np.float64, copy=True)


def days_since_1970(s: pl.Series) -> NDArray[np.float64]:
    """Return dates as days, the hour being the fraction."""
    import polars as pl

    if s.dtype == pl.Date:
        s = s.cast(pl.Datetime("us"))
    micro = s.dt.replace_time_zone(None).dt.cast_time_unit("us").cast(pl.Int64)  # the wall clock, as people read it
    return float_values(micro) / 86_400e6


def level_of(value: Any) -> str:
    """Levels are stripped text; missing is a level of its own."""
    if isinstance(value, bool):
        return str(value).lower()
    return MISSING if value is None else str(value).strip() or MISSING


def parse_numbers(s: pl.Series, comma: bool = False) -> pl.Series:
    """Read text as numbers, whatever thousands separators and currency signs it has; null where it is none.

    With ``comma``, a comma is the decimal mark and dots separate thousands.
    """
    import polars as pl

    plain = s.str.replace_all(r"[.\s$€£¥%_]" if comma else r"[,\s$€£¥%_]", "")
    return (plain.str.replace(",", ".", literal=True) if comma else plain).cast(pl.Float64, strict=False)


def has_decimal_commas(s: pl.Series) -> bool:
    """Say whether commas are decimal marks: more values rule out thousands than rule out decimals (1,234 is both)."""
    plain = s.str.replace_all(r"[\s$€£¥%_]", "")
    held = plain.filter(plain.str.contains(",", literal=True))
    thousands = held.str.contains(r"^[+-]?\d{1,3}(,\d{3})+(\.\d*)?$")
    decimal = held.str.contains(r"^[+-]?(\d*|\d{1,3}(\.\d{3})+),\d+$")
    return int((decimal & ~thousands).sum()) > int((thousands & ~decimal).sum())


def parse_dates(s: pl.Series, fmt: str) -> pl.Series:
    """Read text as dates of one format; null where it is none."""
    import polars as pl

    if "%H" in fmt:
        return s.str.to_datetime(fmt, strict=False, time_unit="us")
    return s.str.to_date(fmt, strict=False).cast(pl.Datetime("us"))
