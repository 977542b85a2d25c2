"""JSON lines, one object a line: keys may come and go, and types widen to what the whole file holds.

Columns stand in the order of the first line; keys that come later follow by name. A key whose values are of several
kinds (numbers and text, text and objects) becomes text; whole numbers and fractions become floats.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skerry.core.errors import DataError
from skerry.data.packed import GuardedGzip
from skerry.data.table import Table, first_line, unique_names

if TYPE_CHECKING:
    import polars as pl

__all__ = ["json_table"]

BLOCK = 1 << 23  # bytes of whole lines that are parsed together


def json_table(path: Path, packed: bool) -> Table:
    """Open a file of one JSON object a line, which may be ``packed`` by gzip."""
    name = str(path)
    order: list[str] = []
    schema: dict[str, Any] = {}
    n_rows = 0
    for at, lines in _blocks(path, packed, name):
        if not order:
            order = _first_keys(lines, name, at)
        frame = _parsed(lines, None, name, at)
        n_rows += frame.height
        for c, t in frame.schema.items():
            schema[c] = t if schema.get(c, t) == t else _wider(schema[c], t)
    if not n_rows:
        raise DataError(f"{name}: the file is empty")
    order += sorted(schema.keys() - set(order))
    schema = {c: schema[c] for c in order if c in schema}

    def stream(rows: int) -> Iterator[pl.DataFrame]:
        for at, lines in _blocks(path, packed, name):
            yield _parsed(lines, schema, name, at)

    return Table(name, schema, stream, n_rows)


def _blocks(path: Path, packed: bool, name: str) -> Iterator[tuple[int, list[bytes]]]:
    """Yield the number of the first line, from 1, and whole lines."""
    at = 1
    with io.BufferedReader(GuardedGzip(path, name), 1 << 20) if packed else path.open("rb") as file:
        while lines := file.readlines(BLOCK):
            if at == 1:
                lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")  # Windows marks UTF-8 so
            yield at, lines
            at += len(lines)


def _parsed(lines: list[bytes], schema: dict[str, Any] | None, name: str, at: int) -> pl.DataFrame:
    import polars as pl

    data = b"".join(lines)
    try:
        return pl.read_ndjson(data, schema=schema, infer_schema_length=None)
    except pl.exceptions.PolarsError as error:
        told = first_line(error)
    if schema is None:  # kinds that polars does not reconcile, or a line that is no object
        try:
            return pl.read_ndjson(data, schema=_kinds(lines, name, at))
        except pl.exceptions.PolarsError as error:
            told = first_line(error)
    raise DataError(f"{name}: not JSON lines ({told}); one object a line is expected")


def _object(line: bytes, name: str, at: int, hook: Any = None) -> Any:
    try:
        found = json.loads(line, object_pairs_hook=hook, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{name}: not JSON lines (line {at}: {first_line(error)}); one object a line is expected"
        ) from None
    if not line.lstrip().startswith(b"{"):
        raise DataError(f"{name}: not JSON lines (line {at} is no object); one object a line is expected")
    return found


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no JSON; write null")


def _first_keys(lines: list[bytes], name: str, at: int) -> list[str]:
    for i, line in enumerate(lines):
        if line.strip():
            pairs = _object(line, name, at + i, hook=lambda pairs: pairs)
            keys = [k for k, _ in pairs]
            unique_names(keys, name)
            return keys
    return []


def _kinds(lines: list[bytes], name: str, at: int) -> dict[str, Any]:
    """Find the type of each key, line by line; the first line that is no object is named."""
    import polars as pl

    types = {bool: pl.Boolean, int: pl.Int64, float: pl.Float64}
    found: dict[str, Any] = {}
    for i, line in enumerate(lines):
        if not line.strip():
            continue
        for key, value in _object(line, name, at + i).items():
            kind = pl.Null if value is None else types.get(type(value), pl.String)
            found[key] = kind if found.get(key, kind) == kind else _wider(found[key], kind)
    return found


def _wider(a: Any, b: Any) -> Any:
    import polars as pl

    if a == pl.Null:
        return b
    if b == pl.Null:
        return a
    return pl.Float64 if a.is_numeric() and b.is_numeric() else pl.String
