"""Matrices: NPY and NPZ files, whose headers are checked before memory is taken, NumPy arrays and SciPy sparse."""

from __future__ import annotations

import math
import os
import struct
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skerry.core.errors import DataError
from skerry.data.packed import copy_to_spool, most_unpacked
from skerry.data.table import Table, first_line

if TYPE_CHECKING:
    import polars as pl

__all__ = ["array_table", "npy_table", "npz_table", "sparse_table"]


_DAMAGE = (  # whatever a damaged or hostile file makes the readers raise
    ArithmeticError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


def npy_table(path: Path) -> Table:
    """Open an ``.npy`` of a numeric matrix, mapped into memory; pickled objects are refused."""
    name = str(path)
    try:
        with path.open("rb") as file:
            shape, fortran, dtype = _header(file, path.stat().st_size, name)
            start = file.tell()
        _check_array(name, dtype, shape)
        if math.prod(shape) == 0:  # which cannot be mapped
            return array_table(name, np.empty(shape, dtype))
        array = np.memmap(path, mode="r", dtype=dtype, shape=shape, offset=start, order="F" if fortran else "C")
    except DataError:
        raise
    except _DAMAGE as error:
        raise DataError(f"{name}: not a whole .npy file of numbers ({first_line(error)})") from None
    return array_table(name, array)


def npz_table(path: Path) -> Table:
    """Read headers before anything is allocated, and rows as they are asked for."""
    name, packed = str(path), path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            held: dict[str, zipfile.ZipInfo] = {}
            for info in archive.infolist():
                key = info.filename.removesuffix(".npy")
                if key in held:
                    raise DataError(f"{name}: two arrays are named {key!r}; save it again")
                held[key] = info
            if "X" not in held:
                raise DataError(
                    f"{name}: holds {', '.join(held) or 'nothing'}, but no array X; save the table under that name"
                )
            declared = sum(held[k].file_size for k in ("X", "y") if k in held)
            if declared > most_unpacked(packed):
                raise DataError(
                    f"{name}: unpacks to {declared >> 20:,} MiB; refused as a bomb, save it as .npy instead"
                )
            with archive.open(held["X"]) as member:
                shape, fortran, dtype = _header(member, held["X"].file_size, f"{name}: X")
            _check_array(name, dtype, shape)
            y = None
            if "y" in held:
                with archive.open(held["y"]) as member:
                    y_shape, _, y_dtype = _header(member, held["y"].file_size, f"{name}: y")
                if math.prod(y_shape) != shape[0] or y_dtype.kind not in "fiubU":
                    raise DataError(f"{name}: X has {shape[0]} rows, y has shape {y_shape} and dtype {y_dtype}")
                y = _npz_member(archive, held["y"]).ravel()
            whole = _by_columns(archive, held["X"], name) if fortran else None
    except DataError:
        raise
    except _DAMAGE as error:
        raise DataError(f"{name}: not a whole .npz of plain arrays ({first_line(error)})") from None
    if whole is not None:
        return array_table(name, whole, y)

    def blocks(rows: int) -> Iterator[NDArray]:
        try:
            with zipfile.ZipFile(path) as archive, archive.open(held["X"]) as member:
                _member_header(member)
                for start in range(0, shape[0], rows):
                    n = min(rows, shape[0] - start)
                    raw = member.read(n * shape[1] * dtype.itemsize)
                    yield np.frombuffer(raw, dtype=dtype).reshape(n, shape[1])
        except _DAMAGE as error:
            raise DataError(f"{name}: not a whole .npz of plain arrays ({first_line(error)})") from None

    return _numbers_table(name, shape, dtype, blocks, y)


def _member_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError(f"version {version[0]}.{version[1]} of the format holds no plain matrix")


def _header(file: Any, size: int, name: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read a header and hold it against the ``size`` of its file in bytes, before memory is taken."""
    shape, fortran, dtype = _member_header(file)
    if dtype.hasobject:
        raise DataError(f"{name}: holds Python objects, which are never read; save numbers")
    declared = math.prod(shape) * dtype.itemsize  # Python integers: no overflow
    if min(shape, default=0) < 0 or declared != size - file.tell():
        raise DataError(
            f"{name}: not a whole .npy file (declares shape {shape} of {dtype}, and holds {size - file.tell()} bytes)"
        )
    return shape, fortran, dtype


def _npz_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray:
    with archive.open(info) as member:
        return np.lib.format.read_array(member, allow_pickle=False)


def _by_columns(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> NDArray:
    """Map a matrix that lies column by column from a temporary file: its rows are spread over the whole of it."""
    handle, spool = tempfile.mkstemp(suffix=".npy")
    try:
        with archive.open(info) as member:
            shape, _, dtype = _member_header(member)
            copy_to_spool(member, handle, name)
        if math.prod(shape) == 0:
            return np.empty(shape, dtype)
        return np.memmap(spool, mode="r", dtype=dtype, shape=shape, order="F")
    finally:
        os.unlink(spool)  # the map keeps what it needs


def _check_array(name: str, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    if dtype.kind not in "fiub":
        raise DataError(f"{name}: an array of numbers is needed, got dtype {dtype}")
    if len(shape) != 2:
        raise DataError(f"{name}: a two-dimensional array is needed, got shape {tuple(shape)}")


def array_table(name: str, X: np.ndarray, y: np.ndarray | None = None) -> Table:
    """Wrap a numeric matrix of shape (n, d) and maybe its labels of shape (n,)."""
    _check_array(name, X.dtype, X.shape)

    def blocks(rows: int) -> Iterator[NDArray]:
        for start in range(0, X.shape[0], rows):
            yield np.asarray(X[start : start + rows])

    return _numbers_table(name, X.shape, X.dtype, blocks, y)


def sparse_table(name: str, X: Any) -> Table:
    """Wrap a SciPy CSR matrix; only the rows of a batch are ever dense."""
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
