"""A stored weight whose input columns are multiplied before rounding and divided after: AWQ with nothing to fold into.

A runtime divides the inputs by the scale instead, which is the same product.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from skerry.quant.numerics import IntTensor

__all__ = ["ColumnScaled"]


@dataclass(frozen=True)
class ColumnScaled:
    """``weight.dequantize() / scale``.

    Attributes
    ----------
    weight : IntTensor
        Of the multiplied weight.
    scale : float16 Tensor of shape (in,)
    """

    weight: IntTensor
    scale: Tensor

    kind = "column_scaled"

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.weight.shape

    @property
    def nbytes(self) -> int:
        """Bytes of the weight and of one scale an input."""
        return self.weight.nbytes + self.scale.numel() * self.scale.element_size()

    def dequantize(self) -> Tensor:
        """Return float32 values (out, in)."""
        return self.weight.dequantize() / self.scale.float()

    def meta(self) -> dict[str, Any]:
        """Return what JSON must keep."""
        return {"kind": self.kind, "shape": list(self.shape), "weight": self.weight.meta()}

    def tensors(self) -> dict[str, Tensor]:
        """Return what safetensors must keep."""
        return {"column_scale": self.scale} | self.weight.tensors()

    @classmethod
    def from_tensors(cls, meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> ColumnScaled:
        """Rebuild what was saved."""
        return cls(IntTensor.from_tensors(meta["weight"], tensors), tensors["column_scale"])
