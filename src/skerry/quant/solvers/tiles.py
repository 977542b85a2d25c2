"""One scale for a tile of rows and columns: a third direction for AdaDim's choice, not in the paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from skerry.core.errors import ModelError
from skerry.quant.numerics import AffineGrid, pack_bits, unpack_bits
from skerry.quant.parts import Solved
from skerry.quant.solvers.gptq import GPTQ
from skerry.quant.solvers.layer import (
    Places,
    checked,
    column_order,
    error_feedback,
    feedback_factor,
    fell_back,
    gram_of,
    layer_error,
    told,
)
from skerry.quant.statistics import LayerStatistics

__all__ = ["Tiled"]


@dataclass(frozen=True)
class Tiled:
    """Codes of a weight whose tiles share a scale.

    Attributes
    ----------
    grid : AffineGrid
        Bits and kind; its group size is that of a tile.
    codes : int8 Tensor of shape (out, in)
    scale : Tensor of shape (out // rows, in // columns)
    zero : int32 Tensor or None
    tile : (int, int)
        Rows and columns.
    """

    grid: AffineGrid
    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    tile: tuple[int, int]

    kind = "tiled"

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return tuple(self.codes.shape)  # type: ignore[return-value]

    @property
    def nbytes(self) -> int:
        """Bytes when packed: codes and zero points at ``bits`` each, and scales."""
        out, inputs = self.shape
        total = out * ((inputs * self.grid.bits + 7) // 8) + self.scale.numel() * self.scale.element_size()
        return total + (0 if self.zero is None else (self.zero.numel() * self.grid.bits + 7) // 8)

    def dequantize(self) -> Tensor:
        """Return float32 values (out, in)."""
        codes = self.codes.float()
        if self.zero is not None:
            codes = codes - self._spread(self.zero).float()
        return codes * self._spread(self.scale).float()

    def meta(self) -> dict[str, Any]:
        """Return what JSON must keep."""
        return {"kind": self.kind, "shape": list(self.shape), "grid": asdict(self.grid), "tile": list(self.tile)}

    def tensors(self) -> dict[str, Tensor]:
        """Return what safetensors must keep."""
        found = {"packed": pack_bits(self.codes, self.grid.bits), "scale": self.scale.contiguous()}
        return found if self.zero is None else found | {"zero": self.zero.to(torch.int8)}

    @classmethod
    def from_tensors(cls, meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Tiled:
        """Rebuild what was saved."""
        grid, zero = AffineGrid(**meta["grid"]), tensors.get("zero")
        codes = unpack_bits(tensors["packed"], grid.bits, meta["shape"][1])
        return cls(grid, codes, tensors["scale"], None if zero is None else zero.to(torch.int32), tuple(meta["tile"]))

    def _spread(self, values: Tensor) -> Tensor:
        return values.repeat_interleave(self.tile[0], 0).repeat_interleave(self.tile[1], 1)

    @classmethod
    def rounded(cls, W: Tensor, grid: AffineGrid, tile: tuple[int, int]) -> Tiled:
        """Round to nearest.

        Raises
        ------
        ModelError
            If the tile does not divide the weight.

        Examples
        --------
        >>> Tiled.rounded(torch.eye(4), AffineGrid(4, group_size=4), (2, 2)).dequantize().equal(torch.eye(4))
        True
        """
        (out, inputs), (rows, columns) = W.shape, tile
        if out % rows or inputs % columns:
            raise ModelError(f"tiles of {rows} x {columns} do not divide a weight of {out} x {inputs}")
        flat = W.reshape(out // rows, rows, -1, columns).transpose(1, 2).reshape(out // rows, -1)
        inner = replace(grid, axis=1, group_size=rows * columns).quantize(flat)
        codes = inner.codes.reshape(out // rows, -1, rows, columns).transpose(1, 2).reshape(out, inputs)
        return cls(grid, codes.contiguous(), inner.scale, inner.zero, tile)

    @classmethod
    def solved(
        cls, W: Tensor, statistics: LayerStatistics, grid: AffineGrid, tile: tuple[int, int], base: Any, name: str
    ) -> Solved:
        """Return the rounded weight, or GPTQ's on the same tiles if ``base`` is GPTQ."""
        W = checked(W, name)
        gram = gram_of(statistics, W, name)
        found, info = cls.rounded(W, grid, tile), {}
        if isinstance(base, GPTQ):
            order = column_order(gram, base.act_order)
            factor = feedback_factor(gram[order][:, order], base.damp)
            info = told({"act_order": base.act_order}, statistics, gram)
            if factor is None:
                info = fell_back(name, info)
            else:
                info["damp"] = factor.damp
                places = Places(tile[0], order.numpy() // tile[1], tuple(found.scale.shape))  # type: ignore[arg-type]
                codes, _, _ = error_feedback(W, factor, order, grid, found.scale, found.zero, name, places=places)
                found = replace(found, codes=codes)
        return Solved(found, objective=layer_error(W, found.dequantize(), gram), info=info)
