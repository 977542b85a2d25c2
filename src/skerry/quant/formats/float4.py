"""FP4 (e2m1) with the block scales of NVFP4 and MXFP4: stored as serving engines store them, computed as floats here.

Magnitudes 0, .5, 1, 1.5, 2, 3, 4, 6; a code is ``sign * 8 + index``, the even column in the low nibble.
NVFP4: blocks of 16, scales in e4m3 under one float32 scale of the tensor. MXFP4: blocks of 32, scales that are powers
of two (the exponent plus 127 in a byte).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from skerry.core.errors import ModelError, ParameterError
from skerry.quant.formats.float8 import LARGEST, to_e4m3
from skerry.quant.formats.levels import boundaries, nearest_level
from skerry.quant.statistics import LayerStatistics

__all__ = ["Float4", "Float4Group", "Float4Tensor", "decode_e2m1", "encode_e2m1", "round_e2m1"]

MAGNITUDES = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
_BOUNDS = boundaries(MAGNITUDES, [bool(i % 2) for i in range(7)])  # half to the even index
_VALUES = torch.tensor(MAGNITUDES + [-m for m in MAGNITUDES])
BLOCK = {"nvfp4": 16, "mxfp4": 32}


def encode_e2m1(y: Tensor) -> Tensor:
    """Return the codes 0 .. 15 (uint8) of scaled values, saturating at 6.

    Examples
    --------
    >>> encode_e2m1(torch.tensor([0.5, -1.5, 6.0, -0.5])).tolist()
    [1, 11, 7, 9]
    """
    index = nearest_level(y.abs(), _BOUNDS)
    return (index + 8 * ((y < 0) & (index > 0)).to(torch.int32)).to(torch.uint8)


def decode_e2m1(codes: Tensor) -> Tensor:
    """Return the float32 values of codes 0 .. 15."""
    return _VALUES.to(codes.device)[codes.long()]


def round_e2m1(y: Tensor) -> Tensor:
    """Return what encoding and decoding scaled values gives, by arithmetic: a tenth of the time.

    Below 2 the levels are halves, below 4 whole numbers, then even ones; ties go to the even multiple in all three.

    Examples
    --------
    >>> round_e2m1(torch.tensor([0.75, -1.5, 9.0, 5.0])).tolist()
    [1.0, -1.5, 6.0, 4.0]
    """
    size = y.abs()
    step = torch.where(size < 2.0, 0.5, torch.where(size < 4.0, 1.0, 2.0))
    return torch.round(y / step).mul_(step).clamp_(-6.0, 6.0)


@dataclass(frozen=True)
class Float4:
    """Weights as e2m1 floats with block scales.

    Parameters
    ----------
    scale : {"nvfp4", "mxfp4"}, default "nvfp4"

    Raises
    ------
    ParameterError
        For another kind of scale.

    Examples
    --------
    >>> stored = Float4("nvfp4").quantize(torch.tensor([[0.25, -0.75, 3.0, -0.25] * 4]))
    >>> float(stored.global_scale), stored.packed[0, :2].tolist()
    (896.0, [177, 151])
    """

    scale: str = "nvfp4"

    def __post_init__(self) -> None:
        _check_scale(self.scale)

    def refuse_width(self, channels: int, name: str) -> None:
        """Raise a ModelError that names the layer if the block does not divide its inputs."""
        if channels % BLOCK[self.scale]:
            raise ModelError(
                f"{name}: {_undivided(self.scale, channels)}; leave the layer out (skip) or choose other bits"
            )

    def quantize(self, W: Tensor) -> Float4Tensor:
        """Round ``W`` (out, in).

        Raises
        ------
        ModelError
            If the block does not divide the inputs.
        """
        scaled, local, overall, _ = self._scaled(W)
        codes = encode_e2m1(scaled).reshape(W.shape)
        return Float4Tensor(self, codes[:, 0::2] | (codes[:, 1::2] << 4), local, overall)

    def round(self, W: Tensor) -> Tensor:
        """Return ``quantize(W).dequantize()`` without the codes, for searches."""
        scaled, _, _, step = self._scaled(W)
        return (round_e2m1(scaled) * step).reshape(W.shape)

    def _scaled(self, W: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Return the blocks over their steps (out, blocks, block), stored scales, overall scale, steps."""
        W = W.detach().float()
        size = BLOCK[self.scale]
        if W.shape[1] % size:
            raise ModelError(_undivided(self.scale, W.shape[1]))
        blocks = W.reshape(len(W), -1, size)
        top = blocks.abs().amax(-1)
        overall = None
        if self.scale == "nvfp4":
            overall = (LARGEST * 6.0 / top.amax().clamp(min=1e-30)).clamp(max=1e30).reshape(1)
            local = to_e4m3(top / 6.0 * overall)
            step = local.float() / overall
        else:
            local = _biased_exponent(top)
            step = torch.exp2(local.float() - 127)
        step = step[..., None]
        safe = torch.where(step > 0, step, torch.ones_like(step))
        return blocks / safe * (step > 0), local, overall, step

    def bits_per_weight(self, shape: tuple[int, int]) -> float:
        """Return stored bits for each weight, scales included."""
        return 4.0 + 8.0 / BLOCK[self.scale] + (32.0 / (shape[0] * shape[1]) if self.scale == "nvfp4" else 0.0)


