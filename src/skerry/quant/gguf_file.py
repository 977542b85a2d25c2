"""The GGUF container and its block types Q8_0, Q4_0 and Q4_1: written tensor by tensor, read with distrust.

A file is a header (magic, version 3, counts), typed key-value pairs, descriptions of tensors with the innermost
dimension first, and the data, every tensor on a multiple of 32 bytes. Blocks hold 32 consecutive inputs of a row.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from skerry.core.errors import ModelError

__all__ = ["BLOCK", "GGUFTensor", "decode", "encode", "packed_bytes", "read_gguf", "write_gguf"]

MAGIC, VERSION, ALIGN, BLOCK = b"GGUF", 3, 32, 32
TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 8, "BF16": 30}
BYTES = {"F32": 4, "F16": 2, "BF16": 2}  # of an entry
BLOCKS = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}  # bytes of 32 entries
MOST = 2**20  # pairs or tensors; more is a damaged or hostile file
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_UINT, _INT, _FLOAT, _BOOL, _TEXT, _ARRAY = 4, 5, 6, 7, 8, 9


@dataclass(frozen=True)
class GGUFTensor:
    """One tensor of a file.

    Attributes
    ----------
    name : str
    shape : tuple of int
        Outermost dimension first, as torch has it.
    type : str
        Of ``TYPES``.
    data : callable
        Gives the bytes; called when the tensor is written.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    data: Callable[[], bytes | NDArray[Any]]

    @property
    def nbytes(self) -> int:
        """Bytes of the data, without padding."""
        return packed_bytes(self.shape, self.type)


def packed_bytes(shape: tuple[int, ...], kind: str) -> int:
    """Return the bytes of a tensor of this shape and type.

    Examples
    --------
    >>> packed_bytes((2, 64), "Q4_0")
    72
    """
    count = int(np.prod(shape, dtype=np.int64))
    return count * BYTES[kind] if kind in BYTES else count // BLOCK * BLOCKS[kind]


def encode(codes: NDArray[Any], scale: NDArray[Any], kind: str, low: NDArray[Any] | None = None) -> NDArray[np.uint8]:
    """Return the blocks of a quantized weight.

    Parameters
    ----------
    codes : array of shape (rows, 32 n)
        Whole numbers: -128 to 127 (Q8_0), -8 to 7 (Q4_0), 0 to 15 (Q4_1).
    scale : float16 array of shape (rows, n)
    kind : {"Q8_0", "Q4_0", "Q4_1"}
    low : float16 array of shape (rows, n), optional
        Value of code 0 (Q4_1).

    Returns
    -------
    uint8 array of shape (rows, n, bytes of a block)

    Examples
    --------
    >>> codes = np.arange(32)[None] % 16 - 8
    >>> encode(codes, np.array([[0.5]], np.float16), "Q4_0")[0, 0, :6].tolist()
    [0, 56, 0, 17, 34, 51]
    """
    rows, n = scale.shape
    found = np.empty((rows, n, BLOCKS[kind]), np.uint8)
    found[..., :2] = np.ascontiguousarray(scale, "<f2").view(np.uint8).reshape(rows, n, 2)
    blocks = codes.reshape(rows, n, BLOCK)
    if kind == "Q8_0":
        found[..., 2:] = blocks.astype(np.int8).view(np.uint8)
        return found
    start = 2
    if kind == "Q4_1":
        assert low is not None
        found[..., 2:4] = np.ascontiguousarray(low, "<f2").view(np.uint8).reshape(rows, n, 2)
        start = 4
    unsigned = (blocks + (8 if kind == "Q4_0" else 0)).astype(np.uint8)
    found[..., start:] = unsigned[..., :16] | unsigned[..., 16:] << 4
    return found


def decode(raw: NDArray[np.uint8], shape: tuple[int, ...], kind: str) -> tuple[NDArray[Any], ...]:
    """Return (codes, scale) of :func:`encode`, and ``low`` for Q4_1."""
    rows, n = shape[0], shape[1] // BLOCK
    blocks = raw.reshape(rows, n, BLOCKS[kind])
    scale = np.ascontiguousarray(blocks[..., :2]).view("<f2")[..., 0]
    if kind == "Q8_0":
        return blocks[..., 2:].view(np.int8).reshape(rows, -1).astype(np.int16), scale
    start = 4 if kind == "Q4_1" else 2
    both = blocks[..., start:]
    codes = np.concatenate((both & 15, both >> 4), -1).astype(np.int16).reshape(rows, -1)
    if kind == "Q4_0":
        return codes - 8, scale
    return codes, scale, np.ascontiguousarray(blocks[..., 2:4]).view("<f2")[..., 0]


