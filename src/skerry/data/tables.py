"""Read a table from anywhere, batch by batch: files, folders, globs, stdin, frames, arrays.

``open_table`` looks at as little as it can (header, schema); rows are read when they are asked for, and memory
is bounded by the batch. Whatever is wrong with a file is told with its name and a remedy.
"""

from __future__ import annotations

import glob
import gzip
import io
import shutil
import sys
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skerry.core.errors import DataError

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Table", "open_table", "reservoir_sample"]

MAX_UNPACKED = 32 << 30  # bytes that a compressed file may grow to
MAX_RATIO = 1200  # of unpacked to packed bytes; deflate cannot pass 1,032 on honest data
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
CSV_KINDS = (".csv", ".tsv", ".txt")
MISSING_TEXT = ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "?"]


class Table:
    """A named source of polars frames.

    Attributes
    ----------
    name : str
        What was opened, for messages.
    columns : list of str
    schema : dict of str to polars data type
    n_rows : int or None
        None where only a full read would tell.
    notes : list of str
        What was found out about the source, for example its separator.
    """

    def __init__(
        self,
        name: str,
        schema: dict[str, Any],
        batches: Callable[[int], Iterator[pl.DataFrame]],
        n_rows: int | None = None,
        notes: list[str] | None = None,
    ) -> None:
        self.name = name
        self.schema = schema
        self.columns = list(schema)
        self.n_rows = n_rows
        self.notes = notes or []
        self._batches = batches

    def batches(self, rows: int = 65_536) -> Iterator[pl.DataFrame]:
        """Yield polars frames of at most ``rows`` rows; the source can be read again."""
        import polars as pl

        try:
            for frame in self._batches(rows):
                for start in range(0, frame.height, rows):
                    yield frame.slice(start, rows)
        except DataError:
            raise
        except (pl.exceptions.PolarsError, OSError, EOFError, zlib.error, ValueError) as error:
            raise DataError(f"{self.name}: {_first_line(error)}; the file is damaged or not what it seems") from None

    def read(self) -> pl.DataFrame:
        """Return the whole table as one polars frame."""
        import polars as pl

        parts = list(self.batches(1 << 20))
        return pl.concat(parts) if parts else pl.DataFrame(schema=self.schema)


