"""Arrow IPC (Feather): the file and the stream form, mapped into memory, one record batch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skerry.core.errors import DataError
from skerry.data.table import Table, first_line, unique_names

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

__all__ = ["arrow_table", "polars_frame"]


def polars_frame(batch: pa.RecordBatch) -> pl.DataFrame:
    """Convert a record batch of foreign origin: checked in full, its fields freed of metadata.

    Text that is not UTF-8, offsets beyond the data and metadata that are no text would bring polars down.
    """
    import polars as pl
    import pyarrow as pa

    batch.validate(full=True)
    plain = pa.schema([field.remove_metadata() for field in batch.schema])
    return pl.from_arrow(pa.Table.from_arrays(batch.columns, schema=plain))  # type: ignore[return-value]


def arrow_table(path: Path) -> Table:
    """Open an Arrow IPC file or stream; a file that ends early is told by name."""
    import pyarrow as pa

    def parts() -> Iterator[Any]:
        with pa.memory_map(str(path)) as source:
            try:
                if source.read(6) == b"ARROW1":
                    file = pa.ipc.open_file(source)
                    yield file.schema
                    for i in range(file.num_record_batches):
                        yield file.get_batch(i)
                else:
                    source.seek(0)
                    reader = pa.ipc.open_stream(source)
                    yield reader.schema
                    yield from reader
            except (pa.ArrowException, OSError, ValueError) as error:
                raise DataError(f"{path}: not a whole Arrow IPC file ({first_line(error)}); fetch it again") from None

    def stream(rows: int) -> Iterator[pl.DataFrame]:
        batches = parts()
        next(batches)
        for batch in batches:
            yield polars_frame(batch)

    opened = parts()
    schema = next(opened)
    unique_names(schema.names, str(path))
    n_rows = sum(batch.num_rows for batch in opened)
    empty = polars_frame(pa.RecordBatch.from_pylist([], schema=schema))
    return Table(str(path), dict(empty.schema), stream, n_rows)
