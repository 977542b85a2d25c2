"""Integer grids: scales, zero points, rounding and bit packing, one definition for every recipe.

A weight W (out, in) becomes ``codes`` int8 (out, in) with ``value = (code - zero) * scale``. Codes are signed in
every case: symmetric ones lie in [-q, q] with q = 2^(b-1) - 1 (``full_range`` adds -q-1), asymmetric ones in
[-2^(b-1), 2^(b-1) - 1] with an integer zero point and a range that is made to contain 0, so that 0 is exact.
Scales are computed in float32 and rounded to the dtype they will be stored in BEFORE codes are computed; codes are
clamped before the cast, since 127.5 rounds to 128 and would wrap to -128 (the outliers would change sign).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from skerry.core.errors import ModelError, ParameterError

__all__ = ["AffineGrid", "IntTensor", "pack_bits", "signal_to_noise", "unpack_bits"]

FLOOR = 1e-8  # a scale is at least this share of the tensor's largest value
HALF = 2.0**-10  # a scale may change by this share when it becomes float16
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class AffineGrid:
    """A uniform grid of ``2^bits`` levels (or one less) per tensor, channel or group of a weight.

    Parameters
    ----------
    bits : int, default 8
        2 to 8.
    symmetric : bool, default True
        Without zero point.
    group_size : int, default -1
        Entries that share a scale, along ``axis``: -1 a whole row (``axis=1``) or column, 0 the whole tensor.
    axis : {1, 0}, default 1
        Groups run along the inputs of an output row (1, what serving engines store) or along the outputs of an
        input column (0, AdaDim's "ic").
    full_range : bool, default False
        Symmetric codes down to ``-2^(b-1)`` with ``scale = absmax / ((2^b - 1) / 2)``, compressed-tensors' own rule.
    scale_dtype : {"float32", "bfloat16", "float16"}, default "float32"

    Raises
    ------
    ParameterError
        For bits, axis, group size or dtype out of range.

    Examples
    --------
    >>> W = torch.tensor([[-1.0, 0.6, 0.25, 0.0]])
    >>> grid = AffineGrid(bits=4)
    >>> grid.quantize(W).codes.tolist()
    [[-7, 4, 2, 0]]
    """

    bits: int = 8
    symmetric: bool = True
    group_size: int = -1
    axis: int = 1
    full_range: bool = False
    scale_dtype: str = "float32"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ParameterError(f"bits must be 2 to 8, got {self.bits}")
        if self.axis not in (0, 1):
            raise ParameterError(f"axis must be 0 or 1, got {self.axis}")
        if self.group_size < -1:
            raise ParameterError(f"group_size must be -1 (a row), 0 (the tensor) or positive, got {self.group_size}")
        if self.scale_dtype not in _DTYPES:
            raise ParameterError(f"scale_dtype must be one of {', '.join(_DTYPES)}, got {self.scale_dtype!r}")

    @property
    def qmin(self) -> int:
        """Smallest code."""
        return -(2 ** (self.bits - 1)) + int(self.symmetric and not self.full_range)

    @property
    def qmax(self) -> int:
        """Largest code."""
        return 2 ** (self.bits - 1) - 1

    def group_of(self, shape: tuple[int, int], name: str = "the weight") -> int:
        """Return the number of entries in a group along ``axis`` for a weight of this shape.

        Raises
        ------
        ModelError
            If the group size does not divide the dimension.
        """
        along = shape[self.axis]
        if self.group_size <= 0:
            return along
        if along % self.group_size:
            divisors = [g for g in (256, 128, 64, 32, 16) if along % g == 0]
            raise ModelError(
                f"{name}: group size {self.group_size} does not divide its dimension of {along}; use "
                f"{'one of ' + ', '.join(map(str, divisors)) if divisors else 'group_size=-1 (one scale a row)'}"
            )
        return self.group_size

    def fit(self, W: Tensor, *, low: Tensor | None = None, high: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the scale and zero point of every group from minimum and maximum.

        Parameters
        ----------
        W : Tensor of shape (out, in)
        low, high : Tensor of the scale's shape, optional
            Ranges to use in place of the groups' own.

        Returns
        -------
        scale : Tensor of ``scale_dtype``, (out, groups) for axis 1, (groups, in) for axis 0, (1, 1) for the tensor
        zero : int32 Tensor of the same shape, or None if symmetric
        """
        W = W.detach().float()
        if low is None or high is None:
            view = self._grouped(W)
            low, high = view.amin(-1), view.amax(-1)
            if self.axis == 0 and self.group_size:
                low, high = low.T, high.T
            largest = torch.maximum(-low.amin(), high.amax())
        else:
            largest = torch.maximum(-W.amin(), W.amax())
        low, high = low.float().clamp(max=0.0), high.float().clamp(min=0.0)
        floor = (largest * FLOOR).clamp(min=1e-30)
        dtype = _DTYPES[self.scale_dtype]
        if self.symmetric:
            top = torch.maximum(-low, high)
            scale = top / ((2**self.bits - 1) / 2 if self.full_range else self.qmax)
            return torch.maximum(scale, floor).to(dtype), None
        scale = torch.maximum((high - low) / (2**self.bits - 1), floor).to(dtype)
        zero = (self.qmin - torch.round(low / scale.float())).clamp(self.qmin, self.qmax).to(torch.int32)
        return scale, zero

    def codes(self, W: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
        """Return int8 codes of ``W`` (out, in), rounded half to even and clamped."""
        w, s = self._aligned(W, scale)
        q = (w.float() / s.float()).round_()
        if zero is not None:
            q.add_(self._aligned(W, zero)[1])
        return q.clamp_(self.qmin, self.qmax).to(torch.int8).reshape(W.shape)

    def values(self, codes: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
        """Return float32 values of codes (out, in)."""
        q, s = self._aligned(codes.to(torch.float32, copy=True), scale)
        if zero is not None:
            q.sub_(self._aligned(codes, zero)[1])
        return q.mul_(s.float()).reshape(codes.shape)

    def quantize(self, W: Tensor, scale: Tensor | None = None, zero: Tensor | None = None) -> IntTensor:
        """Round ``W`` (out, in) to the nearest grid point, on its own min-max grid or the one given."""
        if scale is None:
            scale, zero = self.fit(W)
        return IntTensor(self, self.codes(W, scale, zero), scale, zero)

    def round(self, W: Tensor) -> Tensor:
        """Return ``W`` rounded to its grid, float32: what a simulation of the format computes with."""
        scale, zero = self.fit(W)
        return self.values(self.codes(W, scale, zero), scale, zero)

    def expand(self, parameter: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Repeat a scale or zero point so that it broadcasts over a weight of ``shape``."""
        if self.group_size <= 0:
            return parameter
        return parameter.repeat_interleave(self.group_size, dim=self.axis)

    def for_shape(self, shape: tuple[int, int]) -> AffineGrid:
        """Return this grid, with whole rows where the group size does not divide the dimension."""
        return self if self.group_size <= 0 or shape[self.axis] % self.group_size == 0 else replace(self, group_size=-1)

    def bits_per_weight(self, shape: tuple[int, int]) -> float:
        """Return stored bits for each weight: codes, scales and zero points."""
        out, inputs = shape
        groups = 1 if self.group_size == 0 else out * inputs // self.group_of(shape)
        side = 8 * _DTYPES[self.scale_dtype].itemsize + (0 if self.symmetric else self.bits)
        return self.bits + groups * side / (out * inputs)

    def _aligned(self, W: Tensor, parameter: Tensor) -> tuple[Tensor, Tensor]:
        """Return views of a weight (out, in) and of its scale or zero point that broadcast: nothing is repeated."""
        if self.group_size <= 0:
            return W, parameter
        groups = W.unflatten(self.axis, (-1, self.group_size))
        return groups, parameter.unsqueeze(self.axis + 1)

    def _grouped(self, W: Tensor) -> Tensor:
        if self.group_size == 0:
            return W.reshape(1, 1, -1)
        size = self.group_of(tuple(W.shape))
        along = W if self.axis == 1 else W.T
        return along.reshape(along.shape[0], -1, size)


@dataclass(frozen=True)
class IntTensor:
    """A weight on an integer grid.

    Attributes
    ----------
    grid : AffineGrid
    codes : int8 Tensor of shape (out, in)
    scale : Tensor
    zero : int32 Tensor or None
    """

    grid: AffineGrid
    codes: Tensor
    scale: Tensor
    zero: Tensor | None = None

    kind = "int"

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return tuple(self.codes.shape)  # type: ignore[return-value]

    @property
    def nbytes(self) -> int:
        """Bytes when packed: codes at ``bits`` each, scales, zero points at ``bits`` each."""
        out, inputs = self.shape
        total = out * ((inputs * self.grid.bits + 7) // 8) + self.scale.numel() * self.scale.element_size()
        return total + (0 if self.zero is None else (self.zero.numel() * self.grid.bits + 7) // 8)

    def dequantize(self) -> Tensor:
        """Return float32 values (out, in)."""
        return self.grid.values(self.codes, self.scale, self.zero)

    def live_groups(self) -> Tensor:
        """Return, in the shape of ``scale`` (axis 1), which groups hold more than zeros (other scales are idle)."""
        shifted = self.codes.int() - (0 if self.zero is None else self.grid.expand(self.zero, self.shape))
        return shifted.reshape(*self.scale.shape, -1).any(-1)

    def scale_fits_half(self) -> bool:
        """Return whether float16 holds every scale that matters to its own precision."""
        live = self.scale.float()[self.live_groups()]
        return bool(((live.half().float() - live).abs() <= HALF * live).all())

    def meta(self) -> dict[str, Any]:
        """Return what JSON must keep beside :meth:`tensors`."""
        return {"kind": self.kind, "shape": list(self.shape), "grid": asdict(self.grid)}

    def tensors(self) -> dict[str, Tensor]:
        """Return what safetensors must keep: ``packed`` uint8, ``scale``, and packed ``zero`` where there is one."""
        found = {"packed": pack_bits(self.codes, self.grid.bits), "scale": self.scale.contiguous()}
        if self.zero is not None:
            found["zero"] = pack_bits(self.zero.reshape(1, -1), self.grid.bits)
        return found

    @classmethod
    def from_tensors(cls, meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> IntTensor:
        """Rebuild what :meth:`meta` and :meth:`tensors` described."""
        grid = AffineGrid(**meta["grid"])
        codes = unpack_bits(tensors["packed"], grid.bits, meta["shape"][1])
        scale, zero = tensors["scale"], tensors.get("zero")
        if zero is not None:
            zero = unpack_bits(zero, grid.bits, scale.numel()).to(torch.int32).reshape(scale.shape)
        return cls(grid, codes, scale, zero)


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Pack signed codes (rows, n) of ``bits`` each into bytes, first code in the lowest bits.

    Returns
    -------
    uint8 Tensor of shape (rows, ceil(n * bits / 8))

    Examples
    --------
    >>> pack_bits(torch.tensor([[-8, 7, 1]], dtype=torch.int8), 4).tolist()
    [[120, 1]]
    """
    rows, n = codes.shape
    unsigned = codes.to(torch.int16) & (2**bits - 1)
    shifts = torch.arange(bits, device=codes.device, dtype=torch.int16)
    stream = ((unsigned[:, :, None] >> shifts) & 1).to(torch.uint8).reshape(rows, n * bits)
    stream = torch.nn.functional.pad(stream, (0, -stream.shape[1] % 8)).reshape(rows, -1, 8)
    weights = (2 ** torch.arange(8, device=codes.device)).to(torch.uint8)
    return (stream * weights).sum(-1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, bits: int, n: int) -> Tensor:
    """Return the int8 codes (rows, n) that :func:`pack_bits` packed.

    Raises
    ------
    ModelError
        If the bytes are too few for ``n`` codes.
    """
    if packed.dtype != torch.uint8 or packed.ndim != 2 or packed.shape[1] != (n * bits + 7) // 8:
        raise ModelError(f"packed codes of shape {tuple(packed.shape)} do not hold rows of {n} codes of {bits} bits")
    shifts = torch.arange(8, device=packed.device, dtype=torch.uint8)
    stream = ((packed[:, :, None] >> shifts) & 1).reshape(len(packed), -1)[:, : n * bits]
    weights = 2 ** torch.arange(bits, device=packed.device, dtype=torch.int16)
    unsigned = (stream.reshape(len(packed), n, bits).to(torch.int16) * weights).sum(-1)
    return torch.where(unsigned >= 2 ** (bits - 1), unsigned - 2**bits, unsigned).to(torch.int8)


def signal_to_noise(exact: Tensor, approximate: Tensor) -> float:
    """Return ``10 log10(|exact|^2 / |exact - approximate|^2)`` in decibels; infinite if they are equal."""
    exact = exact.detach().double()
    error = exact - approximate.detach().double()
    noise = float((error * error).sum())
    return float("inf") if noise == 0.0 else float(10.0 * torch.log10((exact * exact).sum() / noise))
