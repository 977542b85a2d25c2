"""Read a table from anywhere, batch by batch: files, folders, globs, stdin, frames, arrays.

``open_table`` looks at as little as it can (header, schema); rows are read when asked for, and memory
is bounded by the batch. Whatever is wrong with a file is told with its name and a remedy.
"""

from __future__ import annotations

import glob
import gzip
import io
import math
import re
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

from skerry.core.errors import DataError, ParameterError, nearest

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Table", "open_table", "reservoir_sample"]

MAX_UNPACKED = 32 << 30  # bytes that a compressed file may grow to
MAX_RATIO = 200  # of unpacked to packed bytes, beyond FREE_BYTES; honest tables stay far below
FREE_BYTES = 1 << 30
MAX_CELLS = 1 << 25  # in one batch: wide tables come in fewer rows
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
FORMATS = ("csv", "tsv", "jsonl", "parquet", "arrow", "npy", "npz")
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

        if rows < 1:
            raise ParameterError(f"batches need at least one row, got {rows}")
        rows = min(rows, max(64, MAX_CELLS // max(1, len(self.columns))))
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


def open_table(
    source: Any,
    *,
    format: str | None = None,
    columns: list[str] | None = None,
    separator: str | None = None,
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
            table = _open_path(str(source), separator, format)
        except OSError as error:
            raise DataError(f"{source}: cannot be read ({error.strerror or error})") from None
    else:
        table = _open_object(source)
    if not table.columns:
        raise DataError(f"{table.name}: has no columns")
    if table.n_rows == 0:
        raise DataError(f"{table.name}: has a header but no rows")
    return table if columns is None else _choose(table, columns)


def _choose(table: Table, columns: list[str]) -> Table:
    for c in columns:
        if c not in table.schema:
            raise DataError(f"{table.name}: no column {c!r}; {nearest(c, table.columns)}")
    _unique(columns, "columns")
    schema = {c: table.schema[c] for c in columns}
    return Table(
        table.name,
        schema,
        lambda rows: (frame.select(columns) for frame in table.batches(rows)),
        table.n_rows,
        table.notes,
    )


def reservoir_sample(table: Table, n: int, seed: int | None) -> tuple[pl.DataFrame, NDArray[np.int64]]:
    """Return a uniform sample of at most ``n`` rows and their positions, in one pass.

    Each row draws a uniform key and the ``n`` smallest keys are kept (a reservoir in batches), so the
    sample does not depend on the batch size.
    """
    import polars as pl

    if n < 1:
        raise ParameterError(f"a sample needs at least one row, got n={n}")
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


# ---- paths -------------------------------------------------------------------------------------------------


def _open_path(text: str, separator: str | None, form: str | None) -> Table:
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
    kind = f".{form}" if form else kind
    if kind in CSV_KINDS:
        if packed:
            with io.BufferedReader(_Guarded(path, text), 1 << 20) as stream:
                return _spooled_csv(stream, separator, text)
        return _csv_table(path, separator, text)
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
    raise DataError(f"{text}: unknown kind {kind or '(no suffix)'!r}; use .csv .tsv .jsonl .parquet .arrow .npy .npz")


def _open_stdin(separator: str | None) -> Table:
    return _spooled_csv(sys.stdin.buffer, separator, "standard input")


def _spooled_csv(stream: Any, separator: str | None, name: str) -> Table:
    """Read CSV from a stream that can be read only once, or is packed, through a temporary file.

    Arrow would read a Python file on a thread of its own, which on an error may outlive the interpreter.
    """
    spool = tempfile.NamedTemporaryFile(suffix=".csv", delete=False)
    path = Path(spool.name)
    try:
        with spool:
            size = 0
            while size <= MAX_UNPACKED and (data := stream.read(1 << 20)):
                size += spool.write(data)
        if size > MAX_UNPACKED:
            raise DataError(f"{name}: more than {MAX_UNPACKED >> 30} GiB came; give a plain file instead")
        if size == 0:
            raise DataError(f"{name}: nothing came" if stream is sys.stdin.buffer else f"{name}: the file is empty")
        table = _csv_table(path, separator, name)
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
        self.inner = gzip.open(path, "rb")
        self.name_, self.done = name, 0
        self.limit = min(MAX_UNPACKED, max(FREE_BYTES, path.stat().st_size * MAX_RATIO))

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
            raise DataError(f"{self.name_}: unpacks to more than {self.limit >> 20} MiB; unpack it if you trust it")
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self.inner.close()
        super().close()


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


def _sniff(head: str, notes: list[str]) -> str:
    first = head.splitlines()[0]
    # rows of unequal length: believe the header, and let the reader name the row
    best = _separator(head) or max(SEPARATORS, key=first.count)
    if best != ",":
        notes.append(f"columns are separated by {SEPARATORS[best]}")
    return best


def _csv_table(path: Path, separator: str | None, name: str) -> Table:
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
    _unique(header, name)
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
            raise DataError(f"{name}: {_first_line(error)}") from None
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
                for field in file.schema_arrow:
                    if field.type != schema.field(field.name).type:
                        raise DataError(
                            f"{path}: column {field.name!r} is {field.type}, "
                            f"but {schema.field(field.name).type} in {paths[0]}"
                        )
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
            except (pa.ArrowInvalid, OSError) as error:
                raise DataError(f"{path}: not a whole Arrow IPC file ({_first_line(error)}); fetch it again") from None

    def stream(rows: int) -> Iterator[pl.DataFrame]:
        batches = parts()
        next(batches)
        for batch in batches:
            yield pl.from_arrow(pa.Table.from_batches([batch]))

    opened = parts()
    schema = next(opened)
    _unique(schema.names, str(path))
    n_rows = sum(batch.num_rows for batch in opened)
    return Table(str(path), dict(pl.from_arrow(schema.empty_table()).schema), stream, n_rows)


def _npy_table(path: Path) -> Table:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, OverflowError, SyntaxError) as error:
        raise DataError(f"{path}: not a whole .npy file of numbers ({_first_line(error)})") from None
    return _array_table(str(path), array)


_NPZ_DAMAGE = (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError)


def _npz_table(path: Path) -> Table:
    """Read headers before anything is allocated, and rows as they are asked for."""
    name, packed = str(path), path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            held = {i.filename.removesuffix(".npy"): i for i in archive.infolist()}
            if "X" not in held:
                raise DataError(f"{name}: holds {', '.join(held) or 'nothing'}, but no array X")
            declared = sum(held[k].file_size for k in ("X", "y") if k in held)
            if declared > MAX_UNPACKED or declared > max(FREE_BYTES, packed * MAX_RATIO):
                raise DataError(
                    f"{name}: unpacks to {declared >> 20:,} MiB; refused as a bomb, save it as .npy instead"
                )
            shape, fortran, dtype = _npy_header(archive, held["X"], name)
            _check_array(name, dtype, shape)
            y = None
            if "y" in held:
                _npy_header(archive, held["y"], name)
                y = _npz_member(archive, held["y"]).ravel()
                if y.size != shape[0] or y.dtype.kind not in "fiubU":
                    raise DataError(f"{name}: X has {shape[0]} rows, y has {y.size} of dtype {y.dtype}")
            whole = _npz_member(archive, held["X"]) if fortran else None
    except DataError:
        raise
    except _NPZ_DAMAGE as error:
        raise DataError(f"{name}: not a whole .npz of plain arrays ({_first_line(error)})") from None
    if whole is not None:
        return _array_table(name, whole, y)

    def blocks(rows: int) -> Iterator[NDArray]:
        try:
            with zipfile.ZipFile(path) as archive, archive.open(held["X"]) as member:
                _member_header(member)
                for start in range(0, shape[0], rows):
                    n = min(rows, shape[0] - start)
                    raw = member.read(n * shape[1] * dtype.itemsize)
                    yield np.frombuffer(raw, dtype=dtype).reshape(n, shape[1])
        except _NPZ_DAMAGE as error:
            raise DataError(f"{name}: not a whole .npz of plain arrays ({_first_line(error)})") from None

    return _numbers_table(name, shape, dtype, blocks, y)


def _member_header(member: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(member)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(member)
    return np.lib.format.read_array_header_2_0(member)


def _npy_header(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    with archive.open(info) as member:
        shape, fortran, dtype = _member_header(member)
        size = math.prod(shape) * dtype.itemsize
        if dtype.hasobject:
            raise DataError(f"{name}: {info.filename} holds Python objects, which are never read; save numbers")
        if size != info.file_size - member.tell():
            raise DataError(f"{name}: {info.filename} declares {size} bytes, which the file does not hold")
    return shape, fortran, dtype


def _npz_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray:
    with archive.open(info) as member:
        return np.lib.format.read_array(member, allow_pickle=False)


# ---- objects in memory -------------------------------------------------------------------------------------


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
    if hasattr(source, "column_names"):  # pyarrow
        _unique([str(c) for c in source.column_names], name)
    if hasattr(source, "columns") and hasattr(source, "iloc"):
        return _frame_table(name, _from_pandas(source, name))
    import narwhals as nw

    try:
        return _frame_table(name, nw.from_native(source, eager_only=True).to_polars())
    except TypeError:
        pass
    try:
        return _array_table(name, np.asarray(source))
    except ValueError as error:
        raise DataError(f"cannot read a table from {type(source).__name__}: {_first_line(error)}") from None


def _from_pandas(source: Any, name: str) -> pl.DataFrame:
    """Column by column, so that an object column of mixed types becomes text and the others stay."""
    import polars as pl
    import pyarrow as pa

    names = [str(c) for c in source.columns]
    _unique(names, name)
    out = {}
    for j, column in enumerate(names):
        values = source.iloc[:, j]
        try:
            out[column] = pl.Series(column, pa.Array.from_pandas(values))
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
            missing = values.isna().to_numpy()
            text = [None if m else str(v) for v, m in zip(values, missing, strict=True)]
            out[column] = pl.Series(column, text, dtype=pl.String)
    return pl.DataFrame(out)


def _frame_table(name: str, frame: pl.DataFrame) -> Table:
    return Table(name, dict(frame.schema), lambda rows: iter([frame] if frame.height else []), frame.height)


def _check_array(name: str, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    if dtype.kind not in "fiub":
        raise DataError(f"{name}: an array of numbers is needed, got dtype {dtype}")
    if len(shape) != 2:
        raise DataError(f"{name}: a two-dimensional array is needed, got shape {tuple(shape)}")


def _array_table(name: str, X: np.ndarray, y: np.ndarray | None = None) -> Table:
    _check_array(name, X.dtype, X.shape)

    def blocks(rows: int) -> Iterator[NDArray]:
        for start in range(0, X.shape[0], rows):
            yield np.asarray(X[start : start + rows])

    return _numbers_table(name, X.shape, X.dtype, blocks, y)


def _sparse_table(name: str, X: Any) -> Table:
    _check_array(name, X.dtype, X.shape)

    def blocks(rows: int) -> Iterator[NDArray]:
        for start in range(0, X.shape[0], rows):
            yield X[start : start + rows].toarray()

    return _numbers_table(name, X.shape, X.dtype, blocks, None)


def _numbers_table(
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype,
    blocks: Callable[[int], Iterator[NDArray]],
    y: NDArray | None,
) -> Table:
    """Name the columns of a matrix x0, x1, ... in a type that polars holds (no float16, no foreign order)."""
    import polars as pl

    names = [f"x{j}" for j in range(shape[1])]
    if dtype.kind == "f" and dtype.itemsize not in (4, 8):
        native = np.dtype(np.float32 if dtype.itemsize < 4 else np.float64)
    else:
        native = dtype.newbyteorder("=")

    def frame(block: NDArray, labels: NDArray | None) -> pl.DataFrame:
        columns = dict(zip(names, np.ascontiguousarray(block.T, dtype=native), strict=True))
        return pl.DataFrame(columns if labels is None else columns | {"y": labels})

    def stream(rows: int) -> Iterator[pl.DataFrame]:
        start = 0
        for block in blocks(rows):
            yield frame(block, None if y is None else y[start : start + len(block)])
            start += len(block)

    empty = frame(np.empty((0, shape[1]), native), None if y is None else y[:0])
    return Table(name, dict(empty.schema), stream, shape[0])
