"""OliVe (arXiv 2304.07493): exactly 4 (or 8) bits a weight, with outliers in the place of their neighbours.

The codec is :class:`~skerry.quant.formats.victim_codec.PairCodec`; here are the search for scale and type, the stored
weight, and inputs in the same format with one scale for the tensor. Pairs run along the input dimension, so that an
outlier and its victim belong to one sum; an odd width is padded by a zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from skerry.core.errors import ModelError, ParameterError
from skerry.kernels.victim_search import victim_errors
from skerry.quant.formats.victim_codec import PairCodec
from skerry.quant.statistics import LayerStatistics

__all__ = ["OutlierVictim", "VictimStatic", "VictimTensor"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class OutlierVictim:
    """Outlier-victim pairs with the scale, and the type of the normal values, that leave the smallest error.

    Parameters
    ----------
    bits : {4, 8}, default 4
    types : tuple of {"int", "flint"}, default ("int", "flint")
        Types of normal values to try, one for the whole tensor; 8 bits have "int" only.
    tie : {"larger", "even"}, default "larger"
        Which of two outliers of a pair survives.
    search : tuple of int, default (75, 250, 2)
        First, last and step, in percent of the three-sigma threshold that is mapped to the largest normal value;
        100 is always tried too.
    granularity : {"row", "tensor"}, default "row"
        Weights that share a scale.
    exponent_bits : int, optional
        See :class:`~skerry.quant.formats.victim_codec.PairCodec`.
    scale_dtype : {"float32", "bfloat16", "float16"}, default "float32"

    Raises
    ------
    ParameterError
        For settings out of range.

    Examples
    --------
    >>> W = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    >>> W[0, 3] = 9.0
    >>> stored = OutlierVictim().quantize(W)
    >>> stored.packed.shape, round(float(stored.dequantize()[0, 3]))
    (torch.Size([4, 32]), 9)
    """

    bits: int = 4
    types: tuple[str, ...] = ("int", "flint")
    tie: str = "larger"
    search: tuple[int, int, int] = (75, 250, 2)
    granularity: str = "row"
    exponent_bits: int | None = None
    scale_dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.granularity not in ("row", "tensor"):
            raise ParameterError(f"granularity must be 'row' or 'tensor', got {self.granularity!r}")
        if self.scale_dtype not in _DTYPES:
            raise ParameterError(f"scale_dtype must be one of {', '.join(_DTYPES)}, got {self.scale_dtype!r}")
        low, high, step = self.search
        if not (0 < low <= high and step > 0):
            raise ParameterError(f"search must be (first, last, step) in percent, got {self.search!r}")
        if not self.codecs():
            raise ParameterError(f"no type of {self.types!r} exists at {self.bits} bits: use ('int',)")

    def codecs(self, signed: bool = True) -> list[PairCodec]:
        """Return the codecs to be tried."""
        types = [t for t in self.types if t != "flint" or (self.bits == 4 and signed)]
        return [PairCodec(self.bits, t, self.exponent_bits, self.tie, signed) for t in types]

    def quantize(self, W: Tensor) -> VictimTensor:
        """Search scale and type for ``W`` (out, in) and encode it."""
        W = W.detach().float()
        padded = pad(W, (0, W.shape[1] % 2))
        view = padded if self.granularity == "row" else padded.reshape(1, -1)
        width = W.shape[1] if self.granularity == "row" else W.numel()
        best: tuple[float, PairCodec, Tensor] | None = None
        for codec in self.codecs():
            scale, error = self.search_scale(view, codec, width)
            if best is None or float(error.sum()) < best[0]:
                best = float(error.sum()), codec, scale
        assert best is not None
        _, codec, scale = best
        return VictimTensor(codec, codec.encode(padded / scale.float()), scale, W.shape[1])

    def search_scale(self, rows: Tensor, codec: PairCodec, width: int) -> tuple[Tensor, Tensor]:
        """Return the scale (rows, 1) of least squared error, victims included, and that error (rows,), float64.

        Parameters
        ----------
        rows : float32 Tensor of shape (rows, n), n even
        codec : PairCodec
        width : int
            Entries of a row that are not padding: what mean and deviation are taken of.
        """
        low, high, step = self.search
        ratios = sorted({*range(low, high, step), 100})
        mean = rows.sum(1, keepdim=True, dtype=torch.float64) / width
        square = (rows.double() ** 2).sum(1, keepdim=True) / width
        sigma = (square - mean**2).clamp(min=0.0).sqrt()
        threshold = torch.maximum((mean + 3 * sigma).abs(), (mean - 3 * sigma).abs())
        floor = (rows.abs().amax() * 1e-8).clamp(min=1e-30).double()
        unit = torch.maximum(threshold / codec.normal_max, floor).cpu()
        tried = (unit * (unit.new_tensor(ratios) / 100)).to(_DTYPES[self.scale_dtype])
        errors = torch.from_numpy(
            victim_errors(
                np.ascontiguousarray(rows.cpu().numpy()),
                tried.float().numpy(),
                codec.type == "flint",
                codec.signed,
                codec.tie == "even",
                float(codec.normal_max),
                float(codec.outlier_levels[0]),
                float(codec.largest),
                codec.mantissa_bits,
            )
        )
        best = errors.argmin(1, keepdim=True)
        return tried.gather(1, best).to(rows.device), errors.gather(1, best)[:, 0]

    def bits_per_weight(self, shape: tuple[int, int]) -> float:
        """Return stored bits for each weight, scales and padding included."""
        out, inputs = shape
        scales = out if self.granularity == "row" else 1
        codes = out * (inputs + inputs % 2) * self.bits
        return (codes + scales * 8 * _DTYPES[self.scale_dtype].itemsize) / (out * inputs)


@dataclass(frozen=True)
class VictimTensor:
    """A weight of outlier-victim pairs.

    Attributes
    ----------
    codec : PairCodec
        Its ``type`` is what the search chose.
    packed : uint8 Tensor of shape (out, ceil(in / 2)) at 4 bits, (out, in + in % 2) at 8 bits
    scale : Tensor of shape (out, 1) or (1, 1)
    width : int
        Inputs, without padding.
    """

    codec: PairCodec
    packed: Tensor
    scale: Tensor
    width: int

    kind = "outlier_victim"

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.packed.shape[0], self.width

    @property
    def nbytes(self) -> int:
        """Bytes as saved."""
        return self.packed.numel() + self.scale.numel() * self.scale.element_size()

    def integers(self) -> Tensor:
        """Return the decoded values before scaling, int16 (out, in): what an integer kernel multiplies."""
        return self.codec.decode(self.packed)[:, : self.width].to(torch.int16)

    def dequantize(self) -> Tensor:
        """Return float32 values (out, in)."""
        return self.codec.decode(self.packed)[:, : self.width] * self.scale.float()

    def stats(self, W: Tensor | None = None) -> dict[str, float]:
        """Return the shares of outliers and victims; with the original ``W`` also of saturated entries, and the MSE."""
        outlier, victim = self.codec.outliers(self.packed)
        n = self.shape[0] * self.shape[1]
        found = {"outliers": float(outlier.sum()) / n, "victims": float(victim.sum()) / n}
        if W is not None:
            beyond = W.abs() > self.codec.largest * self.scale.float()
            error = self.dequantize().double() - W.double()
            found |= {"saturated": float(beyond.sum()) / n, "mse": float((error**2).mean())}
        return found

    def meta(self) -> dict[str, Any]:
        """Return what JSON must keep."""
        return {"kind": self.kind, "shape": list(self.shape), "codec": asdict(self.codec)}

    def tensors(self) -> dict[str, Tensor]:
        """Return what safetensors must keep."""
        return {"packed": self.packed, "scale": self.scale}

    @classmethod
    def from_tensors(cls, meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> VictimTensor:
        """Rebuild what was saved."""
        return cls(PairCodec(**meta["codec"]), tensors["packed"], tensors["scale"], int(meta["shape"][1]))


@dataclass(frozen=True)
class VictimStatic:
    """Inputs as outlier-victim pairs with one scale and type for the tensor, from calibration.

    Parameters
    ----------
    bits : {4, 8}, default 4
    types : tuple of {"int", "flint"}, default ("int", "flint")
    tie : {"larger", "even"}, default "larger"
    search : tuple of int, default (75, 250, 2)
    unsigned : bool, default False
        Spend the sign on the range where calibration saw no negative value (our extension).

    Attributes
    ----------
    codec : PairCodec or None
    scale : float or None
        None until :meth:`calibrated`.
    """

    bits: int = 4
    types: tuple[str, ...] = ("int", "flint")
    tie: str = "larger"
    search: tuple[int, int, int] = (75, 250, 2)
    unsigned: bool = False
    codec: PairCodec | None = field(default=None)
    scale: float | None = None

    kind = "outlier_victim_static"
    needs = frozenset({"sample"})

    def calibrated(self, statistics: LayerStatistics) -> VictimStatic:
        """Return the quantizer with scale and type found on the first tokens seen.

        Raises
        ------
        ModelError
            If the statistics hold no sample.
        """
        if statistics.sample is None:
            raise ModelError("a static outlier-victim scale needs the 'sample' statistic")
        x = statistics.sample.float()
        signed = not self.unsigned or self.bits != 4 or bool((x < 0).any())
        form = OutlierVictim(self.bits, self.types, self.tie, self.search, "tensor")
        x = pad(x, (0, x.shape[1] % 2)).reshape(1, -1)
        tried = [(codec, *form.search_scale(x, codec, x.numel())) for codec in form.codecs(signed)]
        codec, scale, _ = min(tried, key=lambda t: float(t[2].sum()))
        return replace(self, codec=codec, scale=float(scale))

    def fake(self, x: Tensor) -> Tensor:
        """Return ``x`` (..., in) rounded.

        Raises
        ------
        ModelError
            Before calibration.
        """
        if self.codec is None or self.scale is None:
            raise ModelError("this static activation quantizer has not seen calibration data")
        n = x.shape[-1]
        y = pad(x.float(), (0, n % 2)) / self.scale
        return (self.codec.round(y)[..., :n] * self.scale).to(x.dtype)
