"""A stored weight of small groups whose scales and zero points are themselves quantized (SpQR, arXiv 2306.03078)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from skerry.quant.numerics import pack_bits, unpack_bits

__all__ = ["Level", "TwoLevel"]


@dataclass(frozen=True)
class Level:
    """Scales or zero points (out, groups) on grids shared by ``rows`` rows of a group.

    Attributes
    ----------
    bits : int
        16: ``data`` holds bfloat16 values and there is no second level.
    rows : int
    data : uint8 or bfloat16 Tensor of shape (out, groups)
    low, step : bfloat16 Tensor of shape (ceil(out / rows), groups), or None
    """

    bits: int
    rows: int
    data: Tensor
    low: Tensor | None = None
    step: Tensor | None = None

    def values(self) -> Tensor:
        """Return float32 values (out, groups)."""
        if self.low is None or self.step is None:
            return self.data.float()
        low, step = (t.float().repeat_interleave(self.rows, 0)[: len(self.data)] for t in (self.low, self.step))
        return low + self.data.float() * step

    @property
    def nbytes(self) -> int:
        """Bytes when packed."""
        sides = sum(t.numel() * t.element_size() for t in (self.low, self.step) if t is not None)
        return (self.data.numel() * self.bits + 7) // 8 + sides

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Return what safetensors must keep."""
        if self.low is None or self.step is None:
            return {prefix: self.data}
        packed = pack_bits(self.data.reshape(1, -1).to(torch.int16), self.bits)
        return {prefix: packed, f"{prefix}_low": self.low, f"{prefix}_step": self.step}

    @classmethod
    def from_tensors(cls, prefix: str, bits: int, rows: int, shape: list[int], tensors: Mapping[str, Tensor]) -> Level:
        """Rebuild what was saved."""
        if bits == 16:
            return cls(bits, rows, tensors[prefix])
        signed = unpack_bits(tensors[prefix], bits, shape[0] * shape[1]).to(torch.int16)
        data = (signed & (2**bits - 1)).to(torch.uint8).reshape(shape)
        return cls(bits, rows, data, tensors[f"{prefix}_low"], tensors[f"{prefix}_step"])


@dataclass(frozen=True)
class TwoLevel:
    """``(code - zero) * scale`` with a real zero point; groups are of columns in working order.

    Attributes
    ----------
    bits, group_size : int
    codes : int8 Tensor of shape (out, in), columns in working order
    scale, zero : Level
    order : int32 Tensor of shape (in,), or None
        The original column of every column in working order; None where nothing was moved.
    """

    bits: int
    group_size: int
    codes: Tensor
    scale: Level
    zero: Level
    order: Tensor | None = None

    kind = "two_level"

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return tuple(self.codes.shape)  # type: ignore[return-value]

    @property
    def nbytes(self) -> int:
        """Bytes when packed: codes, both levels, the order."""
        out, inputs = self.shape
        order = 0 if self.order is None else self.order.numel() * self.order.element_size()
        return out * ((inputs * self.bits + 7) // 8) + self.scale.nbytes + self.zero.nbytes + order

    def dequantize(self) -> Tensor:
        """Return float32 values (out, in)."""
        scale, zero = (level.values().repeat_interleave(self.group_size, 1) for level in (self.scale, self.zero))
        values = (self.codes.float() - zero) * scale
        if self.order is None:
            return values
        found = torch.empty_like(values)
        found[:, self.order.long()] = values
        return found

    def meta(self) -> dict[str, Any]:
        """Return what JSON must keep."""
        return {
            "kind": self.kind,
            "shape": list(self.shape),
            "bits": self.bits,
            "group_size": self.group_size,
            "scale_bits": self.scale.bits,
            "scale_rows": self.scale.rows,
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return what safetensors must keep."""
        found = {"packed": pack_bits(self.codes, self.bits)}
        found |= self.scale.tensors("scale") | self.zero.tensors("zero")
        return found if self.order is None else found | {"order": self.order}

    @classmethod
    def from_tensors(cls, meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> TwoLevel:
        """Rebuild what was saved."""
        out, inputs = meta["shape"]
        groups = [out, inputs // meta["group_size"]]
        scale, zero = (
            Level.from_tensors(p, meta["scale_bits"], meta["scale_rows"], groups, tensors) for p in ("scale", "zero")
        )
        codes = unpack_bits(tensors["packed"], meta["bits"], inputs)
        return cls(meta["bits"], meta["group_size"], codes, scale, zero, tensors.get("order"))
