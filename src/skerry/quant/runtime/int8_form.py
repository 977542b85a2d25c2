"""Which stored weights are exactly int8 codes times one scale an output row, and how to get them back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from skerry.quant.formats.mixed_decomposition import MixedInt8Tensor
from skerry.quant.formats.outlier_victim import VictimTensor
from skerry.quant.numerics import IntTensor
from skerry.quant.parts import QuantizedTensor

__all__ = ["Int8Form", "has_int8_form", "int8_form"]


@dataclass(frozen=True)
class Int8Form:
    """``W = (codes - zero) * scale``.

    Attributes
    ----------
    codes : int8 Tensor of shape (out, in)
    scale : float32 Tensor of shape (out,)
    zero : float32 Tensor of shape (out,) or None
    rebuild : callable
        From codes to the stored weight they came from.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    rebuild: Callable[[Tensor], QuantizedTensor]


def has_int8_form(weight: QuantizedTensor) -> bool:
    """Return whether :func:`int8_form` gives something."""
    if isinstance(weight, IntTensor):
        grid = weight.grid
        return grid.group_size == 0 or (grid.axis == 1 and grid.group_size in (-1, weight.shape[1]))
    if isinstance(weight, VictimTensor):
        return weight.codec.largest <= 127
    return isinstance(weight, MixedInt8Tensor)


def int8_form(weight: QuantizedTensor) -> Int8Form | None:
    """Return the weight as int8 codes with a scale (and zero point) an output row; None if it is not that."""
    if not has_int8_form(weight):
        return None
    out = weight.shape[0]
    if isinstance(weight, VictimTensor):
        empty = replace(weight, packed=weight.packed[:0])

        def encode(codes: Tensor) -> VictimTensor:
            padded = torch.nn.functional.pad(codes.float(), (0, codes.shape[1] % 2))
            return replace(empty, packed=empty.codec.encode(padded))

        return Int8Form(weight.integers().to(torch.int8), _row(weight.scale, out), None, encode)
    assert isinstance(weight, (IntTensor, MixedInt8Tensor))
    shell = replace(weight, codes=weight.codes[:0])
    zero = None if isinstance(weight, MixedInt8Tensor) or weight.zero is None else _row(weight.zero, out)
    return Int8Form(weight.codes, _row(weight.scale, out), zero, lambda codes: replace(shell, codes=codes))


def _row(parameter: Tensor, out: int) -> Tensor:
    return parameter.float().reshape(-1).expand(out).contiguous()
