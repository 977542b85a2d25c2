"""CSV and TSV, by pyarrow's incremental reader: the separator is read off, and types hold for the whole file."""

from __future__ import annotations

import io
import re
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skerry.core.errors import DataError
from skerry.data.packed import MAX_UNPACKED
from skerry.data.table import Table, first_line, unique_names

if TYPE_CHECKING:
    import polars as pl

__all__ = ["csv_table", "spooled_csv"]

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
MISSING_TEXT = ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "?"]


def spooled_csv(stream: Any, separator: str | None, name: str) -> Table:
    """Read CSV from a stream that can be read only once, or is packed, through a temporary file.

    Arrow would read a Python file on a thread of its own, which on an error may outlive the interpreter.
    """
    handle, spool = tempfile.mkstemp(suffix=".csv")
    path = Path(spool)
    try:
        size = _copy(stream, handle, name)
        if size > MAX_UNPACKED:
            raise DataError(f"{name}: more than {MAX_UNPACKED >> 30} GiB came; give a plain file instead")
        if size == 0:
            raise DataError(f"{name}: nothing came" if stream is sys.stdin.buffer else f"{name}: the file is empty")
        table = csv_table(path, separator, name)
    except BaseException:
        path.unlink()
        raise
    weakref.finalize(table, path.unlink, missing_ok=True)
    return table


def _copy(stream: Any, handle: int, name: str) -> int:
    """Copy at most a little more than MAX_UNPACKED bytes to an open file; return how many."""
    size = 0
    try:
        with open(handle, "wb", buffering=0) as file:
            while size <= MAX_UNPACKED:
                try:
                    data = memoryview(stream.read(1 << 20))
                except OSError as error:
                    raise DataError(f"{name}: cannot be read ({error.strerror or error})") from None
                if not data:
                    break
                size += len(data)
                while data:  # a disk that fills up takes a part before it objects
                    data = data[file.write(data) :]
    except OSError as error:
        told = f"cannot be kept in the folder for temporary files, {tempfile.gettempdir()}"
        raise DataError(f"{name}: {told} ({error.strerror or error}); set TMPDIR to a larger one") from None
    return size


