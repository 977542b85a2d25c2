"""FP8 storage (e4m3): 8-bit floats with one scale a row or a tensor; and inputs rounded to them token by token.

On CPUs FP8 products are emulated and slow; the format is for storing and for serving elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from skerry.core.errors import ParameterError
from skerry.quant.statistics import LayerStatistics

__all__ = ["Float8", "Float8Tensor", "Float8Token"]

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0
TINY = 1e-12
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def to_e4m3(x: Tensor) -> Tensor:
    """Return float32 values as e4m3; what is beyond 448 becomes 448 (a plain cast would give NaN)."""
    return x.clamp(-LARGEST, LARGEST).to(E4M3)


@dataclass(frozen=True)
class Float8:
    """Weights as e4m3 floats times a scale.

    Parameters
    ----------
    granularity : {"row", "tensor"}, default "row"
        Entries that share a scale.
    scale_dtype : {"float32", "bfloat16", "float16"}, default "float32"

    Raises
    ------
    ParameterError
        For another granularity or dtype.

    Examples
    --------
    >>> Float8().quantize(torch.tensor([[448.0, 3.3]])).dequantize()
    tensor([[448.0000,   3.2500]])
    """

    granularity: str = "row"
    scale_dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.granularity not in ("row", "tensor"):
            raise ParameterError(f"granularity must be 'row' or 'tensor', got {self.granularity!r}")
        if self.scale_dtype not in _DTYPES:
            raise ParameterError(f"scale_dtype must be one of {', '.join(_DTYPES)}, got {self.scale_dtype!r}")

    def quantize(self, W: Tensor) -> Float8Tensor:
        """Round ``W`` (out, in)."""
        W = W.detach().float()
        top = W.abs().amax(1, keepdim=True) if self.granularity == "row" else W.abs().amax().reshape(1, 1)
        scale = (top / LARGEST).clamp(min=TINY).to(_DTYPES[self.scale_dtype])
        return Float8Tensor(self, to_e4m3(W / scale.float()), scale)

    def bits_per_weight(self, shape: tuple[int, int]) -> float:
        """Return stored bits for each weight, scales included."""
        scales = shape[0] if self.granularity == "row" else 1
        return 8.0 + scales * 8 * _DTYPES[self.scale_dtype].itemsize / (shape[0] * shape[1])


@dataclass(frozen=True)
class Float8Tensor:
    """A weight of e4m3 floats (out, in) and its scale (out, 1) or (1, 1)."""

    format: Float8
    values: Tensor
    scale: Tensor

    kind = "float8"

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return tuple(self.values.shape)  # type: ignore[return-value]

    @property
    def nbytes(self) -> int:
        """Bytes as saved."""
        return self.values.numel() + self.scale.numel() * self.scale.element_size()

    def dequantize(self) -> Tensor:
        """Return float32 values (out, in)."""
        return self.values.float() * self.scale.float()

    def meta(self) -> dict[str, Any]:
        """Return what JSON must keep."""
        return {"kind": self.kind, "shape": list(self.shape), "format": asdict(self.format)}

    def tensors(self) -> dict[str, Tensor]:
        """Return what safetensors must keep."""
        return {"values": self.values, "scale": self.scale}

    @classmethod
    def from_tensors(cls, meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Float8Tensor:
        """Rebuild what was saved."""
        return cls(Float8(**meta["format"]), tensors["values"], tensors["scale"])


@dataclass(frozen=True)
class Float8Token:
    """Inputs as e4m3 floats with one scale for every token, set at run time.

    Examples
    --------
    >>> Float8Token().fake(torch.tensor([[448.0, 3.3]]))
    tensor([[448.0000,   3.2500]])
    """

    bits: int = 8

    kind = "float8_token"
    needs = frozenset[str]()

    def calibrated(self, statistics: LayerStatistics) -> Float8Token:
        """Return itself: the scale is set at run time."""
        return self

    def fake(self, x: Tensor) -> Tensor:
        """Return ``x`` (..., in) rounded."""
        y = x.float()
        scale = (y.abs().amax(-1, keepdim=True) / LARGEST).clamp(min=TINY)
        return (to_e4m3(y / scale).float() * scale).to(x.dtype)
