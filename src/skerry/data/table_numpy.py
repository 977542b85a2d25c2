"""Matrices: NPY and NPZ files, whose headers are checked before memory is taken, NumPy arrays and SciPy sparse."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skerry.core.errors import DataError
from skerry.data.packed import most_unpacked
from skerry.data.table import Table, first_line

if TYPE_CHECKING:
    import polars as pl

__all__ = ["array_table", "npy_table", "npz_table", "sparse_table"]


def npy_table(path: Path) -> Table:
    """Open an ``.npy`` of a numeric matrix, mapped into memory; pickled objects are refused."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, OverflowError, SyntaxError) as error:
        raise DataError(f"{path}: not a whole .npy file of numbers ({first_line(error)})") from None
    return array_table(str(path), array)


_NPZ_DAMAGE = (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError)


def npz_table(path: Path) -> Table:
    """Read headers before anything is allocated, and rows as they are asked for."""
    name, packed = str(path), path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            held = {i.filename.removesuffix(".npy"): i for i in archive.infolist()}
            if "X" not in held:
                raise DataError(f"{name}: holds {', '.join(held) or 'nothing'}, but no array X")
            declared = sum(held[k].file_size for k in ("X", "y") if k in held)
            if declared > most_unpacked(packed):
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
        except _NPZ_DAMAGE as error:
            raise DataError(f"{name}: not a whole .npz of plain arrays ({first_line(error)})") from None

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