@dataclass(frozen=True)
class Float4Group:
    """Inputs as e2m1 floats with a scale for every token and block of channels, set at run time.

    NVFP4's inputs have no scale of the whole tensor (as in SVDQuant's engine): what lies beyond 2688 is cut off, and
    blocks whose largest value is below 0.1 get coarse scales.

    Parameters
    ----------
    scale : {"nvfp4", "mxfp4"}, default "nvfp4"

    Raises
    ------
    ParameterError
        For another kind of scale.

    Examples
    --------
    >>> Float4Group("mxfp4").fake(torch.tensor([[1.0, 0.3, -6.2, 0.1] * 8]))[0, :4].tolist()
    [1.0, 0.5, -6.0, 0.0]
    """

    scale: str = "nvfp4"

    bits = 4
    kind = "float4_group"
    needs = frozenset[str]()

    def __post_init__(self) -> None:
        _check_scale(self.scale)

    def calibrated(self, statistics: LayerStatistics) -> Float4Group:
        """Return itself: the scales are set at run time."""
        return self

    def fake(self, x: Tensor) -> Tensor:
        """Return ``x`` (..., in) rounded.

        Raises
        ------
        ModelError
            If the block does not divide the channels.
        """
        if x.shape[-1] % BLOCK[self.scale]:
            raise ModelError(_undivided(self.scale, x.shape[-1]))
        y = x.float().unflatten(-1, (-1, BLOCK[self.scale]))
        top = y.abs().amax(-1, keepdim=True)
        if self.scale == "nvfp4":
            step = to_e4m3(top / 6.0).float()
        else:
            step = torch.exp2(_biased_exponent(top).float() - 127)
        rounded = round_e2m1(y / torch.where(step > 0, step, torch.ones_like(step)))
        return rounded.mul_(step).flatten(-2).to(x.dtype)


def _check_scale(scale: str) -> None:
    if scale not in BLOCK:
        raise ParameterError(f"scale must be one of {', '.join(BLOCK)}, got {scale!r}")


def _undivided(scale: str, channels: int) -> str:
    return f"{scale} has blocks of {BLOCK[scale]}, which do not divide {channels} input channels"


def _biased_exponent(top: Tensor) -> Tensor:
    """Return MXFP4's scale bytes: the binade of a block's largest value over that of 6, which is 2^2."""
    exponent = torch.floor(torch.log2(top.clamp(min=2.0**-120))) - 2
    return (exponent + 127).clamp(0, 254).to(torch.uint8)


@dataclass(frozen=True)
class Float4Tensor:
    """A weight of e2m1 floats.

    Attributes
    ----------
    format : Float4
    packed : uint8 Tensor of shape (out, in / 2)
    scale : Tensor of shape (out, in / block)
        e4m3 for NVFP4, biased exponents (uint8) for MXFP4.
    global_scale : float32 Tensor of shape (1,) or None
        A block's step is ``scale / global_scale``.
    """

    format: Float4
    packed: Tensor
    scale: Tensor
    global_scale: Tensor | None = None

    kind = "float4"

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.packed.shape[0], 2 * self.packed.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes as saved."""
        return self.packed.numel() + self.scale.numel() + (0 if self.global_scale is None else 4)

    def dequantize(self) -> Tensor:
        """Return float32 values (out, in)."""
        codes = torch.stack((self.packed & 15, self.packed >> 4), -1).flatten(1)
        if self.global_scale is not None:
            step = self.scale.float() / self.global_scale
        else:
            step = torch.exp2(self.scale.float() - 127)
        return decode_e2m1(codes) * step.repeat_interleave(BLOCK[self.format.scale], 1)

    def meta(self) -> dict[str, Any]:
        """Return what JSON must keep."""
        return {"kind": self.kind, "shape": list(self.shape), "format": asdict(self.format)}

    def tensors(self) -> dict[str, Tensor]:
        """Return what safetensors must keep."""
        found = {"packed": self.packed, "scale": self.scale}
        return found if self.global_scale is None else found | {"global_scale": self.global_scale}

    @classmethod
    def from_tensors(cls, meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Float4Tensor:
        """Rebuild what was saved."""
        return cls(Float4(**meta["format"]), tensors["packed"], tensors["scale"], tensors.get("global_scale"))
