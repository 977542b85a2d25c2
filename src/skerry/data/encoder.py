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

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from skerry.core.errors import DataError
from skerry.data.encoder_kinds import action_of, counts_rows, drop, feature_names, plan_column, twin_of
from skerry.data.encoder_values import encode_column
from skerry.data.encoder_words import reason

if TYPE_CHECKING:
    import polars as pl

__all__ = ["ColumnReport", "TableEncoder"]


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
            plan = plan_column(frame[name])
            if counts_rows(frame[name], positions):
                plan = drop("identifier", 0, frame.height, "counts the rows")
            if plan["kind"] in ("numeric", "boolean", "few", "many", "date"):
                twin = twin_of(frame, name, seen)
                if twin is not None:
                    plan = plan | {"kind": "drop", "label": "duplicate", "note": f"equal to {twin!r}"}
            features = []
            names = feature_names(name, plan)
            for i, feature in enumerate(names):
                weighted.append(plan["kind"] == "few" or (i == len(names) - 1 and plan.get("indicator", False)))
                while feature in self.feature_column_:  # a column may be called what another column makes
                    feature += "'"
                self.feature_column_[feature] = name
                features.append(feature)
            self.plan_[name] = plan
            self.report_.append(
                ColumnReport(
                    name,
                    plan.get("label", plan["kind"]),
                    action_of(plan),
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
        present = set(frame.columns)
        out = np.empty((frame.height, len(self.feature_column_)), dtype=np.float64)
        j = 0
        for name, plan in self.plan_.items():
            if plan["kind"] == "drop":
                continue
            if name not in present:
                raise DataError(f"column {name!r} is missing; the model was fitted with it")
            for values in encode_column(frame[name], plan):
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
        return reason(column, value, self.plan_[column])

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


def _frame(X: Any) -> pl.DataFrame:
    import polars as pl

    if isinstance(X, pl.DataFrame):
        return X
    from skerry.data.tables import open_table

    return open_table(X).read()
