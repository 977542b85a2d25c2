"""Dequantize and multiply in floating point: always there, exact, slow; what every kernel is tested against."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from skerry.quant.formats.mixed_decomposition import MixedInt8Tensor, OutlierSplit, mixed_product
from skerry.quant.parts import QuantizedTensor, Solved

__all__ = ["Reference"]


class Reference:
    """Any stored weight, any input quantizer; the weight is dequantized in each call."""

    name = "reference"

    def __init__(self, solved: Solved, activation: Any, bias: Tensor | None = None) -> None:
        self.solved, self.activation = solved, activation
        self.bias = None if bias is None else bias.detach().float()

    @classmethod
    def matches(cls, solved: Solved, activation: Any) -> bool:
        """Return True."""
        return True

    @classmethod
    def prepare(cls, solved: Solved, activation: Any, bias: Tensor | None = None) -> Reference:
        """Take the parts as they are."""
        return cls(solved, activation, bias)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.solved.nbytes + (0 if self.bias is None else 4 * self.bias.numel())

    def restore(self) -> QuantizedTensor:
        """Return the stored weight."""
        return self.solved.weight

    def __call__(self, x: Tensor) -> Tensor:
        """Return (..., out) in the dtype of ``x``, computed in float32."""
        flat = x.reshape(-1, x.shape[-1]).float()
        weight = self.solved.weight
        if (
            isinstance(weight, MixedInt8Tensor)
            and weight.kept is not None
            and isinstance(self.activation, OutlierSplit)
        ):
            y, _ = mixed_product(flat, weight, self.activation)  # outlier columns have float weights
        else:
            rounded = flat if self.activation is None else self.activation.fake(flat)
            main = weight.dequantize()
            if self.solved.sparse is not None:
                main = main + self.solved.sparse.dense()
            y = torch.nn.functional.linear(rounded, main)
        if self.solved.low_rank is not None:
            y = y + flat @ self.solved.low_rank.down.float().T @ self.solved.low_rank.up.float().T
        if self.bias is not None:
            y = y + self.bias
        return y.to(x.dtype).reshape(*x.shape[:-1], y.shape[-1])
