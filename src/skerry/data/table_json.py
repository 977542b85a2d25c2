"""JSON lines, one object a line: keys may come and go, and types widen to what the whole file holds."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skerry.core.errors import DataError
from skerry.data.packed import GuardedGzip
from skerry.data.table import Table, first_line

if TYPE_CHECKING:
    import polars as pl

__all__ = ["json_table"]


def json_table(path: Path, packed: bool) -> Table:
    """Open a file of one JSON object a line, which may be ``packed`` by gzip."""
    import polars as pl

    name = str(path)

    def stream(rows: int) -> Iterator[pl.DataFrame]:
        with io.BufferedReader(GuardedGzip(path, name), 1 << 20) if packed else path.open("rb") as file:
            while lines := file.readlines(1 << 23):
                try:
                    yield pl.read_ndjson(b"".join(lines), schema=schema, ignore_errors=False)
                except pl.exceptions.PolarsError as error:
                    raise DataError(
                        f"{name}: not JSON lines ({first_line(error)}); one object a line is expected"
                    ) from None

    schema = None
    merged: dict[str, Any] = {}
    n_rows = 0
    for frame in stream(0):
        n_rows += frame.height
        for c, t in frame.schema.items():
            merged[c] = t if c not in merged or merged[c] == t else _wider(merged[c], t)
    if not merged:
        raise DataError(f"{name}: the file is empty")
    schema = merged
    return Table(name, merged, stream, n_rows)


def _wider(a: Any, b: Any) -> Any:
    import polars as pl

    if a == pl.Null:
        return b
    if b == pl.Null:
        return a
    return pl.Float64 if a.is_numeric() and b.is_numeric() else pl.String
