"""LLM.int8() on packed weights: one 8-bit product, and the outlier columns added in floating point.

The weight's outlier rows are read out of the packed copy by unit vectors that ride along in the same product, so no
second copy of the weight is held and nothing is gathered.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from skerry.quant.formats.mixed_decomposition import MixedInt8Tensor, OutlierSplit
from skerry.quant.parts import Solved, SparseColumns, device_of
from skerry.quant.runtime.capability import int8_products
from skerry.quant.runtime.extras import Extras
from skerry.quant.runtime.int8_form import has_int8_form
from skerry.quant.runtime.int8_rows import Int8Rows
from skerry.quant.runtime.w8a8 import unsigned

__all__ = ["MixedInt8Kernel"]


class MixedInt8Kernel(Int8Rows):
    """Inputs of an :class:`~skerry.quant.formats.mixed_decomposition.OutlierSplit`, int8 weights with a scale a row.

    Attributes
    ----------
    outliers : Tensor
        The outlier columns of the last call.
    """

    name = "mixed_int8"

    def __init__(self, solved: Solved, activation: OutlierSplit, bias: Tensor | None = None) -> None:
        super().__init__(solved, activation)
        self.kept: Tensor | None = None  # (in, out), or the rows of static columns (n, out)
        if activation.mode == "static":
            columns = list(activation.columns or ())
            self.kept = solved.dense()[:, columns].T.contiguous()
            solved = Solved(solved.weight, low_rank=solved.low_rank)
        elif isinstance(solved.weight, MixedInt8Tensor) and solved.weight.kept is not None:
            self.kept = solved.weight.kept.T.contiguous()
        self.extras = Extras(solved, bias)
        self.outliers = torch.zeros(0, dtype=torch.int64)

    @classmethod
    def matches(cls, solved: Solved, activation: Any) -> bool:
        """Return whether this weight and input quantizer can be multiplied here."""
        if not isinstance(activation, OutlierSplit) or not has_int8_form(solved.weight):
            return False
        if not int8_products(device_of(solved.weight).type):
            return False
        if activation.mode == "dynamic":
            return solved.sparse is None
        if activation.columns is None:
            return False
        if solved.sparse is None:
            return True
        return isinstance(solved.sparse, SparseColumns) and set(solved.sparse.columns.tolist()) <= set(
            activation.columns
        )

    @classmethod
    def prepare(cls, solved: Solved, activation: OutlierSplit, bias: Tensor | None = None) -> MixedInt8Kernel:
        """Pack the weight."""
        return cls(solved, activation, bias)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        kept = 0 if self.kept is None else self.kept.numel() * self.kept.element_size()
        return super().nbytes + kept + self.extras.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        """Return (..., out) in the dtype of ``x``."""
        flat = x.reshape(-1, x.shape[-1])
        tokens = len(flat)
        codes, scale, zero, outliers = self.activation.split(flat)
        self.outliers = outliers
        if zero is not None and len(outliers):
            codes.index_copy_(1, outliers, zero.expand(-1, len(outliers)))  # worth 0, whatever the zero point
        reads = len(outliers) and self.kept is None
        inputs = unsigned(codes)
        if reads:
            unit = inputs.new_full((len(outliers), flat.shape[1]), 128)
            unit.scatter_(1, outliers[:, None], 129)
            inputs = torch.cat((inputs, unit))
        shifted = zero is not None or self.zero is not None  # whole numbers then cancel exactly before they are scaled
        product = self.packed.product(inputs, None if shifted else self.scale)
        y = product[:tokens]
        if self.zero is not None:
            y.addr_(codes.sum(1), self.zero, alpha=-1.0)
        if zero is not None:
            y.addcmul_(zero, self.row_sum, value=-1.0)
        y.mul_(scale)
        if shifted:
            y.mul_(self.scale)
        if len(outliers):
            if self.kept is None:
                rows = product[tokens:]
                rows = rows if self.zero is None else rows - self.zero
                rows = rows * self.scale if shifted else rows
            else:
                rows = self.kept if self.activation.mode == "static" else self.kept[outliers]
            y.addmm_(flat[:, outliers].float(), rows.float())
        y = self.extras.finish(y, flat, lambda columns: self.activation.fake(flat).float())
        return y.to(x.dtype).reshape(*x.shape[:-1], y.shape[-1])
