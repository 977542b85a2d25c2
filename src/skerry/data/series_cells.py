"""The cells of a stream of text: which are numbers, which are missing, and what a column of them holds."""

from __future__ import annotations

import json
from typing import Any

from skerry.data.table_csv import MISSING_TEXT

__all__ = ["TRUTH", "is_number", "json_object", "text_series", "typed"]

TRUTH = {"true": "1", "false": "0"}


def is_number(text: str) -> bool:
    """Say whether a cell is written as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def json_object(line: str) -> dict[str, Any] | None:
    """Return the object that a line of JSON holds, None if it holds none."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return "true" if value is True else "false" if value is False else json.dumps(value)


def text_series(name: str, column: list[Any]) -> Any:
    """Return cells as text, null where they stand for a missing value."""
    import polars as pl

    text = pl.Series(name, [_text(v) for v in column], dtype=pl.String).str.strip_chars()
    return text.set(text.is_in(MISSING_TEXT), None)


def typed(name: str, column: list[Any]) -> Any:
    """Return cells as whole numbers, numbers, or text, whatever holds for all."""
    import polars as pl

    text = text_series(name, column)
    for dtype in (pl.Int64, pl.Float64):
        number = text.cast(dtype, strict=False)
        if number.null_count() == text.null_count() and text.null_count() < len(text):
            return number
    truth = text.replace(TRUTH).cast(pl.Int64, strict=False)
    return truth if truth.null_count() == text.null_count() < len(text) else text
