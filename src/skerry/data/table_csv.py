"""CSV and TSV, by pyarrow's incremental reader: the separator is read off, and types hold for the whole file."""

from __future__ import annotations

import re
import sys
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skerry.core.errors import DataError
from skerry.data.packed import MAX_UNPACKED, copy_to_spool
from skerry.data.table import Table, first_line
from skerry.data.table_csv_head import CsvHead, read_head

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

__all__ = ["csv_table", "spooled_csv"]

MAX_BLOCK = 1 << 30  # bytes that one row may take
MAX_KEPT = 128 << 20  # bytes of text columns that are not read a second time
MISSING_TEXT = ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "?"]


def spooled_csv(stream: Any, separator: str | None, name: str, text: bool = False) -> Table:
    """Read CSV from a stream that can be read only once, or is packed, through a temporary file.

    Arrow would read a Python file on a thread of its own, which on an error may outlive the interpreter.
    """
    handle, spool = tempfile.mkstemp(suffix=".csv")
    path = Path(spool)
    try:
        size = copy_to_spool(stream, handle, name)
        if size > MAX_UNPACKED:
            raise DataError(f"{name}: more than {MAX_UNPACKED >> 30} GiB came; give a plain file instead")
        if size == 0:
            raise DataError(f"{name}: nothing came" if stream is sys.stdin.buffer else f"{name}: the file is empty")
        table = csv_table(path, separator, name, text)
    except BaseException:
        path.unlink()
        raise
    weakref.finalize(table, path.unlink, missing_ok=True)
    return table


def csv_table(path: Path, separator: str | None, name: str, text: bool = False) -> Table:
    """Open a plain text table; ``name`` stands for it in messages, ``separator`` None is read off the first lines.

    ``text`` leaves every column as it is written, and spares the search for types.
    """
    head = read_head(path, separator, name)
    kept: list[pa.Table] = []
    while True:
        try:
            types, mixed, n_rows = _all_text(path, head, name, kept) if text else _settled_types(path, head, name)
            break
        except _LongRow:
            if head.block >= MAX_BLOCK:
                raise
            head.block = min(8 * head.block, MAX_BLOCK)
        except _NotUtf8:
            if head.encoding != "utf8":
                raise
            head.encoding = "latin-1"
            head.notes.append("not UTF-8; read as Latin-1")
    if not n_rows:
        raise DataError(f"{name}: has a header but no rows")
    if mixed:
        head.notes.append("values of different kinds are mixed in " + ", ".join(repr(c) for c in mixed[:5]))
    schema = next(_stream(path, head, name, types)).schema
    return Table(
        name,
        dict(schema),
        lambda rows: _stream(path, head, name, types),
        n_rows,
        head.notes,
        arrow=lambda rows: iter(kept) if kept else _arrow_stream(path, head, name, types),
    )


class _LongRow(DataError):
    """A row does not fit in a block."""


class _NotUtf8(DataError):
    """Text that is not UTF-8, met beyond the head."""


def _stream(path: Path, head: CsvHead, name: str, types: dict[str, Any]) -> Iterator[pl.DataFrame]:
    import polars as pl

    for table in _arrow_stream(path, head, name, types):
        yield pl.from_arrow(table)  # type: ignore[misc]


def _arrow_stream(path: Path, head: CsvHead, name: str, types: dict[str, Any]) -> Iterator[pa.Table]:
    """Yield the rows block by block; ``types`` are Arrow's, those absent are inferred from the first block."""
    import pyarrow as pa
    from pyarrow import csv as pa_csv

    reader = None
    source = pa.OSFile(str(path))
    try:
        reader = pa_csv.open_csv(
            source,
            read_options=pa_csv.ReadOptions(
                column_names=head.columns,
                skip_rows=head.lines,
                block_size=head.block,
                encoding=head.encoding,
                use_threads=True,
            ),
            parse_options=pa_csv.ParseOptions(delimiter=head.separator, newlines_in_values=True),
            convert_options=pa_csv.ConvertOptions(
                null_values=MISSING_TEXT,
                strings_can_be_null=True,
                column_types=types,
                true_values=["true", "True", "TRUE"],
                false_values=["false", "False", "FALSE"],
            ),
        )
        for batch in reader:
            if batch.num_rows:
                yield pa.Table.from_batches([batch])
    except pa.ArrowInvalid as error:
        raise _told(error, name) from None
    finally:
        if reader is not None:
            reader.close()
        source.close()


