"""8-bit inputs times 8-bit weights: the path that beats bfloat16 at every number of tokens on processors with VNNI.

On a GPU the same arithmetic runs on its own 8-bit product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from skerry.core.errors import ModelError
from skerry.quant.activation import RoundClamp, TensorDynamic, TensorStatic, TokenDynamic
from skerry.quant.parts import Solved, device_of
from skerry.quant.runtime.capability import int8_products
from skerry.quant.runtime.extras import Extras
from skerry.quant.runtime.int8_form import has_int8_form
from skerry.quant.runtime.int8_rows import Int8Rows

__all__ = ["Int8Linear", "int8_input", "unsigned", "whole_input"]

TINY = 1e-12


class Int8Linear(Int8Rows):
    """Per-token, per-tensor or scale-free inputs of at most 8 bits, weights of at most 8 bits with a scale a row.

    Sparse and low-rank parts are added in floating point.
    """

    name = "w8a8"

    def __init__(self, solved: Solved, activation: Any, bias: Tensor | None = None) -> None:
        super().__init__(solved, activation)
        self.extras = Extras(solved, bias)

    @classmethod
    def matches(cls, solved: Solved, activation: Any) -> bool:
        """Return whether this weight and input quantizer can be multiplied here."""
        kinds = (TokenDynamic, TensorDynamic, TensorStatic, RoundClamp)
        if not isinstance(activation, kinds) or activation.bits > 8:
            return False
        return has_int8_form(solved.weight) and int8_products(device_of(solved.weight).type)

    @classmethod
    def prepare(cls, solved: Solved, activation: Any, bias: Tensor | None = None) -> Int8Linear:
        """Pack the weight."""
        return cls(solved, activation, bias)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return super().nbytes + self.extras.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        """Return (..., out) in the dtype of ``x``."""
        flat = x.reshape(-1, x.shape[-1])
        codes, scale, zero = int8_input(flat, self.activation)
        shifted = zero is not None or self.zero is not None  # whole numbers then cancel exactly before they are scaled
        y = self.packed.product(codes, None if shifted else self.scale)
        if self.zero is not None:
            y.addr_(codes.sum(1, dtype=torch.int64).float() - 128.0 * codes.shape[1], self.zero, alpha=-1.0)
        if zero is not None:
            y.addcmul_(zero, self.row_sum, value=-1.0)
        y.mul_(scale)
        if shifted:
            y.mul_(self.scale)

        def rounded(columns: Tensor | None) -> Tensor:
            part = codes if columns is None else codes[:, columns]
            return (part.float() - (128.0 if zero is None else 128.0 + zero)) * scale

        y = self.extras.finish(y, flat, rounded)
        return y.to(x.dtype).reshape(*x.shape[:-1], y.shape[-1])


def int8_input(x: Tensor, activation: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the codes that ``activation.fake`` stands for.

    Parameters
    ----------
    x : Tensor of shape (tokens, in)
    activation : TokenDynamic, TensorDynamic, TensorStatic or RoundClamp

    Returns
    -------
    codes : uint8 Tensor of shape (tokens, in)
        Signed codes plus 128.
    scale : float32 Tensor of shape (tokens, 1) or (1, 1)
    zero : float32 Tensor of that shape, or None
        ``x`` is about ``(codes - 128 - zero) * scale``.
    """
    whole, scale, zero = whole_input(x, activation)
    return unsigned(whole), scale, zero


def whole_input(x: Tensor, activation: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the same with the signed codes as whole float32 numbers."""
    top = 2 ** (activation.bits - 1) - 1
    x = x.clone() if x.dtype == torch.float32 else x.float()  # changed in place below
    if isinstance(activation, RoundClamp):
        return _codes(x, None, None, -top - 1, top), x.new_ones(1, 1, dtype=torch.float32), None
    low, high = _range(x, activation)
    if activation.symmetric:
        scale = (torch.maximum(-low, high) / top).clamp(min=TINY)
        return _codes(x, scale, None, -top, top), scale, None
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    scale = ((high - low) / (2 * top + 1)).clamp(min=TINY)
    zero = torch.round(-top - 1 - low / scale)
    return _codes(x, scale, zero, -top - 1, top), scale, zero


def _range(x: Tensor, activation: Any) -> tuple[Tensor, Tensor]:
    if isinstance(activation, TensorStatic):
        if activation.low is None or activation.high is None:
            raise ModelError("this static activation quantizer has not seen calibration data")
        return x.new_tensor([[activation.low]]), x.new_tensor([[activation.high]])
    if not x.numel():
        nothing = x.new_zeros(len(x) if isinstance(activation, TokenDynamic) else 1, 1)
        return nothing, nothing
    if isinstance(activation, TensorDynamic):
        return x.amin().reshape(1, 1), x.amax().reshape(1, 1)
    low, high = torch.aminmax(x, dim=1, keepdim=True)
    return low * activation.ratio, high * activation.ratio


def unsigned(codes: Tensor) -> Tensor:
    """Return whole float32 numbers of -128 .. 127 as uint8, plus 128; by way of int8, which is the fast cast."""
    return codes.to(torch.int8).view(torch.uint8).bitwise_xor_(128)


def _codes(x: Tensor, scale: Tensor | None, zero: Tensor | None, low: int, high: int) -> Tensor:
    """Return the codes, in place of ``x``."""
    if scale is not None:
        x.div_(scale)
    if zero is not None:
        x.add_(zero)
    return x.round_().clamp_(low, high)
