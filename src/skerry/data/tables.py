"""Read a table from anywhere, batch by batch: files, folders, globs, stdin, frames, arrays.

``open_table`` looks at as little as it can (header, schema); rows are read when asked for, and memory
is bounded by the batch. Whatever is wrong with a file is told with its name and a remedy.
"""

from __future__ import annotations

import glob
import io
import sys
from pathlib import Path
from typing import Any

from skerry.core.errors import DataError, ParameterError, nearest
from skerry.data.packed import GuardedGzip
from skerry.data.table import Table, unique_names
from skerry.data.table_arrow import arrow_table
from skerry.data.table_csv import MISSING_TEXT, csv_table, spooled_csv
from skerry.data.table_frames import object_table
from skerry.data.table_json import json_table
from skerry.data.table_numpy import npy_table, npz_table
from skerry.data.table_parquet import parquet_table
from skerry.data.table_sample import reservoir_sample

__all__ = ["MISSING_TEXT", "Table", "open_table", "reservoir_sample"]

FORMATS = ("csv", "tsv", "jsonl", "parquet", "arrow", "npy", "npz")
CSV_KINDS = (".csv", ".tsv", ".txt")
PARQUET_KINDS = (".parquet", ".pq")


def open_table(
    source: Any,
    *,
    format: str | None = None,
    columns: list[str] | None = None,
    separator: str | None = None,
    text: bool = False,
) -> Table:
    """Open a table.

    Parameters
    ----------
    source : str, Path or table
        A path to ``.csv``, ``.tsv``, ``.txt``, ``.jsonl``, ``.ndjson`` (each also ``.gz``), ``.parquet``,
        ``.arrow`` / ``.ipc`` / ``.feather``, ``.npy``, ``.npz`` (arrays ``X`` and maybe ``y``); a folder or a
        glob of Parquet files; ``"-"`` for CSV on stdin; a pandas, polars or pyarrow table, a 2-D NumPy
        array, a SciPy sparse matrix, or a :class:`Table`.
    format : str, optional
        ``csv``, ``tsv``, ``jsonl``, ``parquet``, ``arrow``, ``npy`` or ``npz`` for a file whose suffix does
        not tell (``.gz`` at the end is still understood).
    columns : list of str, optional
        Only these, in this order; all by default.
    separator : str, optional
        One character, of a text file; by default it is read off the first lines.
    text : bool, default False
        Leave the columns of CSV and TSV as they are written: no search for types, one reading less.

    Returns
    -------
    Table

    Raises
    ------
    DataError
        If the source is missing, empty, damaged, without columns, or has two columns of one name.

    Examples
    --------
    >>> import numpy as np
    >>> table = open_table(np.arange(6.0).reshape(3, 2))
    >>> table.columns, table.n_rows
    (['x0', 'x1'], 3)
    """
    if isinstance(source, Table):
        return source if columns is None else _choose(source, columns)
    if separator is not None and len(separator) != 1:
        raise ParameterError(f"separator must be one character, got {separator!r}")
    if format is not None and format not in FORMATS:
        raise ParameterError(f"unknown format {format!r}; {nearest(format, FORMATS)}")
    if isinstance(source, (str, Path)):
        try:
            table = _open_path(str(source), separator, format, text)
        except OSError as error:
            raise DataError(f"{source}: cannot be read ({error.strerror or error})") from None
    else:
        table = object_table(source)
    if not table.columns:
        raise DataError(f"{table.name}: has no columns")
    if table.n_rows == 0:
        raise DataError(f"{table.name}: has a header but no rows")
    return table if columns is None else _choose(table, columns)


def _choose(table: Table, columns: list[str]) -> Table:
    for c in columns:
        if c not in table.schema:
            raise DataError(f"{table.name}: no column {c!r}; {nearest(c, table.columns)}")
    unique_names(columns, "columns")
    schema = {c: table.schema[c] for c in columns}
    chosen = Table(
        table.name,
        schema,
        lambda rows: (frame.select(columns) for frame in table.batches(rows)),
        table.n_rows,
        table.notes,
    )
    chosen.files = table.files
    return chosen


def _open_path(text: str, separator: str | None, form: str | None, as_text: bool) -> Table:
    if text == "-":
        return spooled_csv(sys.stdin.buffer, separator, "standard input", as_text)
    if any(c in text for c in "*?[") and not Path(text).exists():
        found = sorted(p for p in glob.glob(text, recursive=True) if Path(p).is_file())
        if not found:
            raise DataError(f"{text}: no file matches")
        other = [p for p in found if not p.lower().endswith(PARQUET_KINDS)]
        if other:
            raise DataError(f"{text}: matches {other[0]}, but only Parquet files are read together; name one file")
        return _read_from(found, parquet_table(text, found))
    path = Path(text)
    if not path.exists():
        raise DataError(f"{text}: no such file or folder")
    if path.is_dir():
        found = sorted(str(p) for p in path.rglob("*.parquet"))
        if not found:
            raise DataError(f"{text}: the folder holds no .parquet file; give a file instead")
        return _read_from(found, parquet_table(text, found))
    if path.stat().st_size == 0:
        raise DataError(f"{text}: the file is empty")
    return _read_from([text], _open_file(path, text, separator, form, as_text))


def _read_from(files: list[str], table: Table) -> Table:
    table.files = [Path(p) for p in files]
    return table


def _open_file(path: Path, text: str, separator: str | None, form: str | None, as_text: bool) -> Table:
    suffixes = [s.lower() for s in path.suffixes]
    packed = bool(suffixes) and suffixes[-1] == ".gz"
    kind = (suffixes[-2] if packed and len(suffixes) > 1 else suffixes[-1]) if suffixes else ""
    kind = f".{form}" if form else kind
    if kind in CSV_KINDS:
        if packed:
            with io.BufferedReader(GuardedGzip(path, text), 1 << 20) as stream:
                return spooled_csv(stream, separator, text, as_text)
        return csv_table(path, separator, text, as_text)
    if kind in (".jsonl", ".ndjson", ".json"):
        return json_table(path, packed)
    if kind in PARQUET_KINDS:
        return parquet_table(text, [text])
    if kind in (".arrow", ".ipc", ".feather"):
        return arrow_table(path)
    if kind == ".npy":
        return npy_table(path)
    if kind == ".npz":
        return npz_table(path)
    raise DataError(f"{text}: unknown kind {kind or '(no suffix)'!r}; use .csv .tsv .jsonl .parquet .arrow .npy .npz")
