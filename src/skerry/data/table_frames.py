"""Tables in memory: pandas, polars and pyarrow frames (others through narwhals), and what NumPy makes a matrix of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from skerry.core.errors import DataError
from skerry.data.table import Table, first_line, unique_names
from skerry.data.table_numpy import array_table, sparse_table

if TYPE_CHECKING:
    import polars as pl

__all__ = ["object_table"]


def object_table(source: Any) -> Table:
    """Open a frame, a matrix or a sparse matrix."""
    import polars as pl

    name = f"<{type(source).__name__}>"
    if isinstance(source, pl.LazyFrame):
        source = source.collect()
    if isinstance(source, pl.DataFrame):
        return _frame_table(name, source)
    if hasattr(source, "tocsr") and hasattr(source, "shape"):
        return sparse_table(name, source.tocsr())
    if isinstance(source, np.ndarray):
        return array_table(name, source)
    if hasattr(source, "column_names"):  # pyarrow
        unique_names([str(c) for c in source.column_names], name)
    if hasattr(source, "columns") and hasattr(source, "iloc"):
        return _frame_table(name, _from_pandas(source, name))
    import narwhals as nw

    try:
        return _frame_table(name, nw.from_native(source, eager_only=True).to_polars())
    except TypeError:
        pass
    try:
        return array_table(name, np.asarray(source))
    except ValueError as error:
        raise DataError(f"cannot read a table from {type(source).__name__}: {first_line(error)}") from None


def _from_pandas(source: Any, name: str) -> pl.DataFrame:
    """Column by column, so that an object column of mixed types becomes text and the others stay."""
    import polars as pl
    import pyarrow as pa

    names = [str(c) for c in source.columns]
    unique_names(names, name)
    out = {}
    for j, column in enumerate(names):
        values = source.iloc[:, j]
        try:
            out[column] = pl.Series(column, pa.Array.from_pandas(values))
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
            missing = values.isna().to_numpy()
            text = [None if m else str(v) for v, m in zip(values, missing, strict=True)]
            out[column] = pl.Series(column, text, dtype=pl.String)
    return pl.DataFrame(out)


def _frame_table(name: str, frame: pl.DataFrame) -> Table:
    return Table(name, dict(frame.schema), lambda rows: iter([frame] if frame.height else []), frame.height)
