"""Parquet: one file, or several of one schema read as one table, with memory bounded by the batch.

Arrow's default fetches the column chunks of every row group ahead and keeps them until the file is closed, so that a
stream holds the whole file. Here each column is read through a small buffer instead: what is held is a page and a
buffer per column, and the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from skerry.core.errors import DataError
from skerry.data.table import Table, first_line
from skerry.data.table_arrow import check_fields, polars_frame

if TYPE_CHECKING:
    import polars as pl

__all__ = ["parquet_table", "read_row_group"]

READ_AHEAD = 16 << 20  # bytes in the buffers of all columns together
MIN_BUFFER = 16 << 10


def parquet_table(name: str, paths: list[str]) -> Table:
    """Open Parquet files of one schema as one table; ``name`` stands for all of them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema, n_rows = None, 0
    groups: list[tuple[str, int, int]] = []
    for path in paths:
        if Path(path).stat().st_size == 0:
            raise DataError(f"{path}: the file is empty")
        try:
            with pq.ParquetFile(path) as file:
                check_fields(file.schema_arrow, path)
                n_rows += file.metadata.num_rows
                groups += [(path, g, file.metadata.row_group(g).num_rows) for g in range(file.num_row_groups)]
                if schema is None:
                    schema = file.schema_arrow
                elif file.schema_arrow.names != schema.names:
                    raise DataError(f"{path}: its columns differ from those of {paths[0]}")
                for field in file.schema_arrow:
                    if field.type != schema.field(field.name).type:
                        raise DataError(
                            f"{path}: column {field.name!r} is {field.type}, "
                            f"but {schema.field(field.name).type} in {paths[0]}"
                        )
        except DataError:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(f"{path}: not a whole Parquet file ({first_line(error)}); fetch it again") from None
    assert schema is not None
    width = len(schema)

    def stream(rows: int) -> Iterator[pl.DataFrame]:
        for path in paths:
            yield from _read(path, width, rows, None)

    try:
        empty = polars_frame(schema.empty_table())
    except (pa.ArrowException, ValueError) as error:
        raise DataError(f"{name}: its columns cannot be read ({first_line(error)}); write it again") from None
    held = sorted({part.partition("=")[0] for path in paths for part in Path(path).parent.parts if "=" in part})
    notes = [f"columns held in the names of folders are not read: {', '.join(held)}"] if held else []
    table = Table(name, dict(empty.schema), stream, n_rows, notes)
    table.row_groups = groups
    return table


def read_row_group(path: str, group: int, rows: int) -> Iterator[pl.DataFrame]:
    """Yield the rows of one row group of a file, at most ``rows`` at a time.

    Raises
    ------
    DataError
        If the file is damaged or cannot be read here.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        width = len(pq.read_schema(path))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read where the work is done ({first_line(error)})") from None
    return _read(path, width, rows, [group])


def _read(path: str, width: int, rows: int, groups: list[int] | None) -> Iterator[pl.DataFrame]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = max(MIN_BUFFER, min(1 << 20, READ_AHEAD // max(1, width)))
    with pq.ParquetFile(path, buffer_size=buffer, pre_buffer=False) as file:
        try:
            for batch in file.iter_batches(batch_size=rows, row_groups=groups):
                yield polars_frame(pa.Table.from_batches([batch]))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(f"{path}: damaged ({first_line(error)}); fetch it again") from None
