"""Turn the columns of a real table into numbers, and say what was done to each.

==================  ==========================================================================================
kind                what becomes of it
==================  ==========================================================================================
numeric             itself; missing becomes the median, with an indicator where more than 0.5 % are missing
boolean             0 and 1
category, few       one indicator per level that at least 0.5 % of the rows have, and one for all rarer ones,
                    scaled so that the column weighs as one numeric column
category, many      minus the log of the level's share; a level never seen counts as seen half a time
date                days since 1970, and hour of the day and day of the week where they vary
numbers as text     parsed, as numeric (thousands separators and currency signs are understood)
free text           its length
identifier          left out (nearly all values differ)
constant, missing   left out
==================  ==========================================================================================
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from skerry.core.errors import DataError

if TYPE_CHECKING:
    import polars as pl

__all__ = ["ColumnReport", "TableEncoder"]

FEW_LEVELS = 12
RARE_SHARE = 0.005
MISSING_SHARE = 0.005
ID_SHARE = 0.95
PARSED_SHARE = 0.95
CLIP = 1e100
N_QUANTILES = 2001
DATE_FORMATS = (
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%dT%H:%M:%S",
    "%Y-%m-%dT%H:%M",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%d",
    "%d/%m/%Y",
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


@dataclass(frozen=True)
class ColumnReport:
    """What the encoder did to one column."""

    column: str
    kind: str
    action: str
    n_missing: int
    n_unique: int
    features: tuple[str, ...]
    note: str = ""


class TableEncoder(TransformerMixin, BaseEstimator):
    """Encode a frame of mixed columns as a float matrix, batch by batch, without ever refitting.

    Attributes
    ----------
    report_ : list of ColumnReport
    feature_column_ : dict of feature name to original column
    plan_ : dict of column to its kind and what was learned; plain data
    weighted_ : ndarray of shape (d,), bool
        True for indicators of levels: they carry the weight of their column and want no further scaling.

    Examples
    --------
    >>> import polars as pl
    >>> frame = pl.DataFrame({"amount": [3.0, 4.5, None, 5.0], "kind": ["a", "b", "a", "a"]})
    >>> encoder = TableEncoder().fit(frame)
    >>> encoder.get_feature_names_out().tolist()
    ['amount', 'amount is missing', 'kind=a', 'kind=b']
    >>> encoder.transform(frame).shape
    (4, 4)
    """

    def fit(self, X: Any, y: Any = None, positions: NDArray[np.int64] | None = None) -> Self:
        """Learn from a polars frame (or anything :func:`open_table` reads); ``y`` is ignored.

        ``positions``, of shape (n,), are the rows' places in the table that they were sampled from: a column that
        counts the rows is then known by its steps, whatever the sample skipped.
        """
        frame = _frame(X)
        if frame.height == 0:
            raise DataError("the table has no rows")
        self.plan_: dict[str, dict[str, Any]] = {}
        self.report_: list[ColumnReport] = []
        self.feature_column_: dict[str, str] = {}
        seen: dict[int, list[str]] = {}
        weighted: list[bool] = []
        for name in frame.columns:
            plan = _plan(frame[name])
            if _counts_rows(frame[name], positions):
                plan = _drop("identifier", 0, frame.height, "counts the rows")
            if plan["kind"] in ("numeric", "boolean", "few", "many", "date"):
                twin = _twin(frame, name, seen)
                if twin is not None:
                    plan = plan | {"kind": "drop", "label": "duplicate", "note": f"equal to {twin!r}"}
            features = _features(name, plan)
            for feature in features:
                if feature in self.feature_column_:
                    raise DataError(f"column {name!r} makes the feature {feature!r}, which exists; rename the column")
                self.feature_column_[feature] = name
                weighted.append(plan["kind"] == "few" or feature.endswith(" is missing"))
            self.plan_[name] = plan
            self.report_.append(
                ColumnReport(
                    name,
                    plan.get("label", plan["kind"]),
                    _action(plan),
                    plan["n_missing"],
                    plan["n_unique"],
                    tuple(features),
                    plan.get("note", ""),
                )
            )
        if not self.feature_column_:
            why = "; ".join(f"{r.column!r} is {r.kind}" for r in self.report_[:5])
            raise DataError(f"no column is left to work with: {why}")
        self.weighted_ = np.asarray(weighted, dtype=bool)
        return self

    def transform(self, X: Any) -> NDArray[np.float64]:
        """Return features of shape (n, d), float64, finite.

        Raises
        ------
        DataError
            If a column that was seen in ``fit`` is absent.
        """
        check_is_fitted(self)
        frame = _frame(X)
        out = np.empty((frame.height, len(self.feature_column_)), dtype=np.float64)
        j = 0
        for name, plan in self.plan_.items():
            if plan["kind"] == "drop":
                continue
            if name not in frame.columns:
                raise DataError(f"column {name!r} is missing; the model was fitted with it")
            for values in _encode(frame[name], plan):
                out[:, j] = values
                j += 1
        return out

    def get_feature_names_out(self, input_features: Any = None) -> NDArray:
        """Return the names of the features, shape (d,)."""
        check_is_fitted(self)
        return np.asarray(list(self.feature_column_), dtype=object)

    def reason(self, column: str, value: Any) -> str:
        """Word why ``value`` of ``column`` is unusual, in the data's own names and units.

        Examples
        --------
        >>> import polars as pl
        >>> encoder = TableEncoder().fit(pl.DataFrame({"amount": [7, 3, 9, 4, 5, 9]}))
        >>> encoder.reason("amount", 5000)
        '`amount` 5,000 is above all rows (largest 9)'
        """
        plan = self.plan_[column]
        kind = plan["kind"]
        if kind == "drop":
            return f"`{column}` is left out ({plan['label']})"
        if kind in ("numeric", "text"):
            number = _number(value) if kind == "numeric" else (None if value is None else float(len(str(value))))
            if number is None or math.isnan(number):
                return f"`{column}` is missing (so in {_percent(plan['missing'])} of rows)"
            what = f"`{column}` {_show(number)}" if kind == "numeric" else f"`{column}` of {_show(number)} characters"
            return f"{what} is {_place(number, np.asarray(plan['quantiles']))}"
        if kind == "date":
            return _reason_date(column, value, plan)
        shown = "missing" if value is None else repr(value) if isinstance(value, str) else str(value).lower()
        share = plan["shares"].get(_level(value), 0.0)
        if share == 0.0:
            return f"`{column}` {shown} was never seen"
        return f"`{column}` {shown} occurs in {_percent(share)} of rows"

    def to_frame(self) -> pl.DataFrame:
        """Return :attr:`report_` as a polars frame."""
        import polars as pl

        return pl.DataFrame([asdict(r) | {"features": ", ".join(r.features)} for r in self.report_])

    def to_dict(self) -> dict[str, Any]:
        """Return the fitted state as plain data that JSON holds."""
        check_is_fitted(self)
        state = self.__getstate__()
        reports = [r | {"features": list(r["features"])} for r in state["report_"]]
        return state | {"report_": reports, "weighted_": self.weighted_.tolist()}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Self:
        """Return the encoder that :meth:`to_dict` described."""
        encoder = cls()
        encoder.__setstate__(state | {"weighted_": np.asarray(state["weighted_"], dtype=bool)})
        return encoder

    # plain data only, so that a model can be saved
    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        if "report_" in state:
            state["report_"] = [asdict(r) for r in self.report_]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "report_" in state:
            reports = [ColumnReport(**r | {"features": tuple(r["features"])}) for r in state["report_"]]
            state = state | {"report_": reports}
        super().__setstate__(state)


# ---- what a column is --------------------------------------------------------------------------------------


def _frame(X: Any) -> pl.DataFrame:
    import polars as pl

    if isinstance(X, pl.DataFrame):
        return X
    from skerry.data.tables import open_table

    return open_table(X).read()


def _plan(s: pl.Series) -> dict[str, Any]:
    import polars as pl

    n, kind = len(s), s.dtype
    if kind.is_nested() or kind in (pl.Binary, pl.Object, pl.Null):
        missing = s.null_count()
        label = "all missing" if missing == n else "nested"
        return _drop(label, missing, 1, "" if missing == n else f"values of type {kind} are not looked into")
    note = ""
    if kind == pl.Categorical or kind == pl.Enum:
        s = s.cast(pl.String)
    if s.dtype == pl.String:
        stripped = s.str.strip_chars()
        s = stripped.set(stripped == "", None)
        present = s.len() - s.null_count()
        if present:
            parsed = _parse_numbers(s)
            good = parsed.len() - parsed.null_count()
            if good >= PARSED_SHARE * present:
                bad = present - good
                note = "numbers as text" + (f"; {bad} values are not numbers and count as missing" if bad else "")
                return _numeric(parsed, note) | {"parse": True}
            for fmt in DATE_FORMATS:
                stamps = _parse_dates(s, fmt)
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
    return _numeric(s, note)


def _counts_rows(s: pl.Series, positions: NDArray[np.int64] | None) -> bool:
    """Say whether an integer column goes up or down by one from row to row."""
    if not s.dtype.is_integer() or len(s) < 20 or s.null_count():
        return False
    places = np.arange(len(s)) if positions is None else positions
    steps = np.diff(_values(s))
    return bool(np.all(steps == np.diff(places)) or np.all(steps == -np.diff(places)))


def _drop(label: str, n_missing: int, n_unique: int, note: str = "") -> dict[str, Any]:
    return {
        "kind": "drop",
        "label": label,
        "n_missing": int(n_missing),
        "n_unique": int(n_unique),
        "note": note,
    }


def _values(s: pl.Series) -> NDArray[np.float64]:
    import polars as pl

    return s.cast(pl.Float64, strict=False).to_numpy().astype(np.float64, copy=True)


def _numeric(s: pl.Series, note: str) -> dict[str, Any]:
    x = _values(s)
    missing = np.isnan(x)
    infinite = np.isinf(x)
    n_missing, present = int(missing.sum()), x[~missing & ~infinite]
    if n_missing == x.size:
        return _drop("all missing", n_missing, 0)
    if present.size == 0:
        return _drop("constant", n_missing, 1, "only infinities")
    n_unique = int(np.unique(x[~missing]).size)
    if n_unique == 1 and not n_missing:
        return _drop("constant", 0, 1, f"always {_show(float(present[0]))}")
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
    days = _days(s)
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


def _days(s: pl.Series) -> NDArray[np.float64]:
    import polars as pl

    micro = s.cast(pl.Datetime("us")).dt.replace_time_zone(None).cast(pl.Int64)
    return _values(micro) / 86_400e6


def _category(s: pl.Series) -> dict[str, Any]:
    import polars as pl

    n, n_missing = len(s), s.null_count()
    if n_missing == n:
        return _drop("all missing", n, 0)
    counts = s.cast(pl.String).value_counts(sort=True)
    levels = [_level(v) for v in counts[:, 0].to_list()]
    sizes = counts[:, 1].cast(pl.Int64).to_numpy()
    order = sorted(range(len(levels)), key=lambda i: (-sizes[i], levels[i]))  # ties by name: deterministic
    n_unique = len(levels) - (n_missing > 0)
    if len(levels) == 1:
        return _drop("constant", 0, 1, f"always {levels[0]}")
    present = n - n_missing
    if s.dtype == pl.String and n_unique > ID_SHARE * present and present > 20:
        lengths = s.drop_nulls().str.len_chars()
        if float(lengths.mean() or 0) > 30 and lengths.n_unique() > 5:
            text = _numeric_from(_values(s.str.len_chars()), "only its length is used")
            return text | {"kind": "text", "label": "free text", "n_unique": n_unique}
        return _drop("identifier", n_missing, n_unique, "nearly all values differ")
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


def _level(value: Any) -> str:
    """Levels are text; missing is a level of its own (no text holds a null character)."""
    return "\x00missing" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _parse_numbers(s: pl.Series) -> pl.Series:
    import polars as pl

    return s.str.replace_all(r"[,\s$€£¥%_]", "").cast(pl.Float64, strict=False)


def _parse_dates(s: pl.Series, fmt: str) -> pl.Series:
    import polars as pl

    if "%H" in fmt:
        return s.str.to_datetime(fmt, strict=False, time_unit="us")
    return s.str.to_date(fmt, strict=False).cast(pl.Datetime("us"))


def _twin(frame: pl.DataFrame, name: str, seen: dict[int, list[str]]) -> str | None:
    s = frame[name]
    key = hash((str(s.dtype), s.hash(0).sum()))
    for other in seen.get(key, []):
        if s.equals(frame[other], check_names=False, null_equal=True):
            return other
    seen.setdefault(key, []).append(name)
    return None


def _features(name: str, plan: dict[str, Any]) -> list[str]:
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
    return "(missing)" if level == "\x00missing" else level


def _action(plan: dict[str, Any]) -> str:
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


# ---- encoding ----------------------------------------------------------------------------------------------


def _encode(s: pl.Series, plan: dict[str, Any]) -> Iterable[NDArray[np.float64]]:
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
        stamps = _parse_dates(s.cast(pl.String).str.strip_chars(), plan["format"]) if "format" in plan else s
        if stamps.dtype == pl.String:
            raise DataError(f"column {s.name!r} holds text where dates were in fitting")
        x = _days(stamps)
    elif kind == "text":
        x = _values(s.cast(pl.String).str.strip_chars().str.len_chars())
    elif s.dtype == pl.Duration:
        x = _values(s.dt.total_seconds(fractional=True))
    elif s.dtype == pl.Time:
        x = _values(s.cast(pl.Int64) / 3.6e12)
    elif s.dtype == pl.String:
        x = _values(_parse_numbers(s.str.strip_chars()))
    else:
        x = _values(s)
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


# ---- words -------------------------------------------------------------------------------------------------


def _number(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, str):
        text = value.strip().translate({ord(c): None for c in ",$€£¥%_ "})
        try:
            return float(text)
        except ValueError:
            return None
    if isinstance(value, dt.timedelta):
        return value.total_seconds()
    if isinstance(value, dt.time):
        return value.hour + value.minute / 60 + value.second / 3600
    return float(value)


def _show(x: float) -> str:
    if x == round(x) and abs(x) < 1e15:
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
        return f"above all rows (largest {_show(float(quantiles[-1]))})"
    if x < quantiles[0]:
        return f"below all rows (smallest {_show(float(quantiles[0]))})"
    if below >= 0.9:
        return f"above {_near_all(below)} of rows"
    if above >= 0.9:
        return f"below {_near_all(above)} of rows"
    equal = 1.0 - below - above
    if equal < 0.005:
        return f"unusual beside the row's other values (median {_show(float(np.median(quantiles)))})"
    return f"unusual beside the row's other values ({_percent(equal)} of rows have it)"


def _reason_date(column: str, value: Any, plan: dict[str, Any]) -> str:
    if isinstance(value, str) and "format" in plan:
        try:
            value = dt.datetime.strptime(value.strip(), plan["format"])
        except ValueError:
            value = None
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
