"""Why a value is unusual, in the words, names and units of the data."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skerry.data.encoder_values import DATE_FORMATS, level_of

__all__ = ["reason", "show"]

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def reason(column: str, value: Any, plan: dict[str, Any]) -> str:
    """Word why ``value`` of ``column`` is unusual, given the column's plan."""
    kind = plan["kind"]
    if kind == "drop":
        return f"`{column}` is left out ({plan['label']})"
    if kind in ("numeric", "text"):
        number = (
            _number(value, plan.get("comma", False))
            if kind == "numeric"
            else (None if value is None else float(len(str(value).strip())))
        )
        if number is None or math.isnan(number):
            return f"`{column}` is missing (so in {_percent(plan['missing'])} of rows)"
        what = f"`{column}` {show(number)}" if kind == "numeric" else f"`{column}` of {show(number)} characters"
        return f"{what} is {_place(number, np.asarray(plan['quantiles']))}"
    if kind == "date":
        return _reason_date(column, value, plan)
    if plan["label"] == "boolean" and isinstance(value, (int, float)):
        value = bool(value)
    shown = "missing" if value is None else repr(value) if isinstance(value, str) else str(value).lower()
    share = plan["shares"].get(level_of(value), 0.0)
    if share == 0.0:
        return f"`{column}` {shown} was never seen"
    return f"`{column}` {shown} occurs in {_percent(share)} of rows"


def _number(value: Any, comma: bool) -> float | None:
    if value is None:
        return None
    if isinstance(value, str):
        text = value.translate({ord(c): None for c in ("." if comma else ",") + "$€£¥%_"})
        text = "".join(text.split())
        text = text.replace(",", ".") if comma else text
        try:
            return float(text)
        except ValueError:
            return None
    if isinstance(value, dt.timedelta):
        return value.total_seconds()
    if isinstance(value, dt.time):
        return value.hour + value.minute / 60 + value.second / 3600
    return float(value)


def show(x: float) -> str:
    """Return a number as a person reads it."""
    if math.isinf(x):
        return "infinity" if x > 0 else "-infinity"
    if abs(x) < 1e15 and x == round(x):
        return f"{int(x):,}"
    return f"{x:,.2f}" if 1 <= abs(x) < 1e15 else f"{x:.4g}"


def _percent(share: float) -> str:
    p = 100 * share
    if p >= 10:
        return f"{p:.0f} %"
    return f"{p:.1f} %" if p >= 1 else f"{p:.2f} %" if p >= 0.01 else "less than 0.01 %"


def _near_all(share: float) -> str:
    p = 100 * share
    return f"{min(p, 99.99):.2f} %" if p > 99 else f"{p:.1f} %" if p > 90 else f"{p:.0f} %"


def _place(x: float, quantiles: NDArray[np.float64]) -> str:
    m = quantiles.size
    below = np.searchsorted(quantiles, x, side="left") / m
    above = 1.0 - np.searchsorted(quantiles, x, side="right") / m
    if x > quantiles[-1]:
        return f"above all rows (largest {show(float(quantiles[-1]))})"
    if x < quantiles[0]:
        return f"below all rows (smallest {show(float(quantiles[0]))})"
    if below >= 0.9:
        return f"above {_near_all(below)} of rows"
    if above >= 0.9:
        return f"below {_near_all(above)} of rows"
    equal = 1.0 - below - above
    if equal < 0.005:
        return f"unusual beside the row's other values (median {show(float(np.median(quantiles)))})"
    return f"unusual beside the row's other values ({_percent(equal)} of rows have it)"


def _date_of(text: str, formats: Iterable[str]) -> dt.datetime | None:
    for form in formats:
        try:
            return dt.datetime.strptime(text, form)
        except ValueError:
            continue
    return None


def _reason_date(column: str, value: Any, plan: dict[str, Any]) -> str:
    if isinstance(value, str):
        value = _date_of(value.strip(), [plan["format"]] if "format" in plan else DATE_FORMATS)
    if value is None:
        return f"`{column}` is missing (so in {_percent(plan['missing'])} of rows)"
    stamp = value if isinstance(value, dt.datetime) else dt.datetime(value.year, value.month, value.day)
    hour, week = plan["hour_share"][stamp.hour], plan["week_share"][stamp.weekday()]
    text = stamp.strftime("%Y-%m-%d %H:%M" if plan["hour"] else "%Y-%m-%d")
    if plan["hour"] and hour < 0.02:
        return f"`{column}` {text}: the hour {stamp.hour:02d} occurs in {_percent(hour)} of rows"
    if plan["week"] and week < 0.05:
        return f"`{column}` {text}: a {DAYS[stamp.weekday()]} occurs in {_percent(week)} of rows"
    days = (stamp.replace(tzinfo=None) - dt.datetime(1970, 1, 1)).total_seconds() / 86_400
    place = _place(days, np.asarray(plan["quantiles"]))
    place = place.replace("above", "later than").replace("below", "earlier than")
    return f"`{column}` {text} is " + (place.split(" (")[0] if "all rows" in place else place.split(" (median")[0])
