"""The bit-exact codec of OliVe (arXiv 2304.07493): pairs in which an outlier takes its neighbour's place.

One element is a code of ``bits``. In a pair, one code may be the identifier (1000 for 4 bits): that element, the
victim, is 0 and its partner is read as an "abfloat" ``(2^m + mantissa) << (exponent + bias)`` that covers the range
above the normal one. Both elements are otherwise normal codes (two's complement int, or flint: sign and index).

Rounding: normal ints half to even; flint, abfloat half up; the midpoint between the last normal value and the first
outlier is normal.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import embedding

from skerry.core.errors import ParameterError
from skerry.quant.formats.levels import boundaries, nearest_level

__all__ = ["PairCodec"]

FLINT4 = [0, 1, 2, 3, 4, 6, 8, 16]
CLIP = 2**15  # 8-bit outliers stay below: products of two then fit the accumulator of 32 bits


@dataclass(frozen=True)
class _Tables:
    levels: Tensor  # magnitudes, normal ones first, float32
    bounds: Tensor
    codes: Tensor  # uint8 (2, levels): positive, negative
    normal: Tensor  # float32 (2^bits,): value of a code in a normal pair; the identifier is 0
    outlier: Tensor  # float32 (2^bits,): value of a code beside an identifier
    pairs: Tensor | None  # float32 (256, 2) for 4 bits


@dataclass(frozen=True)
class PairCodec:
    """Encoder and decoder of outlier-victim pairs, for values already divided by their scale.

    Parameters
    ----------
    bits : {4, 8}, default 4
    type : {"int", "flint"}, default "int"
        Normal values -7 .. 7 (-127 .. 127 for 8 bits), or 0, 1, 2, 3, 4, 6, 8, 16 with a sign (4 bits only).
    exponent_bits : int, optional
        Of abfloat: default 2 for 4 bits (E2M1), 4 for 8 bits (E4M3, below 2^15); 2 gives the E2M5 of the released
        emulation.
    tie : {"larger", "even"}, default "larger"
        Which of two outliers in a pair is kept: the larger, or always the even-numbered one (the released emulation).
    signed : bool, default True
        False, 4-bit int only: inputs without negative values; normal values 0 .. 14, identifier 1111, outliers with
        the bias one higher. Our extension.

    Raises
    ------
    ParameterError
        For a combination that does not exist.

    Examples
    --------
    >>> codec = PairCodec()
    >>> stored = codec.encode(torch.tensor([1.2, -30.0, 7.4, 0.2, 9.4, 9.6]))
    >>> codec.decode(stored).tolist()
    [0.0, -32.0, 7.0, 0.0, 0.0, 12.0]
    """

    bits: int = 4
    type: str = "int"
    exponent_bits: int | None = None
    tie: str = "larger"
    signed: bool = True

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise ParameterError(f"outlier-victim pairs have 4 or 8 bits, got {self.bits}")
        if self.type not in ("int", "flint") or (self.type == "flint" and self.bits != 4):
            raise ParameterError(f"type must be 'int' or, at 4 bits, 'flint', got {self.type!r} at {self.bits} bits")
        if self.tie not in ("larger", "even"):
            raise ParameterError(f"tie must be 'larger' or 'even', got {self.tie!r}")
        if self.exponent_bits is not None and not 1 <= self.exponent_bits <= self.bits - 2:
            raise ParameterError(f"exponent_bits must be 1 to {self.bits - 2}, got {self.exponent_bits}")
        if not self.signed and (self.bits, self.type) != (4, "int"):
            raise ParameterError("unsigned pairs exist for 4-bit int only")

    @property
    def identifier(self) -> int:
        """The code that marks a victim."""
        return 2 ** (self.bits - 1) if self.signed else 15

    @property
    def normal_max(self) -> int:
        """Largest normal magnitude."""
        return self._normal_levels()[-1]

    @property
    def mantissa_bits(self) -> int:
        """Of abfloat."""
        return self.bits - 1 - (self.exponent_bits or (2 if self.bits == 4 else 4))

    @property
    def bias(self) -> int:
        """Smallest B whose first outlier ``(2^m + 1) << B`` lies above the normal values."""
        bias = 0
        while (2**self.mantissa_bits + 1) << bias <= self.normal_max:
            bias += 1
        return bias

    @property
    def outlier_levels(self) -> list[int]:
        """Ascending magnitudes of abfloat; code 0 is not used."""
        return [(2**self.mantissa_bits + m) << (e + self.bias) for e, m in self._abfloat()]

    @property
    def largest(self) -> int:
        """Largest magnitude."""
        return self.outlier_levels[-1]

    def encode(self, y: Tensor) -> Tensor:
        """Return uint8 codes of scaled values (..., n), n even.

        Returns
        -------
        uint8 Tensor of shape (..., n / 2) at 4 bits (even element in the low nibble), (..., n) at 8 bits
        """
        tables = _tables(self)
        level, left, right = self._classes(y)
        width = len(tables.levels)
        codes = embedding(level + width * (y < 0), tables.codes.to(y.device).reshape(-1, 1)).squeeze(-1)
        even, odd = codes[..., 0::2], codes[..., 1::2]
        even = even.masked_fill(right, self.identifier)
        odd = odd.masked_fill(left, self.identifier)
        return even | (odd << 4) if self.bits == 4 else torch.stack((even, odd), -1).flatten(-2)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the float32 values (..., n) of codes."""
        tables = _tables(self)
        if tables.pairs is not None:
            return embedding(codes.int(), tables.pairs.to(codes.device)).flatten(-2)
        pairs = codes.unflatten(-1, (-1, 2))
        beside = (pairs == self.identifier).flip(-1)
        normal, outlier = (embedding(pairs.int(), t.to(codes.device)[:, None]) for t in (tables.normal, tables.outlier))
        return torch.where(beside, outlier.squeeze(-1), normal.squeeze(-1)).flatten(-2)

    def round(self, y: Tensor) -> Tensor:
        """Return ``decode(encode(y))`` by arithmetic, without codes and tables."""
        size = y.abs() if self.signed else y.clamp(min=0.0)
        step = 23 - self.mantissa_bits  # adding half a step to the bits of a float32 and cutting rounds half up
        short = ((size.view(torch.int32) + (1 << (step - 1))) >> step << step).view(torch.float32)
        if self.type == "int":
            normal = torch.round(size).clamp_(max=float(self.normal_max))
        else:
            normal = torch.where(size < 2, torch.floor(size + 0.5), short.clamp(max=8.0))
            normal = normal.masked_fill_(size >= 12, 16.0)
        first = float(self.outlier_levels[0])
        out = size > (self.normal_max + first) / 2
        value = torch.where(out, short.clamp_(first, float(self.largest)), normal)
        left, right = self._kept(out, size)
        value[..., 0::2].masked_fill_(right, 0.0)
        value[..., 1::2].masked_fill_(left, 0.0)
        return torch.copysign(value, y) if self.signed else value

    def decode_exponent_integer(self, codes: Tensor, outlier: bool) -> tuple[Tensor, Tensor]:
        """Return what an integer multiplier takes: ``value = integer << exponent`` for single codes.

        Parameters
        ----------
        codes : uint8 Tensor
            One code an entry.
        outlier : bool
            Whether the partner is an identifier.

        Returns
        -------
        exponent, integer : int32 Tensors
        """
        tables = _tables(self)
        c = codes.to(torch.int32)
        if outlier:
            top = 2 ** (self.bits - 1)
            exponent = ((c & (top - 1)) >> self.mantissa_bits) + self.bias
            integer = 2**self.mantissa_bits + (c & (2**self.mantissa_bits - 1))
            return exponent, torch.where(c >= top, -integer, integer)
        value = tables.normal.to(codes.device)[c.long()].to(torch.int32)
        exponent = torch.zeros_like(value)
        for _ in range(4):  # odd part of the magnitude, at most 4 shifts (16)
            even = (value != 0) & (value % 2 == 0)
            value, exponent = torch.where(even, value // 2, value), exponent + even.to(torch.int32)
        return exponent, value

    def outliers(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Return boolean (..., n) masks of the outliers and of the victims in stored codes."""
        single = torch.stack((codes & 15, codes >> 4), -1).flatten(-2) if self.bits == 4 else codes
        victim = single == self.identifier
        return victim.unflatten(-1, (-1, 2)).flip(-1).flatten(-2), victim

    def _classes(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Index of the nearest level; pairs whose even (left), odd (right) element is a kept outlier."""
        tables = _tables(self)
        size = y.abs() if self.signed else y.clamp(min=0.0)
        level = nearest_level(size, tables.bounds)
        out = level >= len(self._normal_levels())
        return level, *self._kept(out, size)

    def _kept(self, out: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        a, b = out[..., 0::2], out[..., 1::2]
        left = a if self.tie == "even" else a & (~b | (size[..., 0::2] >= size[..., 1::2]))
        return left, b & ~left

    def _normal_levels(self) -> list[int]:
        if self.type == "flint":
            return FLINT4
        return list(range(2 ** (self.bits - 1))) if self.signed else list(range(15))

    def _abfloat(self) -> list[tuple[int, int]]:
        """(exponent, mantissa) in ascending order, code 0 left out."""
        codes = range(1, 2 ** (self.bits - 1))
        found = [(c >> self.mantissa_bits, c & (2**self.mantissa_bits - 1)) for c in codes]
        return [(e, m) for e, m in found if (2**self.mantissa_bits + m) << (e + self.bias) < CLIP]


@lru_cache(maxsize=32)
def _tables(codec: PairCodec) -> _Tables:
    normal, outlier = codec._normal_levels(), codec.outlier_levels
    n, half, size = len(normal), 2 ** (codec.bits - 1), 2**codec.bits
    up = [bool(i % 2) for i in range(n - 1)] if codec.type == "int" else [True] * (n - 1)
    bounds = boundaries([float(v) for v in normal + outlier], [*up, False, *[True] * (len(outlier) - 1)])
    abfloat = [(e << codec.mantissa_bits) | m for e, m in codec._abfloat()]
    positive = list(range(n)) + abfloat
    if codec.type == "int":
        negative = [(-i) % size for i in range(n)] + [half | c for c in abfloat]
    else:
        negative = [half * (i > 0) | i for i in range(n)] + [half | c for c in abfloat]
    if not codec.signed:
        negative = [0] * len(positive)
    value, beside = torch.zeros(size), torch.zeros(size)
    for i, level in enumerate(normal):
        if codec.signed:
            value[negative[i]] = -float(level) if level else 0.0
        value[positive[i]] = float(level)
    for i, level in enumerate(outlier):
        if codec.signed:
            beside[negative[n + i]] = -float(level)
        beside[positive[n + i]] = float(level)
    value[codec.identifier] = 0.0
    pairs = None
    if codec.bits == 4:
        byte = torch.arange(256)
        low, high = byte & 15, byte >> 4
        is_low, is_high = low == codec.identifier, high == codec.identifier
        pairs = torch.stack(
            (
                torch.where(is_high, beside[low], value[low]) * ~is_low,
                torch.where(is_low, beside[high], value[high]) * ~is_high,
            ),
            -1,
        )
    return _Tables(
        torch.tensor([float(v) for v in normal + outlier]),
        bounds,
        torch.tensor([positive, negative], dtype=torch.uint8),
        value,
        beside,
        pairs,
    )
