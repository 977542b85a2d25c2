"""Tables in memory: pandas, polars and pyarrow frames (others through narwhals), and what NumPy makes a matrix of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from skerry.core.errors import DataError
from skerry.data.table import Table, first_line, unique_names
from skerry.data.table_arrow import check_fields, polars_frame
from skerry.data.table_numpy import array_table, sparse_table

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

__all__ = ["object_table"]


def object_table(source: Any) -> Table:
    """Open a frame, a matrix or a sparse matrix.

    Raises
    ------
    DataError
        If it is none of these, two columns share a name, or a lazy frame cannot be collected.
    """
    import polars as pl
    import pyarrow as pa

    name = f"<{type(source).__name__}>"
    if isinstance(source, pl.LazyFrame):
        try:
            source = source.collect()
        except pl.exceptions.PolarsError as error:
            raise DataError(f"{name}: cannot be collected ({first_line(error)})") from None
    if isinstance(source, pl.DataFrame):
        return _frame_table(name, source)
    if hasattr(source, "tocsr") and hasattr(source, "shape"):
        return sparse_table(name, source.tocsr())
    if isinstance(source, np.ma.MaskedArray) and source.dtype.kind in "fiub":
        return array_table(name, source.astype(np.float64).filled(np.nan))
    if isinstance(source, np.ndarray):
        return array_table(name, source)
    if isinstance(source, (pa.Table, pa.RecordBatch)):
        return _frame_table(name, _from_arrow(source, name))
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
        raise DataError(
            f"cannot read a table from {type(source).__name__} ({first_line(error)}); give a path, a frame or a matrix"
        ) from None


def _from_arrow(source: pa.Table | pa.RecordBatch, name: str) -> pl.DataFrame:
    import pyarrow as pa

    check_fields(source.schema, name)
    try:
        return polars_frame(pa.Table.from_batches([source]) if isinstance(source, pa.RecordBatch) else source)
    except (pa.ArrowException, ValueError) as error:
        raise DataError(f"{name}: cannot be read ({first_line(error)})") from None


def _from_pandas(source: Any, name: str) -> pl.DataFrame:
    """Column by column, so that an object column of mixed types becomes text and the others stay."""
    import polars as pl
    import pyarrow as pa

    names = [str(c) for c in source.columns]
    unique_names(names, name)
    out: dict[str, Any] = {}
    for j, column in enumerate(names):
        values = source.iloc[:, j]
        try:
            out[column] = polars_frame(pa.table({column: pa.Array.from_pandas(values)}))[column]
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            out[column] = pl.from_pandas(values.astype("string")).rename(column)
    return pl.DataFrame(out, height=len(source))


def _frame_table(name: str, frame: pl.DataFrame) -> Table:
    return Table(name, dict(frame.schema), lambda rows: iter([frame] if frame.height else []), frame.height)
