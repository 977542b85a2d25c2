"""What a column is, found from its values, and the plan that encodes it: plain data that JSON holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skerry.data.encoder_values import (
    CLIP,
    DATE_FORMATS,
    MISSING,
    days_since_1970,
    float_values,
    has_decimal_commas,
    level_of,
    parse_dates,
    parse_numbers,
)
from skerry.data.encoder_words import show

if TYPE_CHECKING:
    import polars as pl

__all__ = ["action_of", "counts_rows", "drop", "feature_names", "plan_column", "twin_of"]

FEW_LEVELS = 12
RARE_SHARE = 0.005
MISSING_SHARE = 0.005
ID_SHARE = 0.95
PARSED_SHARE = 0.95
N_QUANTILES = 2001


def plan_column(s: pl.Series) -> dict[str, Any]:
    """Return the plan of one column: its kind and what encoding needs to know; see the table in encoder."""
    import polars as pl

    n, kind = len(s), s.dtype
    if not (kind.is_numeric() or kind.is_temporal() or kind in (pl.String, pl.Categorical, pl.Enum, pl.Boolean)):
        missing = s.null_count()
        label = "all missing" if missing == n else "nested"
        return drop(label, missing, 1, "" if missing == n else f"values of type {kind} are not looked into")
    if kind == pl.Categorical or kind == pl.Enum:
        s = s.cast(pl.String)
    if s.dtype == pl.String:
        stripped = s.str.strip_chars()
        s = stripped.set(stripped == "", None)
        present = s.len() - s.null_count()
        if present:
            comma = has_decimal_commas(s)
            parsed = parse_numbers(s, comma)
            good = parsed.len() - parsed.null_count()
            if good >= PARSED_SHARE * present:
                bad = present - good
                note = (
                    "numbers as text"
                    + (", with decimal commas" if comma else "")
                    + (f"; {bad} values are not numbers and count as missing" if bad else "")
                )
                return _numeric(parsed, note) | {"comma": comma}
            for fmt in DATE_FORMATS:
                stamps = parse_dates(s, fmt)
                if stamps.len() - stamps.null_count() >= PARSED_SHARE * present:
                    return _date(stamps, f"dates as text, {fmt}") | {"format": fmt}
        return _category(s)
    if kind == pl.Boolean:
        return _category(s) | {"label": "boolean"}
    if kind.is_temporal():
        if kind == pl.Duration:
            return _numeric(s.dt.total_seconds(fractional=True), "seconds")
        if kind == pl.Time:
            return _numeric(s.cast(pl.Int64) / 3.6e12, "hours of the day")
        return _date(s.cast(pl.Datetime("us")), "")
    return _numeric(s, "")


def counts_rows(s: pl.Series, positions: NDArray[np.int64] | None) -> bool:
    """Say whether an integer column goes up or down by one from row to row."""
    if not s.dtype.is_integer() or len(s) < 20 or s.null_count():
        return False
    places = np.arange(len(s)) if positions is None else positions
    steps = np.diff(float_values(s))
    return bool(np.all(steps == np.diff(places)) or np.all(steps == -np.diff(places)))


def drop(label: str, n_missing: int, n_unique: int, note: str = "") -> dict[str, Any]:
    """Return the plan that leaves a column out, ``label`` saying why."""
    return {
        "kind": "drop",
        "label": label,
        "n_missing": int(n_missing),
        "n_unique": int(n_unique),
        "note": note,
    }


def _numeric(s: pl.Series, note: str) -> dict[str, Any]:
    x = float_values(s)
    missing = np.isnan(x)
    infinite = np.isinf(x)
    n_missing, present = int(missing.sum()), x[~missing & ~infinite]
    if n_missing == x.size:
        return drop("all missing", n_missing, 0)
    if present.size == 0:
        return drop("constant", n_missing, 1, "only infinities")
    n_unique = int(np.unique(x[~missing]).size)
    if n_unique == 1 and not n_missing:
        return drop("constant", 0, 1, f"always {show(float(present[0]))}")
    if infinite.any():
        note = "; ".join(filter(None, [note, f"{int(infinite.sum())} infinities became the extreme finite value"]))
    if np.abs(present).max() > CLIP:
        note = "; ".join(filter(None, [note, f"values beyond ±{CLIP:g} were clipped"]))
    present = np.clip(present, -CLIP, CLIP)
    share = n_missing / x.size
    indicator = share > MISSING_SHARE or n_unique == 1
    order = np.linspace(0, 1, min(N_QUANTILES, present.size))
    return {
        "kind": "numeric",
        "n_missing": n_missing,
        "n_unique": n_unique,
        "missing": share,
        "indicator": bool(indicator),
        "constant": n_unique == 1,
        "median": float(np.median(present)),
        "low": float(present.min()),
        "high": float(present.max()),
        "quantiles": np.quantile(present, order, method="closest_observation").tolist(),
        "note": note,
    }


def _date(s: pl.Series, note: str) -> dict[str, Any]:
    days = days_since_1970(s)
    plan = _numeric_from(days, note)
    if plan["kind"] == "drop":
        return plan
    present = days[~np.isnan(days)]
    hour = (present % 1.0) * 24
    week = np.floor(present) % 7
    return plan | {
        "kind": "date",
        "label": "date",
        "hour": bool(np.ptp(hour) > 0.5),
        "week": bool(np.unique(week).size > 1 and np.ptp(present) >= 14),
        "hour_share": (np.bincount(hour.astype(int) % 24, minlength=24) / present.size).tolist(),
        "week_share": (np.bincount(((week + 3) % 7).astype(int), minlength=7) / present.size).tolist(),
    }


def _numeric_from(x: NDArray[np.float64], note: str) -> dict[str, Any]:
    import polars as pl

    return _numeric(pl.Series(x), note)


def _category(s: pl.Series) -> dict[str, Any]:
    import polars as pl

    n, n_missing = len(s), s.null_count()
    if n_missing == n:
        return drop("all missing", n, 0)
    counts = s.cast(pl.String).value_counts(sort=True)
    levels = [level_of(v) for v in counts[:, 0].to_list()]
    sizes = counts[:, 1].cast(pl.Int64).to_numpy()
    order = sorted(range(len(levels)), key=lambda i: (-sizes[i], levels[i]))  # ties by name: deterministic
    n_unique = len(levels) - (n_missing > 0)
    if len(levels) == 1:
        return drop("constant", 0, 1, f"always {levels[0]}")
    present = n - n_missing
    if s.dtype == pl.String and n_unique > ID_SHARE * present and present > 20:
        lengths = s.drop_nulls().str.len_chars()
        if float(lengths.mean() or 0) > 30 and lengths.n_unique() > 5:
            text = _numeric_from(float_values(s.str.len_chars()), "only its length is used")
            return text | {"kind": "text", "label": "free text", "n_unique": n_unique}
        return drop("identifier", n_missing, n_unique, "nearly all values differ")
    shares = {levels[i]: float(sizes[i]) / n for i in order}
    base = {
        "n_missing": int(n_missing),
        "n_unique": int(n_unique),
        "shares": shares,
        "n": n,
        "label": "category",
    }
    if len(levels) <= FEW_LEVELS:
        kept = [v for v in shares if shares[v] >= RARE_SHARE]
        rare = [v for v in shares if shares[v] < RARE_SHARE]
        if len(kept) == 2 and not rare:
            kept = sorted(kept)[1:] if s.dtype == pl.Boolean else kept
        return base | {"kind": "few", "levels": kept, "rare": bool(rare)}
    return base | {"kind": "many"}


def twin_of(frame: pl.DataFrame, name: str, seen: dict[int, list[str]]) -> str | None:
    """Return the column met before ``name`` with the same values, if any; ``seen`` collects them by hash."""
    s = frame[name]
    key = hash((str(s.dtype), s.hash(0).sum()))
    for other in seen.get(key, []):
        if s.equals(frame[other], check_names=False, null_equal=True):
            return other
    seen.setdefault(key, []).append(name)
    return None


def feature_names(name: str, plan: dict[str, Any]) -> list[str]:
    """Return the names of the features that a plan makes, in the order that ``encode_column`` yields them."""
    kind = plan["kind"]
    if kind == "drop":
        return []
    if kind == "few":
        return [f"{name}={_shown(v)}" for v in plan["levels"]] + ([f"{name}=(rare)"] if plan["rare"] else [])
    if kind == "many":
        return [f"rarity of {name}"]
    out = [] if plan["constant"] else [f"length of {name}" if kind == "text" else name]
    if kind == "date":
        out += [f"{name} hour {w}" for w in ("sin", "cos") if plan["hour"]]
        out += [f"{name} weekday {w}" for w in ("sin", "cos") if plan["week"]]
    return out + ([f"{name} is missing"] if plan["indicator"] else [])


def _shown(level: str) -> str:
    return "(missing)" if level == MISSING else level


def action_of(plan: dict[str, Any]) -> str:
    """Say in a few words what encoding does to the column."""
    kind = plan["kind"]
    if kind == "drop":
        return "left out"
    if kind == "few":
        return f"{len(plan['levels']) + plan['rare']} indicators"
    if kind == "many":
        return "rarity of its level"
    parts = ["length" if kind == "text" else "days" if kind == "date" else "kept"]
    parts += ["hour of day"] * bool(plan.get("hour")) + ["day of week"] * bool(plan.get("week"))
    parts += ["missing -> median"] * (plan["n_missing"] > 0) + ["indicator of missing"] * plan["indicator"]
    return ", ".join(parts)
