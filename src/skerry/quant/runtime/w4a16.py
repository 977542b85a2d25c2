"""4-bit (and 3-, 2-bit) weights times bfloat16 inputs: reads a quarter of the bytes, so decoding is faster.

Few tokens go through torch's int4 product; many are multiplied with blocks of outputs dequantized on the way, since
that product loses to bfloat16 from some sixteen tokens on. Few tokens see the stored weight exactly: a float32 scale is
the sum of two bfloat16 ones, and zero points are a small product with the inputs' group sums. Many tokens see group
weights rounded to bfloat16 once, as a bfloat16 model would hold them (not at all, where float32 is quicker).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from skerry.core.errors import ModelError
from skerry.quant.numerics import IntTensor
from skerry.quant.parts import QuantizedTensor, Solved, device_of
from skerry.quant.runtime.capability import int4_products, product_dtype
from skerry.quant.runtime.extras import Extras
from skerry.quant.runtime.packing import PackedInt4

__all__ = ["Int4Linear"]

MANY = 96  # tokens from which blocks are dequantized: there both cost the same at K = N = 4096
OUTPUTS = 512  # dequantized at a time


class Int4Linear:
    """Integer weights of at most 4 bits, scales a row, a tensor or a group of 32, 64, 128, 256 (or a multiple) inputs.

    The input is rounded by ``activation`` (if any) and sent in bfloat16; float32 inputs are cast.

    Parameters
    ----------
    solved, activation, bias
        As for every kernel.
    many : int, default 96
        Number of tokens from which blocks of outputs are dequantized.
    """

    name = "w4a16"

    def __init__(self, solved: Solved, activation: Any, bias: Tensor | None = None, many: int = MANY) -> None:
        weight = solved.weight
        if not isinstance(weight, IntTensor) or not self.matches(solved, activation):
            raise ModelError(f"{self.name}: this kernel does not fit {weight.kind} weights with {activation!r}")
        self.activation, self.many = activation, many
        self._shell = replace(weight, codes=weight.codes[:0])
        self.packed = PackedInt4(weight.codes)
        self.row_scale: Tensor | None = None  # a scale a row is applied to the output: exact in float32
        out = weight.shape[0]
        size = self._group(weight)
        scale = weight.scale.float().expand(out, -1)
        zero = scale.new_zeros(out, 1) if weight.zero is None else weight.zero.float().expand(out, -1)
        if size is None:
            self.row_scale = scale[:, 0].contiguous()
            size = self.packed.columns
            scale = scale.new_ones(out, 1)
        self.group = next(g for g in (256, 128, 64, 32) if size % g == 0)
        repeats = self.packed.columns // self.group // scale.shape[1]
        scale, shift = (t.expand_as(scale).repeat_interleave(repeats, 1) for t in (scale, -zero * scale))
        self.scales, self.shifts = self._packed_scales(scale, shift)
        self.extras = Extras(solved, bias)

    @classmethod
    def matches(cls, solved: Solved, activation: Any) -> bool:
        """Return whether this weight can be multiplied here; any input quantizer will do."""
        weight = solved.weight
        if not isinstance(weight, IntTensor) or weight.grid.bits > 4 or not int4_products(device_of(weight).type):
            return False
        grid = weight.grid
        return grid.group_size == 0 or (grid.axis == 1 and (grid.group_size == -1 or grid.group_size % 32 == 0))

    @classmethod
    def prepare(cls, solved: Solved, activation: Any, bias: Tensor | None = None) -> Int4Linear:
        """Pack the weight."""
        return cls(solved, activation, bias)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        held = [*self.scales, *(t for t in (self.row_scale, self.shifts) if t is not None)]
        return self.packed.nbytes + sum(t.numel() * t.element_size() for t in held) + self.extras.nbytes

    def restore(self) -> QuantizedTensor:
        """Return the stored weight from the packed copy."""
        return replace(self._shell, codes=self.packed.codes())

    def __call__(self, x: Tensor) -> Tensor:
        """Return (..., out) in the dtype of ``x``."""
        flat = x.reshape(-1, x.shape[-1])
        rounded = flat if self.activation is None else self.activation.fake(flat)
        sent = rounded.bfloat16()
        padded = pad(sent, (0, self.packed.columns - self.packed.width))
        if not len(flat):
            y = flat.new_zeros(0, self.packed.out, dtype=torch.float32)
        elif len(flat) >= self.many and self.packed.lanes:
            y = self._by_blocks(padded)
        else:
            y = sum(self.packed.product(padded, self.group, s).float() for s in self.scales)
            if self.shifts is not None:
                y += padded.float().unflatten(1, (len(self.shifts), -1)).sum(-1) @ self.shifts
            y = y[:, : self.packed.out]
        if self.row_scale is not None:
            y = y * self.row_scale
        y = self.extras.finish(y, flat, lambda columns: sent if columns is None else sent[:, columns])
        return y.to(x.dtype).reshape(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def _group(weight: IntTensor) -> int | None:
        size = weight.grid.group_size
        return None if size <= 0 or size == weight.shape[1] else size

    def _packed_scales(self, scale: Tensor, shift: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """(groups, rows, 2) bfloat16, one tensor, or two that add up to the float32 scale; the rest of the shift."""
        scale, shift = (pad(t, (0, 0, 0, self.packed.rows - len(t))).T.contiguous() for t in (scale, shift))
        found = []
        while not found or (len(found) < 2 and bool(scale.any())):
            found.append(torch.stack((scale.bfloat16(), shift.bfloat16()), -1).contiguous())
            scale, shift = scale - found[-1][..., 0].float(), shift - found[-1][..., 1].float()
        return found, shift if bool(shift.any()) else None

    def _by_blocks(self, x: Tensor) -> Tensor:
        y, kind = x.new_empty(len(x), self.packed.rows, dtype=torch.float32), product_dtype()
        x, lanes = x.to(kind), self.packed.lanes
        for start in range(0, self.packed.rows, OUTPUTS):
            part = slice(start, min(start + OUTPUTS, self.packed.rows))
            codes = self.packed.block(start // lanes, (part.stop - start) // lanes)
            scale, shift = (sum(s[:, None, part, i].float() for s in self.scales) for i in (0, 1))
            if self.shifts is not None:
                shift = shift + self.shifts[:, None, part]
            weight = codes.unflatten(0, (-1, self.group)).to(kind)
            if self.row_scale is not None:
                weight.add_(shift.to(kind))  # whole numbers: exact
            elif self._shell.zero is None and len(self.scales) == 1:
                weight.mul_(scale.to(kind))  # exact in bfloat16, so that only the product is rounded
            else:
                weight = weight.float().mul_(scale).add_(shift).to(kind)
            y[:, part] = x @ weight.flatten(0, 1)
        return y[:, : self.packed.out]
