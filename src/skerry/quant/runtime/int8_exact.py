"""8-bit inputs times 8-bit weights where the processor's own 8-bit product saturates: sums of 16-bit pairs instead.

Processors without VNNI add products in 16 bits and cut what does not fit, so oneDNN's product is not used there (see
:mod:`skerry.quant.runtime.capability`). Few tokens are multiplied by a compiled loop that reads the int8 codes as they
are; for many, blocks of codes are converted to float32, whose products of whole numbers are as good as exact.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from skerry.core.errors import ModelError
from skerry.kernels.int8_dot import WIDEST, int8_dot
from skerry.quant.activation import RoundClamp, TensorDynamic, TensorStatic, TokenDynamic
from skerry.quant.parts import QuantizedTensor, Solved, device_of
from skerry.quant.runtime.extras import Extras
from skerry.quant.runtime.int8_form import has_int8_form, int8_form
from skerry.quant.runtime.w8a8 import whole_input

__all__ = ["Int8ExactLinear"]

MANY = 128  # tokens from which blocks in float32 are as fast, on AVX2 at K = N = 2048
ROWS = 1024  # outputs in a block


class Int8ExactLinear:
    """Per-token, per-tensor or scale-free inputs of at most 8 bits, weights of at most 8 bits with a scale a row."""

    name = "int8_exact"

    def __init__(self, solved: Solved, activation: Any, bias: Tensor | None = None, many: int = MANY) -> None:
        form = int8_form(solved.weight)
        if form is None or not self.matches(solved, activation):
            raise ModelError(f"{self.name}: this kernel does not fit {solved.weight.kind} weights with {activation!r}")
        self.activation, self.many = activation, many
        self.codes, self.scale, self.zero, self._rebuild = form.codes.contiguous(), form.scale, form.zero, form.rebuild
        self.extras = Extras(solved, bias)

    @classmethod
    def matches(cls, solved: Solved, activation: Any) -> bool:
        """Return whether this weight and input quantizer can be multiplied here."""
        kinds = (TokenDynamic, TensorDynamic, TensorStatic, RoundClamp)
        if not isinstance(activation, kinds) or activation.bits > 8 or not has_int8_form(solved.weight):
            return False
        return solved.weight.shape[1] <= WIDEST and device_of(solved.weight).type == "cpu"

    @classmethod
    def prepare(cls, solved: Solved, activation: Any, bias: Tensor | None = None) -> Int8ExactLinear:
        """Take the codes as they are."""
        return cls(solved, activation, bias)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        held = [self.codes, self.scale] + ([] if self.zero is None else [self.zero])
        return sum(t.numel() * t.element_size() for t in held) + self.extras.nbytes

    def restore(self) -> QuantizedTensor:
        """Return the stored weight."""
        return self._rebuild(self.codes)

    def __call__(self, x: Tensor) -> Tensor:
        """Return (..., out) in the dtype of ``x``."""
        flat = x.reshape(-1, x.shape[-1])
        whole, scale, zero = whole_input(flat, self.activation)
        if zero is not None:
            whole.sub_(zero)
        y = self._few(whole) if len(whole) < self.many else self._many(whole)
        y.mul_(scale).mul_(self.scale)

        def rounded(columns: Tensor | None) -> Tensor:
            return (whole if columns is None else whole[:, columns]) * scale

        y = self.extras.finish(y, flat, rounded)
        return y.to(x.dtype).reshape(*x.shape[:-1], y.shape[-1])

    def _few(self, whole: Tensor) -> Tensor:
        sent = whole.to(torch.int16).numpy()
        y = torch.from_numpy(int8_dot(self.codes.numpy(), sent, threads=torch.get_num_threads()))
        if self.zero is None:
            return y.float()
        return (y.double() - whole.sum(1, keepdim=True).double() * self.zero.double()).float()

    def _many(self, whole: Tensor) -> Tensor:
        y = torch.empty(len(whole), len(self.codes))
        for start in range(0, len(self.codes), ROWS):
            part = slice(start, start + ROWS)
            codes = self.codes[part].float() if self.zero is None else self.codes[part] - self.zero[part, None]
            y[:, part] = whole @ codes.T
        return y
