"""Weights in the layouts of the fast products, and back: the packed copy can be the only one in memory."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

__all__ = ["OneDnnInt8", "PackedInt4", "PlainInt8", "int4_lanes", "packed_int8"]

CHUNK = 512
FEWEST = 32  # tokens that a GPU's 8-bit product takes: it refuses 16 and fewer


def packed_int8(codes: Tensor) -> OneDnnInt8 | PlainInt8:
    """Return int8 codes (out, in) as the 8-bit product of their device wants them."""
    return OneDnnInt8(codes) if codes.device.type == "cpu" else PlainInt8(codes)


class OneDnnInt8:
    """int8 codes (out, in), blocked by oneDNN for products with unsigned 8-bit inputs.

    Signed inputs would fall to reference code, hundreds of times slower: inputs are codes plus 128.
    """

    def __init__(self, codes: Tensor) -> None:
        self.out, self.width = codes.shape
        self.packed = torch.ops.onednn.qlinear_prepack(codes.contiguous(), None)
        self._ones = torch.ones(self.out)
        self._zeros = torch.zeros(self.out, dtype=torch.int64)

    @property
    def nbytes(self) -> int:
        """Bytes of the codes."""
        return self.out * self.width

    def product(self, inputs: Tensor, scale: Tensor | None = None) -> Tensor:
        """Return ``(inputs - 128) @ codes^T`` as float32 (tokens, out), without a scale exact up to 2^24.

        Parameters
        ----------
        inputs : uint8 Tensor of shape (tokens, in)
        scale : float32 Tensor of shape (out,), optional
            Multiplied in.
        """
        if not len(inputs):
            return torch.zeros(0, self.out)
        scale = self._ones if scale is None else scale
        return torch.ops.onednn.qlinear_pointwise(
            inputs, 1.0, 128, self.packed, scale, self._zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )

    def rows(self, columns: Tensor) -> Tensor:
        """Return ``codes[:, columns]^T`` as float32 (n, out), read through products with unit vectors."""
        unit = torch.full((len(columns), self.width), 128, dtype=torch.uint8)
        unit[torch.arange(len(columns)), columns] = 129
        return self.product(unit)

    def codes(self) -> Tensor:
        """Return the int8 codes (out, in)."""
        found = torch.empty(self.out, self.width, dtype=torch.int8)
        for columns in torch.arange(self.width).split(CHUNK):
            found[:, columns[0] : columns[-1] + 1] = self.rows(columns).T.to(torch.int8)
        return found


class PlainInt8:
    """int8 codes (out, in) for ``torch._int_mm``, which multiplies them on GPUs: as they are, padded to eights."""

    def __init__(self, codes: Tensor) -> None:
        self.out, self.width = codes.shape
        self.packed = torch.nn.functional.pad(codes, (0, -self.width % 8, 0, -self.out % 8)).contiguous()

    @property
    def nbytes(self) -> int:
        """Bytes of the codes, padding included."""
        return self.packed.numel()

    def product(self, inputs: Tensor, scale: Tensor | None = None) -> Tensor:
        """Return what :meth:`OneDnnInt8.product` does."""
        tokens = len(inputs)
        rows = max(FEWEST, tokens + -tokens % 8)
        signed = inputs.bitwise_xor(128).view(torch.int8)
        signed = torch.nn.functional.pad(signed, (0, self.packed.shape[1] - self.width, 0, rows - tokens))
        y = torch._int_mm(signed, self.packed.T)[:tokens, : self.out].float()
        return y if scale is None else y.mul_(scale)

    def rows(self, columns: Tensor) -> Tensor:
        """Return ``codes[:, columns]^T`` as float32 (n, out)."""
        return self.packed[: self.out, columns].T.float()

    def codes(self) -> Tensor:
        """Return the int8 codes (out, in)."""
        return self.packed[: self.out, : self.width].contiguous()


class PackedInt4:
    """Codes -8 .. 7 (out, in) as torch's int4 product stores them: blocks of outputs, two codes a byte.

    The number of outputs is padded to a multiple of 64, the inputs to one of 32. How many outputs a block has depends
    on the processor (:func:`int4_lanes`); the layout of GPUs is torch's own affair, and only multiplied with.
    """

    def __init__(self, codes: Tensor) -> None:
        self.out, self.width = codes.shape
        padded = torch.nn.functional.pad(codes, (0, -self.width % 32, 0, -self.out % 64))
        self.packed = _packed_int4(padded)
        self.rows, self.columns = padded.shape
        self.lanes = int4_lanes() if codes.device.type == "cpu" else 0

    @property
    def nbytes(self) -> int:
        """Bytes of the codes, padding included."""
        return self.packed.numel() * self.packed.element_size()

    def product(self, x: Tensor, group: int, scales: Tensor) -> Tensor:
        """Return ``x @ (codes * scales)^T`` in bfloat16 (tokens, padded out).

        Parameters
        ----------
        x : bfloat16 Tensor of shape (tokens, padded in)
        group : {32, 64, 128, 256}
        scales : bfloat16 Tensor of shape (padded in / group, padded out, 2)
            Scale, and what is added (0).
        """
        if x.device.type == "cpu":
            return torch.ops.aten._weight_int4pack_mm_for_cpu(x, self.packed, group, scales)
        return torch.ops.aten._weight_int4pack_mm(x, self.packed, group, scales)

    def block(self, start: int, count: int) -> Tensor:
        """Return the int8 codes (padded in, count * lanes) of some blocks of outputs, transposed."""
        return _int4_block(self.packed, self.columns, self.lanes, start, count)

    def codes(self) -> Tensor:
        """Return the int8 codes (out, in)."""
        if self.lanes:
            parts = [self.block(i, 1).T for i in range(self.rows // self.lanes)]
            return torch.cat(parts)[: self.out, : self.width].contiguous()
        device = self.packed.device
        scales = torch.ones(self.columns // 32, self.rows, 2, dtype=torch.bfloat16, device=device)
        scales[..., 1] = 0.0
        found = torch.empty(self.out, self.width, dtype=torch.int8, device=device)
        for columns in torch.arange(self.width, device=device).split(CHUNK):  # a layout unknown to us: unit vectors
            unit = torch.nn.functional.one_hot(columns, self.columns).bfloat16()
            found[:, columns[0] : columns[-1] + 1] = self.product(unit, 32, scales)[:, : self.out].T.to(torch.int8)
        return found


@cache
def int4_lanes() -> int:
    """Return the outputs of a block of torch's int4 layout: 64 with AVX-512, 32 with AVX2, 0 where it is another."""
    codes = (torch.arange(64 * 32).reshape(64, 32) * 7 // 3 % 16 - 8).to(torch.int8)
    packed = _packed_int4(codes)
    return next((n for n in (64, 32) if torch.equal(_int4_block(packed, 32, n, 0, 64 // n), codes.T)), 0)


def _packed_int4(codes: Tensor) -> Tensor:
    if codes.device.type != "cpu":  # two codes a byte, the first in the high bits; tiles of 16 inputs, some at a time
        whole = (codes + 8).to(torch.uint8)
        tiles = next(n for n in (8, 4, 2) if codes.shape[1] % (16 * n) == 0)
        return torch.ops.aten._convert_weight_to_int4pack(whole[:, ::2] << 4 | whole[:, 1::2], tiles)
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.to(torch.int32) + 8, 1)


def _int4_block(packed: Tensor, columns: int, lanes: int, start: int, count: int) -> Tensor:
    """Return the codes (columns, count * lanes) of blocks whose low nibbles hold the first half of the outputs."""
    part = packed.reshape(-1, columns, lanes // 2)[start : start + count].transpose(0, 1)
    found = packed.new_empty(columns, count, 2, lanes // 2, dtype=torch.int8)
    torch.bitwise_and(part, 15, out=found.view(torch.uint8)[:, :, 0])
    torch.bitwise_right_shift(part, 4, out=found.view(torch.uint8)[:, :, 1])
    return found.sub_(8).reshape(columns, -1)