def open_table(source: Any, *, separator: str | None = None) -> Table:
    """Open a table.

    Parameters
    ----------
    source : str, Path or table
        A path to ``.csv``, ``.tsv``, ``.txt``, ``.jsonl``, ``.ndjson`` (each also ``.gz``), ``.parquet``,
        ``.arrow`` / ``.ipc`` / ``.feather``, ``.npy``, ``.npz`` (arrays ``X`` and optionally ``y``); a folder or a
        glob of Parquet files; ``"-"`` for CSV on stdin; a pandas, polars or pyarrow table, a two-dimensional NumPy
        array, a SciPy sparse matrix, or a :class:`Table`.
    separator : str, optional
        Of a text file; by default it is read off the first lines.

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
        return source
    if isinstance(source, (str, Path)):
        table = _open_path(str(source), separator)
    else:
        table = _open_object(source)
    if not table.columns:
        raise DataError(f"{table.name}: has no columns")
    if table.n_rows == 0:
        raise DataError(f"{table.name}: has a header but no rows")
    return table


def reservoir_sample(table: Table, n: int, seed: int | None) -> tuple[pl.DataFrame, NDArray[np.int64]]:
    """Return a uniform sample of at most ``n`` rows and their positions, in one pass.

    Each row draws a uniform key and the ``n`` smallest keys are kept (the batched form of a reservoir), so the
    sample does not depend on the batch size.
    """
    import polars as pl

    rng = np.random.default_rng(seed)
    kept: pl.DataFrame | None = None
    keys, rows = np.empty(0), np.empty(0, dtype=np.int64)
    start, bar = 0, np.inf
    for frame in table.batches():
        key = rng.random(frame.height)
        take = np.flatnonzero(key < bar)
        if take.size:
            part = frame[take]
            kept = part if kept is None else pl.concat([kept, part])
            keys, rows = np.r_[keys, key[take]], np.r_[rows, start + take]
            if keys.size > n:
                best = np.sort(np.argpartition(keys, n - 1)[:n])
                kept, keys, rows = kept[best], keys[best], rows[best]
            if keys.size == n:
                bar = keys.max()
        start += frame.height
    if kept is None:
        raise DataError(f"{table.name}: has a header but no rows")
    return kept.rechunk(), rows


# ---- paths ---------------------------------------------------------------------------------------------------


def _open_path(text: str, separator: str | None) -> Table:
    if text == "-":
        return _open_stdin(separator)
    if any(c in text for c in "*?[") and not Path(text).exists():
        found = sorted(p for p in glob.glob(text, recursive=True) if Path(p).is_file())
        if not found:
            raise DataError(f"{text}: no file matches")
        return _parquet_table(text, found)
    path = Path(text)
    if not path.exists():
        raise DataError(f"{text}: no such file or folder")
    if path.is_dir():
        found = sorted(str(p) for p in path.rglob("*.parquet"))
        if not found:
            raise DataError(f"{text}: the folder holds no .parquet file; give a file instead")
        return _parquet_table(text, found)
    if path.stat().st_size == 0:
        raise DataError(f"{text}: the file is empty")
    suffixes = [s.lower() for s in path.suffixes]
    packed = bool(suffixes) and suffixes[-1] == ".gz"
    kind = (suffixes[-2] if packed and len(suffixes) > 1 else suffixes[-1]) if suffixes else ""
    if kind in CSV_KINDS:
        return _csv_table(path, packed, separator or ("\t" if kind == ".tsv" else None))
    if kind in (".jsonl", ".ndjson", ".json"):
        return _json_table(path, packed)
    if kind in (".parquet", ".pq"):
        return _parquet_table(text, [text])
    if kind in (".arrow", ".ipc", ".feather"):
        return _arrow_table(path)
    if kind == ".npy":
        return _npy_table(path)
    if kind == ".npz":
        return _npz_table(path)
    raise DataError(
        f"{text}: unknown kind {kind or '(no suffix)'!r}; use .csv, .tsv, .jsonl, .parquet, .arrow, .npy or .npz"
    )


def _open_stdin(separator: str | None) -> Table:
    spool = tempfile.NamedTemporaryFile(suffix=".csv", delete=False)  # noqa: SIM115 - outlives this call
    with spool:
        shutil.copyfileobj(sys.stdin.buffer, spool, 1 << 20)
    path = Path(spool.name)
    if path.stat().st_size == 0:
        path.unlink()
        raise DataError("standard input: nothing came")
    try:
        table = _csv_table(path, False, separator, name="standard input")
    except BaseException:
        path.unlink()
        raise
    weakref.finalize(table, path.unlink, missing_ok=True)
    return table


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _open_text(path: Path, packed: bool, name: str) -> io.BufferedIOBase:
    return _Guarded(path, name) if packed else path.open("rb")  # type: ignore[return-value]


class _Guarded(io.RawIOBase):
    """A gzip stream that stops a bomb and names a truncated file."""

    def __init__(self, path: Path, name: str) -> None:
        self.inner = gzip.open(path, "rb")  # noqa: SIM115 - closed in close()
        self.name_, self.limit, self.done = name, min(MAX_UNPACKED, path.stat().st_size * MAX_RATIO + (1 << 20)), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self.inner.read(len(buffer))
        except EOFError:
            raise DataError(f"{self.name_}: the gzip file is truncated; fetch it again") from None
        except (OSError, zlib.error) as error:
            raise DataError(f"{self.name_}: not a sound gzip file ({error}); fetch it again") from None
        self.done += len(data)
        if self.done > self.limit:
            raise DataError(f"{self.name_}: unpacks to more than {self.limit >> 20} MiB; refused as a bomb")
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self.inner.close()
        super().close()


def _sniff(head: str, name: str, notes: list[str]) -> str:
    lines = [line for line in head.splitlines()[:50] if line.strip()]
    counts = {s: [line.count(s) for line in lines] for s in SEPARATORS}
    if counts[","] and counts[","][0] > 0 and min(counts[","]) > 0:
        return ","
    best = max(SEPARATORS, key=lambda s: (min(counts[s]) > 0, counts[s][0] if len(set(counts[s])) == 1 else 0))
    if counts[best][0] == 0 or min(counts[best]) == 0:
        return ","
    if best != ",":
        notes.append(f"columns are separated by {SEPARATORS[best]}")
    return best


def _csv_table(path: Path, packed: bool, separator: str | None, name: str | None = None) -> Table:
    import csv

    import polars as pl
    import pyarrow as pa
    from pyarrow import csv as pa_csv

    name = name or str(path)
    notes: list[str] = []
    with io.BufferedReader(_open_text(path, packed, name), 1 << 20) if packed else path.open("rb") as file:
        raw = file.read(1 << 20)
    if not raw.strip():
        raise DataError(f"{name}: the file is empty")
    if b"\x00" in raw[:4096]:
        raise DataError(f"{name}: is binary, not text; check its suffix")
    encoding = "utf8"
    cut = raw[: raw.rfind(b"\n") + 1] or raw
    try:
        head = cut.decode("utf-8-sig")
    except UnicodeDecodeError:
        head, encoding = cut.decode("latin-1"), "latin-1"
        notes.append("not UTF-8; read as Latin-1")
    sep = separator or _sniff(head, name, notes)
    reader = csv.reader(io.StringIO(head), delimiter=sep)
    header = [c.strip() for c in next(reader)]
    _unique(header, name)
    header = [c or f"column_{i}" for i, c in enumerate(header)]
    if next(reader, None) is None:
        raise DataError(f"{name}: has a header but no rows")
    bad: list[Any] = []

    def on_bad(row: Any) -> str:
        bad.append(row)
        return "error"

    def stream(types: dict[str, Any]) -> Iterator[pl.DataFrame]:
        reader = None
        source = _open_text(path, packed, name)
        try:
            reader = pa_csv.open_csv(
                pa.PythonFile(source, mode="r") if packed else source,
                read_options=pa_csv.ReadOptions(
                    column_names=header, skip_rows=1, block_size=1 << 22, encoding=encoding, use_threads=True
                ),
                parse_options=pa_csv.ParseOptions(
                    delimiter=sep, newlines_in_values=True, invalid_row_handler=on_bad
                ),
                convert_options=pa_csv.ConvertOptions(
                    null_values=MISSING_TEXT, strings_can_be_null=True, column_types=types, true_values=["true", "True", "TRUE"],
                    false_values=["false", "False", "FALSE"],
                ),
            )
            for batch in reader:
                if batch.num_rows:
                    yield pl.from_arrow(pa.Table.from_batches([batch]))
        except pa.ArrowInvalid as error:
            if bad:
                row = bad[0]
                where = f"row {row.number - 2}" if row.number else "a row"
                raise DataError(
                    f"{name}: {where} has {row.actual_columns} fields, {row.expected_columns} expected; "
                    "check quoting and separator"
                ) from None
            raise DataError(f"{name}: {_first_line(error)}") from None
        finally:
            source.close()

    types, mixed = _settled_types(stream, header)
    schema = next(iter(stream(types))).schema
    if mixed:
        notes.append("numbers and text are mixed in " + ", ".join(repr(c) for c in mixed[:5]))
    return Table(name, dict(schema), lambda rows: stream(types), notes=notes)


def _settled_types(
    stream: Callable[[dict], Iterator], header: list[str]
) -> tuple[dict[str, Any], list[str]]:
    """Find types that hold for the whole file: infer on the first block, then widen where a later block objects.

    Widening goes integer -> float -> text, one column an attempt, as the reader names them in its error.
    """
    import re

    import pyarrow as pa

    types: dict[str, Any] = {}
    mixed: list[str] = []
    for _ in range(2 * len(header) + 1):
        try:
            for frame in stream(types):
                if not types:
                    arrow = frame.to_arrow().schema
                    types = {f.name: pa.string() if pa.types.is_null(f.type) else _plain_type(f.type) for f in arrow}
        except DataError as error:
            found = re.search(r"In CSV column #(\d+)", str(error))
            if not found:
                raise
            column = header[int(found.group(1))]
            integer = types and pa.types.is_integer(types[column])
            types[column] = pa.float64() if integer else pa.string()
            if not integer:
                mixed.append(column)
            continue
        break
    return types, mixed


def _plain_type(kind: Any) -> Any:
    import pyarrow as pa

    return pa.string() if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) else kind


def _unique(columns: list[str], name: str) -> None:
    seen: set[str] = set()
    for c in columns:
        if c and c in seen:
            raise DataError(f"{name}: two columns are named {c!r}; rename one")
        seen.add(c)


def _json_table(path: Path, packed: bool) -> Table:
    import polars as pl

    name = str(path)

    def stream(rows: int) -> Iterator[pl.DataFrame]:
        with io.BufferedReader(_open_text(path, packed, name), 1 << 20) if packed else path.open("rb") as file:  # type: ignore[type-var]
            while lines := file.readlines(1 << 23):
                try:
                    yield pl.read_ndjson(b"".join(lines), schema=schema, ignore_errors=False)
                except pl.exceptions.PolarsError as error:
                    raise DataError(
                        f"{name}: not JSON lines ({_first_line(error)}); one object a line is expected"
                    ) from None

    schema = None
    merged: dict[str, Any] = {}
    for frame in stream(0):
        for c, t in frame.schema.items():
            merged[c] = t if c not in merged or merged[c] == t else _wider(merged[c], t)
    if not merged:
        raise DataError(f"{name}: the file is empty")
    schema = merged
    return Table(name, merged, stream)


def _wider(a: Any, b: Any) -> Any:
    import polars as pl

    if a == pl.Null:
        return b
    if b == pl.Null:
        return a
    return pl.Float64 if a.is_numeric() and b.is_numeric() else pl.String


def _parquet_table(name: str, paths: list[str]) -> Table:
    import polars as pl
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema, n_rows = None, 0
    for path in paths:
        try:
            with pq.ParquetFile(path) as file:
                _unique(file.schema_arrow.names, path)
                n_rows += file.metadata.num_rows
                if schema is None:
                    schema = file.schema_arrow
                elif file.schema_arrow.names != schema.names:
                    raise DataError(f"{path}: its columns differ from those of {paths[0]}")
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{path}: not a whole Parquet file ({_first_line(error)}); fetch it again") from None
    assert schema is not None

    def stream(rows: int) -> Iterator[pl.DataFrame]:
        for path in paths:
            with pq.ParquetFile(path) as file:
                try:
                    for batch in file.iter_batches(batch_size=rows):
                        yield pl.from_arrow(pa.Table.from_batches([batch]))
                except (pa.ArrowInvalid, OSError) as error:
                    raise DataError(f"{path}: damaged ({_first_line(error)}); fetch it again") from None

    return Table(name, dict(pl.from_arrow(schema.empty_table()).schema), stream, n_rows)


def _arrow_table(path: Path) -> Table:
    import polars as pl

    try:
        frame = pl.scan_ipc(path).collect()
    except (pl.exceptions.PolarsError, OSError, RuntimeError) as error:
        raise DataError(f"{path}: not a whole Arrow IPC file ({_first_line(error)}); fetch it again") from None
    return _frame_table(str(path), frame)


def _npy_table(path: Path) -> Table:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path}: not a plain .npy array ({_first_line(error)})") from None
    return _array_table(str(path), array)


def _npz_table(path: Path) -> Table:
    try:
        with zipfile.ZipFile(path) as archive:
            declared, packed = sum(i.file_size for i in archive.infolist()), path.stat().st_size
            if declared > MAX_UNPACKED or declared > packed * MAX_RATIO + (1 << 20):
                raise DataError(f"{path}: unpacks to {declared >> 20:,} MiB; refused as a bomb")
        with np.load(path, allow_pickle=False) as z:
            if "X" not in z:
                raise DataError(f"{path}: holds {', '.join(z.files) or 'nothing'}, but no array X")
            X = z["X"]
            y = z["y"] if "y" in z else None
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: not a whole .npz of plain arrays ({_first_line(error)})") from None
    return _array_table(str(path), X, y)


# ---- objects in memory ---------------------------------------------------------------------------------------


def _open_object(source: Any) -> Table:
    import polars as pl

    name = f"<{type(source).__name__}>"
    if isinstance(source, pl.LazyFrame):
        source = source.collect()
    if isinstance(source, pl.DataFrame):
        return _frame_table(name, source)
    if hasattr(source, "tocsr") and hasattr(source, "shape"):
        return _sparse_table(name, source.tocsr())
    if isinstance(source, np.ndarray):
        return _array_table(name, source)
    import narwhals as nw

    try:
        columns = [str(c) for c in source.columns] if hasattr(source, "columns") and hasattr(source, "index") else []
        _unique(columns, name)
        return _frame_table(name, nw.from_native(source, eager_only=True).to_polars())
    except TypeError:
        pass
    try:
        return _array_table(name, np.asarray(source))
    except ValueError as error:
        raise DataError(f"cannot read a table from {type(source).__name__}: {_first_line(error)}") from None


def _frame_table(name: str, frame: pl.DataFrame) -> Table:
    return Table(name, dict(frame.schema), lambda rows: iter([frame] if frame.height else []), frame.height)


def _array_table(name: str, X: np.ndarray, y: np.ndarray | None = None) -> Table:
    import polars as pl

    if X.dtype.kind not in "fiub":
        raise DataError(f"{name}: an array of numbers is needed, got dtype {X.dtype}")
    if X.ndim != 2:
        raise DataError(f"{name}: a two-dimensional array is needed, got shape {X.shape}")
    if y is not None and np.shape(y.ravel())[0] != X.shape[0]:
        raise DataError(f"{name}: X has {X.shape[0]} rows, y has {y.size}")
    names = [f"x{j}" for j in range(X.shape[1])]

    def stream(rows: int) -> Iterator[pl.DataFrame]:
        for start in range(0, X.shape[0], rows):
            part = np.ascontiguousarray(np.asarray(X[start : start + rows]).T)
            frame = pl.DataFrame(dict(zip(names, part, strict=True)))
            yield frame if y is None else frame.with_columns(pl.Series("y", y.ravel()[start : start + rows]))

    empty = pl.DataFrame({c: np.empty(0, X.dtype) for c in names} | ({} if y is None else {"y": y.ravel()[:0]}))
    return Table(name, dict(empty.schema), stream, X.shape[0])


def _sparse_table(name: str, X: Any) -> Table:
    import polars as pl

    names = [f"x{j}" for j in range(X.shape[1])]

    def stream(rows: int) -> Iterator[pl.DataFrame]:
        for start in range(0, X.shape[0], rows):
            part = np.ascontiguousarray(X[start : start + rows].toarray().T)
            yield pl.DataFrame(dict(zip(names, part, strict=True)))

    return Table(name, dict.fromkeys(names, pl.Float64), stream, X.shape[0])
