"""LLM.int8() (arXiv 2208.07339): all but a few input columns multiplied in 8 bits, those few in floating point.

The columns are found in the live input by one threshold, with no calibration. Weights are int8 codes with one scale
an output row over all columns, made once; the released library does the same (the paper keeps float rows too, here
``outlier_weights="float"``). Inputs get one scale a token from the columns that stay (the paper; the library's rule,
the entries that stay, is ``scope="entries"``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from skerry.core.errors import ModelError, ParameterError
from skerry.quant.parts import Solved, SparseColumns
from skerry.quant.statistics import LayerStatistics

__all__ = ["MixedInfo", "MixedInt8", "MixedInt8Tensor", "OutlierSplit", "SplitInput", "mixed_product"]

TINY = 1e-12


class SplitInput(NamedTuple):
    """An input cut in two: 8-bit codes (of 0 in the columns of ``outliers``), scale, zero point, and those columns.

    ``codes`` (tokens, in) holds whole float32 numbers; ``scale`` and ``zero`` are (tokens, 1), ``zero`` None if
    symmetric; ``outliers`` int64 (n,).
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    outliers: Tensor


class MixedInfo(NamedTuple):
    """What a product did: the outlier columns, and the share of input columns multiplied in 8 bits."""

    outlier_dims: list[int]
    int8_share: float


@dataclass(frozen=True)
class OutlierSplit:
    """Inputs rounded token by token, except the columns that hold a value of at least ``threshold``.

    Parameters
    ----------
    threshold : float, default 6.0
        Infinity: no column is kept out.
    bits : int, default 8
    symmetric : bool, default True
        False: a zero point for every token (the paper's zero-point variant, for inputs on one side of 0).
    scope : {"columns", "entries"}, default "columns"
        What is left out when a token's scale is set: outlier columns, or only the outliers in them.
    mode : {"dynamic", "static"}, default "dynamic"
        Columns found in each call, or once on calibration data.
    columns : tuple of int or None
        The static columns; None until :meth:`calibrated`.

    Raises
    ------
    ParameterError
        For settings out of range.

    Examples
    --------
    >>> x = torch.tensor([[1.0, -2.0, 8.0, 0.5], [0.25, 3.0, -7.0, -1.5]])
    >>> OutlierSplit().find(x).tolist()
    [2]
    >>> OutlierSplit().fake(x)[:, 2]
    tensor([ 8., -7.])
    """

    threshold: float = 6.0
    bits: int = 8
    symmetric: bool = True
    scope: str = "columns"
    mode: str = "dynamic"
    columns: tuple[int, ...] | None = None

    kind = "outlier_split"

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise ParameterError(f"threshold must be 0 or larger, got {self.threshold}")
        if not 2 <= self.bits <= 8:
            raise ParameterError(f"bits must be 2 to 8, got {self.bits}")
        if self.scope not in ("columns", "entries"):
            raise ParameterError(f"scope must be 'columns' or 'entries', got {self.scope!r}")
        if self.mode not in ("dynamic", "static"):
            raise ParameterError(f"mode must be 'dynamic' or 'static', got {self.mode!r}")

    @property
    def needs(self) -> frozenset[str]:
        """The statistic of the static mode."""
        return frozenset({"absmax"}) if self.mode == "static" else frozenset()

    def calibrated(self, statistics: LayerStatistics) -> OutlierSplit:
        """Return the quantizer with its columns, or itself if they are found in each call."""
        if self.mode == "dynamic":
            return self
        if statistics.absmax is None:
            raise ModelError("static outlier columns need the 'absmax' statistic")
        return replace(self, columns=tuple(torch.nonzero(statistics.absmax >= self.threshold)[:, 0].tolist()))

    def find(self, x: Tensor) -> Tensor:
        """Return the outlier columns (int64) of an input (..., in).

        Raises
        ------
        ModelError
            In static mode before calibration.
        """
        if self.mode == "static":
            if self.columns is None:
                raise ModelError("these static outlier columns have not seen calibration data")
            return torch.tensor(self.columns, dtype=torch.int64, device=x.device)
        if not x.numel():
            return torch.zeros(0, dtype=torch.int64, device=x.device)
        flat = x.reshape(-1, x.shape[-1])
        return torch.nonzero(torch.maximum(flat.amax(0), -flat.amin(0)) >= self.threshold)[:, 0]

    def split(self, x: Tensor) -> SplitInput:
        """Cut and round an input (tokens, in); scales are float32 and codes clamped before any cast."""
        y = x.float() if x.dtype != torch.float32 else x.clone()  # changed in place: fresh memory costs more than sums
        outliers = self.find(y)
        ranged = y
        if len(outliers):
            if self.scope == "entries":
                ranged = y.masked_fill(y.abs() >= self.threshold, 0.0)
            y.index_fill_(1, outliers, 0.0)
        top = 2 ** (self.bits - 1) - 1
        low, high = ranged.amin(1, keepdim=True), ranged.amax(1, keepdim=True)
        if self.symmetric:
            scale = (torch.maximum(-low, high) / top).clamp(min=TINY)
            return SplitInput(y.div_(scale).round_().clamp_(-top, top), scale, None, outliers)
        low, high = low.clamp(max=0.0), high.clamp(min=0.0)
        scale = ((high - low) / (2 * top + 1)).clamp(min=TINY)
        zero = torch.round(-top - 1 - low / scale)
        return SplitInput(y.div_(scale).add_(zero).round_().clamp_(-top - 1, top), scale, zero, outliers)

    def fake(self, x: Tensor) -> Tensor:
        """Return ``x`` (..., in) rounded, its outlier columns as they were."""
        flat = x.reshape(-1, x.shape[-1])
        codes, scale, zero, outliers = self.split(flat)
        y = (codes if zero is None else codes - zero) * scale
        if len(outliers):
            y = y.index_copy(1, outliers, flat[:, outliers].float())
        return y.reshape(x.shape).to(x.dtype)


