"""Saved models are data, never code: a zip of one JSON file and one ``.npy`` per array.

The JSON names classes; only subclasses of scikit-learn's ``BaseEstimator`` or :class:`Threshold` that live in
``skerry`` are built, without calling their constructors' code on foreign input. No pickle is read or written.
"""

from __future__ import annotations

import importlib
import io
import json
import math
import struct
import sys
import zipfile
import zlib
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from skerry.core.errors import ModelError
from skerry.core.files import atomic_write
from skerry.core.threshold import Threshold

__all__ = ["load", "save"]

FORMAT = 1
MAX_BYTES = 8 << 30  # of all arrays together, as declared by the zip's own directory
MAX_DEPTH = 60
_DAMAGE = (  # whatever a damaged or hostile file can make the readers raise
    OSError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    MemoryError,
    RecursionError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    ArithmeticError,
    NotImplementedError,
    RuntimeError,
    SyntaxError,
)
_PLAIN_KINDS = "biuf"  # of scalars that JSON holds exactly


def save(obj: Any, path: str | Path) -> Path:
    """Write a fitted estimator of Skerry to ``path``.

    Parameters
    ----------
    obj : estimator
    path : path
        Written beside and renamed, so that a crash leaves no half file.

    Raises
    ------
    ModelError
        If some state cannot be stored as data; the message names it.
    DataError
        If the path cannot be written.
    """
    from skerry import __version__

    if not isinstance(obj, BaseEstimator):
        raise ModelError(f"only estimators of skerry can be saved, got {type(obj).__name__}")
    arrays: list[np.ndarray] = []
    try:
        tree = _pack(obj, arrays, type(obj).__name__)
    except RecursionError:
        raise ModelError(f"{type(obj).__name__}: its state refers to itself and cannot be saved") from None
    header = {"format": FORMAT, "skerry": __version__, "root": tree}
    path = Path(path)
    with atomic_write(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("skerry.json", json.dumps(header))
        for i, array in enumerate(arrays):
            with archive.open(f"{i}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    return path


def load(path: str | Path) -> Any:
    """Read what :func:`save` wrote.

    Raises
    ------
    ModelError
        If the file is missing, truncated, foreign, from a newer format, or names a class that is not ours.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(i.file_size for i in archive.infolist()) > MAX_BYTES:
                raise ModelError(f"{path}: declares more than {MAX_BYTES >> 30} GiB of arrays; refused")
            if any(i.compress_type != zipfile.ZIP_STORED for i in archive.infolist()):
                raise ModelError(f"{path}: not a model saved by skerry (its members are compressed)")
            header = json.loads(archive.read("skerry.json"))
            if not isinstance(header, dict) or type(header.get("format")) is not int or header["format"] < 1:
                raise ModelError(f"{path}: not a model saved by skerry")
            if header["format"] > FORMAT:
                raise ModelError(f"{path}: saved by a newer skerry ({header.get('skerry')}); upgrade to read it")
            obj = _unpack(header["root"], _Arrays(archive), 0)
            if not isinstance(obj, BaseEstimator):
                raise ModelError(f"{path}: holds no model")
            return obj
    except ModelError as error:
        message = str(error)
        raise ModelError(message if message.startswith(str(path)) else f"{path}: {message}") from None
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except _DAMAGE as error:
        raise ModelError(f"{path}: not a whole model saved by skerry ({type(error).__name__}: {error})") from None


class _Arrays:
    """The arrays of an archive, each checked against its own header before memory is taken."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive = archive

    def __getitem__(self, index: int) -> np.ndarray:
        if type(index) is not int:
            raise ModelError(f"an array is named by {index!r}")
        file = io.BytesIO(self.archive.read(f"{index}.npy"))
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read_header is None:
            raise ModelError(f"array {index} has the unknown format {version}")
        shape, _, dtype = read_header(file)
        if dtype.hasobject:
            raise ModelError(f"array {index} holds Python objects; refused")
        size = math.prod(shape) * dtype.itemsize  # Python integers: no overflow
        if min(shape, default=0) < 0 or size != len(file.getbuffer()) - file.tell():
            raise ModelError(f"array {index} declares {size} bytes, which the file does not hold")
        file.seek(0)
        return np.lib.format.read_array(file, allow_pickle=False)


def _pack(value: Any, arrays: list[np.ndarray], where: str) -> Any:
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"t": "float", "v": repr(value)}
    if isinstance(value, np.ndarray):
        if value.dtype == object:
            v = [_pack(x, arrays, f"{where}[{i}]") for i, x in enumerate(value.ravel().tolist())]
            return {"t": "objects", "shape": list(value.shape), "v": v}
        if value.dtype.hasobject or type(value) is not np.ndarray:
            raise ModelError(f"{where} is an array of {type(value).__name__} {value.dtype}, not of plain data")
        arrays.append(value)
        return {"t": "array", "v": len(arrays) - 1}
    if isinstance(value, np.generic):
        if value.dtype.kind in _PLAIN_KINDS and value.dtype.itemsize <= 8:
            return {"t": "scalar", "dtype": value.dtype.str, "v": _pack(value.item(), arrays, where)}
        return {"t": "cell", "v": _pack(np.asarray(value), arrays, where)}
    if type(value) in (list, tuple):
        return {
            "t": type(value).__name__,
            "v": [_pack(v, arrays, f"{where}[{i}]") for i, v in enumerate(value)],
        }
    if type(value) is dict:
        return {
            "t": "dict",
            "v": [[_pack(k, arrays, where), _pack(v, arrays, f"{where}[{k!r}]")] for k, v in value.items()],
        }
    if isinstance(value, np.random.RandomState):
        return {"t": "rng", "v": _pack(list(value.get_state()), arrays, where)}
    if isinstance(value, np.random.Generator):
        raise ModelError(f"{where} is a numpy Generator, which is not saved; give an integer seed instead")
    cls = type(value)
    if not _ours(cls) or getattr(sys.modules.get(cls.__module__), cls.__qualname__, None) is not cls:
        raise ModelError(f"{where} is a {cls.__module__}.{cls.__qualname__}, which cannot be saved as plain data")
    state = value.__getstate__() if isinstance(value, BaseEstimator) else dict(vars(value))
    packed = {k: _pack(v, arrays, f"{where}.{k}") for k, v in state.items()}
    return {"t": "object", "module": cls.__module__, "class": cls.__qualname__, "v": packed}


def _ours(cls: type) -> bool:
    return cls.__module__.startswith("skerry.") and issubclass(cls, (BaseEstimator, Threshold))


def _unpack(node: Any, arrays: _Arrays, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise ModelError("nested too deeply")
    if not isinstance(node, dict):
        if isinstance(node, list):
            raise ModelError("a bare list where a value was expected")
        return node
    kind, v = node["t"], node["v"]
    if kind == "scalar":
        dtype = np.dtype(node["dtype"])
        if dtype.kind not in _PLAIN_KINDS:
            raise ModelError(f"a scalar of dtype {dtype}")
        return dtype.type(_unpack(v, arrays, depth + 1))
    if kind == "float":
        return float(v)
    if kind == "array":
        return arrays[v]
    if kind == "cell":
        return _unpack(v, arrays, depth + 1)[()]
    if kind == "objects":
        out = np.empty(len(v), dtype=object)
        out[:] = [_unpack(x, arrays, depth + 1) for x in v] if len(v) else []
        return out.reshape([int(n) for n in node["shape"]])
    if kind in ("list", "tuple"):
        items = [_unpack(x, arrays, depth + 1) for x in v]
        return items if kind == "list" else tuple(items)
    if kind == "dict":
        return {_unpack(k, arrays, depth + 1): _unpack(x, arrays, depth + 1) for k, x in v}
    if kind == "rng":
        rng = np.random.RandomState(0)
        rng.set_state(tuple(_unpack(v, arrays, depth + 1)))
        return rng
    if kind == "object":
        return _build(_class(node["module"], node["class"]), v, arrays, depth)
    raise ModelError(f"unknown kind {kind!r}")


def _build(cls: type, tree: Any, arrays: _Arrays, depth: int) -> Any:
    if not all(name.isidentifier() and not name.startswith("__") for name in tree):
        raise ModelError(f"{cls.__name__} has a state that is not attributes")
    state = {name: _unpack(x, arrays, depth + 1) for name, x in tree.items()}
    if not issubclass(cls, BaseEstimator):
        known = {f.name for f in fields(cls)} if is_dataclass(cls) else set()
        if not set(state) <= known:
            raise ModelError(f"{cls.__name__} has no {', '.join(sorted(set(state) - known))}")
        return cls(**state)
    if any(callable(getattr(cls, name, None)) for name in state):
        raise ModelError(f"{cls.__name__} has a state that covers a method")
    obj: Any = object.__new__(cls)
    obj.__setstate__(state)
    return obj


def _class(module: str, name: str) -> type:
    parts = module.split(".")
    # a part such as __main__ would run a program when imported
    if parts[0] != "skerry" or not all(p.isidentifier() and not p.startswith("__") for p in [*parts, name]):
        raise ModelError(f"names the class {module}.{name}, which is not one of skerry's")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        raise ModelError(f"names the class {module}.{name}, which this version of skerry does not have") from None
    if not (isinstance(cls, type) and _ours(cls) and cls.__module__ == module):
        raise ModelError(f"names {module}.{name}, which is not a model of skerry")
    return cls
