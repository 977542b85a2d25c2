"""What the kernels with 8-bit products hold of a weight: packed codes, a scale (and zero point) a row, their sums."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from skerry.core.errors import ModelError
from skerry.quant.parts import QuantizedTensor, Solved
from skerry.quant.runtime.int8_form import int8_form
from skerry.quant.runtime.packing import packed_int8

__all__ = ["Int8Rows"]


class Int8Rows:
    """Base of those kernels; ``matches`` of the kernel says what it takes."""

    name: ClassVar[str]

    def __init__(self, solved: Solved, activation: Any) -> None:
        form = int8_form(solved.weight)
        if form is None or not self.matches(solved, activation):
            raise ModelError(f"{self.name}: this kernel does not fit {solved.weight.kind} weights with {activation!r}")
        self.activation = activation
        self.packed = packed_int8(form.codes)
        self.scale, self.zero, self._rebuild = form.scale, form.zero, form.rebuild
        # what an input's zero point multiplies: the row sums of (codes - zero)
        self.row_sum = form.codes.sum(1, dtype=torch.int64).float()
        if self.zero is not None:
            self.row_sum -= form.codes.shape[1] * self.zero

    @classmethod
    def matches(cls, solved: Solved, activation: Any) -> bool:
        """Return whether this weight and input quantizer can be multiplied here."""
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """Bytes held of the weight."""
        return self.packed.nbytes + 4 * 2 * self.packed.out

    def restore(self) -> QuantizedTensor:
        """Return the stored weight from the packed copy."""
        return self._rebuild(self.packed.codes())