@dataclass(frozen=True)
class MixedInt8:
    """Weights as int8 codes with one scale an output row.

    Parameters
    ----------
    outlier_weights : {"int8", "float"}, default "int8"
        What outlier columns of the input are multiplied with: the codes, or a bfloat16 copy of the weight, which
        triples the memory of the layer.

    Raises
    ------
    ParameterError
        For another value.

    Examples
    --------
    >>> stored = MixedInt8().quantize(torch.tensor([[0.5, -1.27], [0.0, 0.0]]))
    >>> stored.codes.tolist()
    [[50, -127], [0, 0]]
    """

    outlier_weights: str = "int8"

    def __post_init__(self) -> None:
        if self.outlier_weights not in ("int8", "float"):
            raise ParameterError(f"outlier_weights must be 'int8' or 'float', got {self.outlier_weights!r}")

    def quantize(self, W: Tensor) -> MixedInt8Tensor:
        """Round ``W`` (out, in)."""
        W = W.detach().float()
        scale = (W.abs().amax(1, keepdim=True) / 127).clamp(min=TINY)
        codes = torch.round(W / scale).clamp(-127, 127).to(torch.int8)
        return MixedInt8Tensor(self, codes, scale, W.bfloat16() if self.outlier_weights == "float" else None)

    def with_columns(self, W: Tensor, columns: tuple[int, ...]) -> Solved:
        """Store ``W`` for static outlier columns: those in bfloat16, the others in int8 on a scale of their own."""
        index = torch.tensor(columns, dtype=torch.int64, device=W.device)
        rest = W.detach().float().index_fill(1, index, 0.0)
        kept = SparseColumns(index.to(torch.int32), W.detach()[:, index].bfloat16(), tuple(W.shape))
        return Solved(MixedInt8().quantize(rest), sparse=kept, info={"outlier_columns": len(columns)})

    def bits_per_weight(self, shape: tuple[int, int]) -> float:
        """Return stored bits for each weight, scales included."""
        return 8.0 + 32.0 / shape[1] + (16.0 if self.outlier_weights == "float" else 0.0)


@dataclass(frozen=True)
class MixedInt8Tensor:
    """int8 codes (out, in), float32 scales (out, 1), and perhaps the bfloat16 weight."""

    format: MixedInt8
    codes: Tensor
    scale: Tensor
    kept: Tensor | None = None

    kind = "mixed_int8"

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return tuple(self.codes.shape)  # type: ignore[return-value]

    @property
    def nbytes(self) -> int:
        """Bytes as saved."""
        return self.codes.numel() + 4 * self.scale.numel() + (0 if self.kept is None else 2 * self.kept.numel())

    def dequantize(self) -> Tensor:
        """Return float32 values (out, in) of the codes."""
        return self.codes.float() * self.scale

    def columns(self, outliers: Tensor) -> Tensor:
        """Return the float32 weight (out, n) that outlier columns of the input are multiplied with."""
        if self.kept is not None:
            return self.kept[:, outliers].float()
        return self.codes[:, outliers].float() * self.scale

    def meta(self) -> dict[str, Any]:
        """Return what JSON must keep."""
        return {"kind": self.kind, "shape": list(self.shape), "format": asdict(self.format)}

    def tensors(self) -> dict[str, Tensor]:
        """Return what safetensors must keep."""
        found = {"codes": self.codes, "scale": self.scale}
        return found if self.kept is None else found | {"kept": self.kept}

    @classmethod
    def from_tensors(cls, meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> MixedInt8Tensor:
        """Rebuild what was saved."""
        return cls(MixedInt8(**meta["format"]), tensors["codes"], tensors["scale"], tensors.get("kept"))


def mixed_product(x: Tensor, weight: MixedInt8Tensor, split: OutlierSplit) -> tuple[Tensor, MixedInfo]:
    """Return ``x W^T`` (tokens, out) in float32 by decomposition, the reference of the fast kernel.

    Parameters
    ----------
    x : Tensor of shape (tokens, in)
    weight : MixedInt8Tensor
    split : OutlierSplit

    Returns
    -------
    product : float32 Tensor of shape (tokens, out)
    info : MixedInfo

    Examples
    --------
    >>> x = torch.tensor([[1.0, -2.0, 8.0, 0.5]])
    >>> y, info = mixed_product(x, MixedInt8().quantize(torch.eye(4)), OutlierSplit())
    >>> info.outlier_dims, info.int8_share
    ([2], 0.75)
    """
    codes, scale, zero, outliers = split.split(x)
    if zero is not None:
        codes = (codes - zero).index_fill(1, outliers, 0.0)
    y = (codes @ weight.codes.float().T) * (scale * weight.scale[:, 0])
    if len(outliers):
        y = y + x[:, outliers].float() @ weight.columns(outliers).T
    return y, MixedInfo(outliers.tolist(), 1.0 - len(outliers) / x.shape[1])
