"""8-bit weights times bfloat16 inputs: half the bytes of bfloat16, for layers whose inputs must not be rounded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from skerry.core.errors import ModelError
from skerry.quant.formats.mixed_decomposition import MixedInt8Tensor
from skerry.quant.numerics import IntTensor
from skerry.quant.parts import QuantizedTensor, Solved
from skerry.quant.runtime.capability import product_dtype
from skerry.quant.runtime.extras import Extras
from skerry.quant.runtime.int8_form import has_int8_form, int8_form

__all__ = ["Int8WeightLinear"]

MANY = 14  # tokens from which blocks of outputs are converted to a float type: there both cost the same at K = N = 4096
ROWS = 1024  # outputs in a block


class Int8WeightLinear:
    """Integer weights with a scale a row, a tensor or a group; any input quantizer, sent in bfloat16."""

    name = "w8a16"

    def __init__(self, solved: Solved, activation: Any, bias: Tensor | None = None, many: int = MANY) -> None:
        weight = solved.weight
        if not self.matches(solved, activation):
            raise ModelError(f"{self.name}: this kernel does not fit {weight.kind} weights with {activation!r}")
        self.activation, self.many = activation, many
        self.group_scale: Tensor | None = None
        self.rebuild: Callable[[Tensor], QuantizedTensor]
        form = int8_form(weight)
        if form is not None:
            self.codes, self.scale, self.zero, self.rebuild = form.codes, form.scale, form.zero, form.rebuild
        else:
            assert isinstance(weight, IntTensor)
            shell = replace(weight, codes=weight.codes[:0])
            self.codes, self.rebuild = weight.codes, lambda codes: replace(shell, codes=codes)
            self.group_scale = weight.scale.float()
            self.zero = None if weight.zero is None else weight.zero.float()
        self._ones = torch.ones(len(self.codes), dtype=torch.bfloat16, device=self.codes.device)
        self.extras = Extras(solved, bias)

    @classmethod
    def matches(cls, solved: Solved, activation: Any) -> bool:
        """Return whether this weight can be multiplied here; any input quantizer will do."""
        weight = solved.weight
        if isinstance(weight, MixedInt8Tensor) and weight.kept is not None:
            return False  # its outlier columns are not the codes
        return has_int8_form(weight) or (isinstance(weight, IntTensor) and weight.grid.axis == 1)

    @classmethod
    def prepare(cls, solved: Solved, activation: Any, bias: Tensor | None = None) -> Int8WeightLinear:
        """Take the codes as they are."""
        return cls(solved, activation, bias)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        held = [self.codes, self.scale if self.group_scale is None else self.group_scale]
        held += [] if self.zero is None else [self.zero]
        return sum(t.numel() * t.element_size() for t in held) + self.extras.nbytes

    def restore(self) -> QuantizedTensor:
        """Return the stored weight."""
        return self.rebuild(self.codes)

    def __call__(self, x: Tensor) -> Tensor:
        """Return (..., out) in the dtype of ``x``."""
        flat = x.reshape(-1, x.shape[-1])
        rounded = flat if self.activation is None else self.activation.fake(flat)
        sent = rounded.bfloat16()
        if self.group_scale is not None:
            y = self._grouped(sent)
        else:
            y = self._by_rows(sent) * self.scale
        y = self.extras.finish(y, flat, lambda columns: sent if columns is None else sent[:, columns])
        return y.to(x.dtype).reshape(*x.shape[:-1], y.shape[-1])

    def _by_rows(self, x: Tensor) -> Tensor:
        if (
            self.zero is None
            and x.device.type == "cpu"
            and 0 < len(x) < self.many
            and self.codes.shape[0] % 16 == 0
            and self.codes.shape[1] % 32 == 0
        ):
            return torch.ops.aten._weight_int8pack_mm(x, self.codes, self._ones).float()
        y, kind = x.new_empty(len(x), len(self.codes), dtype=torch.float32), product_dtype(x.device.type)
        x = x.to(kind)
        for start in range(0, len(self.codes), ROWS):
            part = slice(start, start + ROWS)
            codes = self.codes[part] if self.zero is None else self.codes[part] - self.zero[part, None]
            y[:, part] = x @ codes.to(kind).T  # whole numbers up to 256: exact
        return y

    def _grouped(self, x: Tensor) -> Tensor:
        assert self.group_scale is not None
        groups = self.group_scale.shape[1]
        y, kind = x.new_empty(len(x), len(self.codes), dtype=torch.float32), product_dtype(x.device.type)
        x = x.to(kind)
        for start in range(0, len(self.codes), ROWS):
            part = slice(start, start + ROWS)
            codes = self.codes[part].unflatten(1, (groups, -1))
            values = codes if self.zero is None else codes - self.zero[part, :, None]
            weight = x.new_empty(codes.shape)
            torch.mul(values, self.group_scale[part, :, None], out=weight)
            y[:, part] = x @ weight.flatten(1).T
        return y