def write_gguf(file: BinaryIO, fields: Mapping[str, Any], tensors: list[GGUFTensor]) -> None:
    """Write a file; whole numbers become uint32 (int32 below zero), fractions float32.

    Raises
    ------
    ModelError
        If a tensor's data are not of the size that its shape and type say.
    """
    file.write(MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(fields)))
    for key, value in fields.items():
        file.write(_text(key) + _field(value))
    at = 0
    for tensor in tensors:
        dims = tensor.shape[::-1]
        file.write(_text(tensor.name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, TYPES[tensor.type], at))
        at += -(-tensor.nbytes // ALIGN) * ALIGN
    file.write(bytes(-file.tell() % ALIGN))
    for tensor in tensors:
        data = tensor.data()
        size = data.nbytes if isinstance(data, np.ndarray) else len(data)
        if size != tensor.nbytes:
            raise ModelError(f"{tensor.name}: {size} bytes where {tensor.nbytes} are needed")
        file.write(np.ascontiguousarray(data).data if isinstance(data, np.ndarray) else data)
        file.write(bytes(-size % ALIGN))


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, tuple[tuple[int, ...], str, NDArray[np.uint8]]]]:
    """Return the fields, and for every tensor (shape, type, bytes); the bytes are a view of the file on disk.

    Raises
    ------
    ModelError
        If the file is truncated, damaged, or has types other than those written here.
    """
    try:
        whole = np.memmap(path, np.uint8, "r")
        return _Reader(whole, path).read()
    except (OSError, ValueError, struct.error, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: is truncated or no GGUF file ({error})") from None


class _Reader:
    def __init__(self, whole: NDArray[np.uint8], path: Path) -> None:
        self.whole, self.path, self.at = whole, path, 0

    def read(self) -> tuple[dict[str, Any], dict[str, tuple[tuple[int, ...], str, NDArray[np.uint8]]]]:
        if self._take(4) != MAGIC:
            raise ValueError("the magic number is another")
        version, tensors, pairs = self._numbers("IQQ")
        if version != VERSION or tensors > MOST or pairs > MOST:
            raise ValueError(f"version {version}, {tensors} tensors, {pairs} fields")
        fields = {self._text(): self._value(self._numbers("I")[0]) for _ in range(pairs)}
        placed = []
        names = {number: name for name, number in TYPES.items()}
        for _ in range(tensors):
            name, (rank,) = self._text(), self._numbers("I")
            if not 0 < rank <= 4:
                raise ValueError(f"{name} has {rank} dimensions")
            *dims, kind, offset = self._numbers(f"{rank}QIQ")
            if kind not in names:
                raise ValueError(f"{name} is of type {kind}, which is not read here")
            placed.append((name, tuple(dims[::-1]), names[kind], offset))
        start = -(-self.at // ALIGN) * ALIGN
        found = {}
        for name, shape, kind, offset in placed:
            begin, end = start + offset, start + offset + packed_bytes(shape, kind)
            if not 0 <= begin <= end <= len(self.whole):
                raise ValueError(f"{name} ends behind the file")
            found[name] = (shape, kind, self.whole[begin:end])
        return fields, found

    def _take(self, size: int) -> bytes:
        if self.at + size > len(self.whole):
            raise ValueError("it ends too early")
        self.at += size
        return self.whole[self.at - size : self.at].tobytes()

    def _numbers(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(f"<{form}", self._take(struct.calcsize(f"<{form}")))

    def _text(self) -> str:
        return self._take(self._numbers("Q")[0]).decode()

    def _value(self, kind: int, depth: int = 0) -> Any:
        if kind == _TEXT:
            return self._text()
        if kind == _ARRAY:
            inner, count = self._numbers("IQ")
            if depth or count > len(self.whole):
                raise ValueError("an array of arrays, or one longer than the file")
            if inner in _NUMBERS:
                return list(self._numbers(f"{count}{_NUMBERS[inner]}"))
            return [self._value(inner, depth + 1) for _ in range(count)]
        if kind not in _NUMBERS:
            raise ValueError(f"a field of unknown type {kind}")
        return self._numbers(_NUMBERS[kind])[0]


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def _field(value: Any) -> bytes:
    if isinstance(value, list):
        kind = _kind(value[0]) if value else _TEXT
        body = (
            b"".join(_text(v) for v in value)
            if kind == _TEXT
            else struct.pack(f"<{len(value)}{_NUMBERS[kind]}", *value)
        )
        return struct.pack("<IIQ", _ARRAY, kind, len(value)) + body
    kind = _kind(value)
    return struct.pack("<I", kind) + (_text(value) if kind == _TEXT else struct.pack(f"<{_NUMBERS[kind]}", value))


def _kind(value: Any) -> int:
    if isinstance(value, bool):
        return _BOOL
    if isinstance(value, int):
        return _UINT if value >= 0 else _INT
    return _FLOAT if isinstance(value, float) else _TEXT
