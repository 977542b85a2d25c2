"""Arrow IPC (Feather): the file and the stream form, mapped into memory, one record batch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from skerry.core.errors import DataError
from skerry.data.table import Table, first_line, unique_names

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

__all__ = ["arrow_table", "check_fields", "polars_frame"]


def polars_frame(table: pa.Table) -> pl.DataFrame:
    """Convert rows of foreign origin: checked in full, their fields freed of metadata.

    Text that is not UTF-8, offsets beyond the data and metadata that are no text would bring polars down.

    Raises
    ------
    ValueError
        If the data contradict their type.
    """
    import polars as pl
    import pyarrow as pa

    table.validate(full=True)
    columns = [_held(column) for column in table.columns]
    try:
        return pl.from_arrow(pa.table(columns, names=table.column_names))  # type: ignore[return-value]
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise ValueError(first_line(error)) from None


def check_fields(schema: pa.Schema, name: str) -> None:
    """Raise DataError if two columns share a name or one has a type that is not read; ``name`` is the source."""
    import pyarrow as pa

    unique_names(schema.names, name)
    for field in schema:
        if pa.types.is_union(field.type) or pa.types.is_interval(field.type):
            raise DataError(
                f"{name}: column {field.name!r} has the type {field.type}, which is not read; drop or convert it"
            )


def _held(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Turn types that polars does not hold into those that it does."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(column.type, pa.BaseExtensionType):
        column = column.cast(column.type.storage_type)
    kind = column.type
    if pa.types.is_decimal256(kind):
        return column.cast(pa.float64())
    if pa.types.is_run_end_encoded(kind):
        return pc.run_end_decode(column)
    return column


def arrow_table(path: Path) -> Table:
    """Open an Arrow IPC file or stream; a file that ends early is told by name."""
    import pyarrow as pa

    name = str(path)

    def parts() -> Iterator[pa.Table]:
        """Yield an empty table, then each record batch; the file is unmapped at the end."""
        with pa.memory_map(name) as source:
            if source.read(6) == b"ARROW1":
                file = pa.ipc.open_file(source)
                check_fields(file.schema, name)
                yield file.schema.empty_table()
                for i in range(file.num_record_batches):
                    yield pa.Table.from_batches([file.get_batch(i)])
            else:
                source.seek(0)
                reader = pa.ipc.open_stream(source)
                check_fields(reader.schema, name)
                yield reader.schema.empty_table()
                for batch in reader:
                    yield pa.Table.from_batches([batch])

    def told(error: BaseException) -> DataError:
        return DataError(f"{name}: not a whole Arrow IPC file ({first_line(error)}); fetch it again")

    def stream(rows: int) -> Iterator[pl.DataFrame]:
        try:
            for i, part in enumerate(parts()):
                if i:
                    yield polars_frame(part)
        except DataError:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            raise told(error) from None

    try:
        opened = parts()
        empty = next(opened)
        n_rows = sum(part.num_rows for part in opened)
        schema = dict(polars_frame(empty).schema)
    except DataError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise told(error) from None
    return Table(name, schema, stream, n_rows)