def _told(error: Exception, name: str) -> DataError:
    ragged = re.search(r"(?:Row #(\d+): )?Expected (\d+) columns, got (\d+)", str(error))
    if ragged:
        where = f"row {int(ragged[1]) - 2}" if ragged[1] else "a row"
        return DataError(f"{name}: {where} has {ragged[3]} fields, {ragged[2]} expected; check quoting and separator")
    if "straddl" in str(error):
        return _LongRow(f"{name}: a row takes more than {MAX_BLOCK >> 20} MiB; check quoting")
    kind = _NotUtf8 if "UTF8" in str(error) else DataError
    return kind(f"{name}: {first_line(error)}")


def _all_text(path: Path, head: CsvHead, name: str, kept: list[pa.Table]) -> tuple[dict[str, Any], list[str], int]:
    """Read all once as text, so that what is damaged or not UTF-8 is known before the first row is used.

    A table that takes little memory stays in ``kept``, and is not read again.
    """
    import pyarrow as pa

    types: dict[str, Any] = dict.fromkeys(head.columns, pa.string())
    n_rows = size = 0
    kept.clear()
    for table in _arrow_stream(path, head, name, types):
        n_rows += table.num_rows
        size += table.nbytes
        if size <= MAX_KEPT:
            kept.append(table)
        else:
            kept.clear()
    return types, [], n_rows


def _settled_types(path: Path, head: CsvHead, name: str) -> tuple[dict[str, Any], list[str], int]:
    """Find types that hold for the whole file: inferred on the first block, widened where a later one objects.

    Widening goes integer -> float -> text. The reader names one column when it objects, so that all others are then
    tried too, on one reading as text: a wide table does not take a reading for each of its columns.
    """
    import polars as pl
    import pyarrow as pa

    types: dict[str, Any] = {}
    mixed: list[str] = []
    tried = False
    while True:  # each round widens a column or ends
        n_rows, inferring = 0, not types
        try:
            for frame in _stream(path, head, name, types):
                n_rows += frame.height
                if pl.Binary in frame.dtypes:  # what the reader makes of text that is not UTF-8
                    raise _NotUtf8(f"{name}: invalid UTF8 data")
                if not types:
                    arrow = frame.to_arrow().schema
                    types = {f.name: pa.string() if pa.types.is_null(f.type) else _plain_type(f.type) for f in arrow}
            return types, mixed, n_rows
        except DataError as error:
            found = re.search(r"In CSV column #(\d+)", str(error))
            column = head.columns[int(found.group(1))] if found else None
            if column is None or not types:
                raise
            if types[column] == pa.string():
                if inferring:  # nothing but missing values in the first block
                    continue
                raise
            before = types[column]
            if not tried:
                tried = True
                _try_all(path, head, name, types, mixed)
            if types[column] == before:
                _widen(column, types, mixed)


def _try_all(path: Path, head: CsvHead, name: str, types: dict[str, Any], mixed: list[str]) -> None:
    """Widen every column whose text cannot be cast to its type."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for frame in _stream(path, head, name, dict.fromkeys(types, pa.string())):
        for column in types:
            text = None
            while types[column] != pa.string():
                if text is None:
                    text = pc.utf8_trim_whitespace(frame[column].to_arrow())
                try:
                    pc.cast(text, types[column])
                    break
                except pa.ArrowInvalid:
                    _widen(column, types, mixed)


def _widen(column: str, types: dict[str, Any], mixed: list[str]) -> None:
    import pyarrow as pa

    if pa.types.is_integer(types[column]):
        types[column] = pa.float64()
    else:
        types[column] = pa.string()
        mixed.append(column)


def _plain_type(kind: Any) -> Any:
    import pyarrow as pa

    return pa.string() if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) else kind