def csv_table(path: Path, separator: str | None, name: str) -> Table:
    """Open a plain text table; ``name`` stands for it in messages, ``separator`` None is read off the first lines."""
    import csv

    import polars as pl
    import pyarrow as pa
    from pyarrow import csv as pa_csv

    notes: list[str] = []
    with path.open("rb") as file:
        raw = file.read(1 << 20)
    if not raw.strip():
        raise DataError(f"{name}: the file is empty")
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{name}: is UTF-16 text; save it as UTF-8")
    if b"\x00" in raw[:4096]:
        raise DataError(f"{name}: is binary, not text; check its suffix")
    encoding = "utf8"
    cut = raw[: raw.rfind(b"\n") + 1] or raw
    try:
        head = cut.decode("utf-8-sig")
    except UnicodeDecodeError:
        head, encoding = cut.decode("latin-1"), "latin-1"
        notes.append("not UTF-8; read as Latin-1")
    sep = separator or _sniff(head, notes)
    reader = csv.reader(io.StringIO(head), delimiter=sep)
    try:
        header = [c.strip() for c in next(reader)]
        second = next(reader, None)
    except csv.Error as error:
        raise DataError(f"{name}: not a table of text ({error})") from None
    if not header:
        raise DataError(f"{name}: the first line is blank; it must name the columns")
    if separator and len(header) == 1 and (better := _separator(head)) not in (None, separator):
        raise DataError(f"{name}: no {separator!r} in the first line; it looks separated by {better!r}")
    if separator is None and len(header) == 1 and (other := _unexpected(head)):
        notes.append(
            f"only one column, {header[0]!r}, was found; if {other!r} separates columns, replace it by a comma"
        )
    unique_names(header, name)
    header = [c or f"column_{i}" for i, c in enumerate(header)]
    if second is None:
        raise DataError(f"{name}: has a header but no rows")
    # a row must fit in a block
    block = max(1 << 22, 4 * max(map(len, head.splitlines())))

    def stream(types: dict[str, Any]) -> Iterator[pl.DataFrame]:
        reader = None
        source = pa.OSFile(str(path))
        try:
            reader = pa_csv.open_csv(
                source,
                read_options=pa_csv.ReadOptions(
                    column_names=header, skip_rows=1, block_size=block, encoding=encoding, use_threads=True
                ),
                parse_options=pa_csv.ParseOptions(delimiter=sep, newlines_in_values=True),
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
                    yield pl.from_arrow(pa.Table.from_batches([batch]))
        except pa.ArrowInvalid as error:
            ragged = re.search(r"(?:Row #(\d+): )?Expected (\d+) columns, got (\d+)", str(error))
            if ragged:
                where = f"row {int(ragged[1]) - 2}" if ragged[1] else "a row"
                raise DataError(
                    f"{name}: {where} has {ragged[3]} fields, {ragged[2]} expected; check quoting and separator"
                ) from None
            raise DataError(f"{name}: {first_line(error)}") from None
        finally:
            if reader is not None:
                reader.close()
            source.close()

    try:
        types, mixed, n_rows = _settled_types(stream, header)
    except DataError as error:
        if encoding != "utf8" or "UTF8" not in str(error):
            raise
        encoding = "latin-1"
        notes.append("not UTF-8; read as Latin-1")
        types, mixed, n_rows = _settled_types(stream, header)
    schema = next(iter(stream(types))).schema
    if mixed:
        notes.append("numbers and text are mixed in " + ", ".join(repr(c) for c in mixed[:5]))
    return Table(name, dict(schema), lambda rows: stream(types), n_rows, notes)


def _settled_types(stream: Callable[[dict], Iterator], header: list[str]) -> tuple[dict[str, Any], list[str], int]:
    """Find types that hold for the whole file: infer on the first block, widen where a later one objects.

    Widening goes integer -> float -> text, one column an attempt, as the reader names them in its error.
    """
    import polars as pl
    import pyarrow as pa

    types: dict[str, Any] = {}
    mixed: list[str] = []
    while True:  # each round widens a column or ends
        n_rows = 0
        try:
            for frame in stream(types):
                n_rows += frame.height
                if pl.Binary in frame.dtypes:  # what the reader makes of text that is not UTF-8
                    raise DataError("invalid UTF8 data")
                if not types:
                    arrow = frame.to_arrow().schema
                    types = {f.name: pa.string() if pa.types.is_null(f.type) else _plain_type(f.type) for f in arrow}
        except DataError as error:
            found = re.search(r"In CSV column #(\d+)", str(error))
            column = header[int(found.group(1))] if found else None
            if column is None or not types or types[column] == pa.string():
                raise
            integer = pa.types.is_integer(types[column])
            types[column] = pa.float64() if integer else pa.string()
            if not integer:
                mixed.append(column)
            continue
        return types, mixed, n_rows


def _plain_type(kind: Any) -> Any:
    import pyarrow as pa

    return pa.string() if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) else kind


def _separator(head: str) -> str | None:
    """Return the separator that cuts all first lines into the same number (the larger the better) of fields."""
    import csv

    text = "\n".join(head.splitlines()[:50])
    widths: dict[str, int] = {}
    for s in SEPARATORS:
        try:
            found = {len(row) for row in csv.reader(io.StringIO(text), delimiter=s) if row}
        except csv.Error:
            continue
        if len(found) == 1 and min(found) > 1:
            widths[s] = min(found)
    return max(widths, key=lambda s: widths[s]) if widths else None


def _unexpected(head: str) -> str | None:
    """Return a character that might separate columns although no reader expects it."""
    lines = [line for line in head.splitlines()[:50] if line.strip()]
    often = {c: {line.count(c) for line in lines} for c in "^~: " if c in lines[0]}
    return next((c for c, counts in often.items() if len(counts) == 1), None)


def _sniff(head: str, notes: list[str]) -> str:
    first = head.splitlines()[0]
    # rows of unequal length: believe the header, and let the reader name the row
    best = _separator(head) or max(SEPARATORS, key=first.count)
    if best != ",":
        notes.append(f"columns are separated by {SEPARATORS[best]}")
    return best
