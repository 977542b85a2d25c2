"""Twin-log quantization (LRQ-DiT, arXiv 2508.03485): uniform levels of log2|w|, positive and negative sides apart.

``W = +2^(base+ + step+ * q)`` or ``-2^(base- + step- * q)``, one pair of (base, step) per side and group. Both ends of
the logarithmic range are searched: the literal lower end, the smallest weight, wastes almost every code. The paper
leaves open whether the sign counts; here it does (``levels="half"``), and bits per weight say what is stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from skerry.core.errors import ModelError, ParameterError
from skerry.quant.numerics import pack_bits, unpack_bits

__all__ = ["TwinLog", "TwinLogParameters", "TwinLogTensor"]

RATIOS = torch.arange(20, 101, 2) / 100  # of the side's largest weight
SPANS = torch.arange(2, 41) / 4  # in log2 units
EMPTY = -126.0  # base of a side without weights: 2^-126 stands for 0
CHUNK = 2**18  # entries of a table of candidates: what stays in the processor's cache
_DTYPES = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True)
class TwinLogParameters:
    """What a search found, for each side (positive, negative) and group.

    Attributes
    ----------
    base, step : Tensor of shape (2, groups)
        log2 of the smallest level; distance of levels.
    alpha, beta : float32 Tensor of shape (groups,)
        The largest level over the largest weight, positive and negative side.
    """

    base: Tensor
    step: Tensor
    alpha: Tensor
    beta: Tensor


@dataclass(frozen=True)
class TwinLog:
    """Weights as signed powers of two at uniform steps of the exponent.

    Parameters
    ----------
    bits : int, default 3
        2 to 8 (7 with ``levels="full"``).
    levels : {"half", "full"}, default "half"
        ``2^(bits-1)`` levels a side (the sign is one of the bits), or ``2^bits`` a side and a sign bit beside.
    group_size : int, default -1
        Weights of an output row that share ranges; -1 the whole row, 0 the whole tensor.
    search : {"both", "clip", "none"}, default "both"
        Search the upper and the lower end, the upper end only (lower end: the smallest weight), or neither. From 32
        levels a side on, every second candidate is tried, from 64 on every fourth.
    scale_dtype : {"float32", "float16"}, default "float32"
        Of base and step.

    Raises
    ------
    ParameterError
        For settings out of range.

    Examples
    --------
    >>> W = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    >>> stored = TwinLog(bits=4).quantize(W)
    >>> bool(((stored.dequantize() > 0) == (W > 0)).all())
    True
    """

    bits: int = 3
    levels: str = "half"
    group_size: int = -1
    search: str = "both"
    scale_dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.levels not in ("half", "full"):
            raise ParameterError(f"levels must be 'half' or 'full', got {self.levels!r}")
        if self.bits < 2 or self.code_bits > 8:
            raise ParameterError(f"bits must be 2 to {8 - (self.levels == 'full')}, got {self.bits}")
        if self.search not in ("both", "clip", "none"):
            raise ParameterError(f"search must be 'both', 'clip' or 'none', got {self.search!r}")
        if self.group_size < -1:
            raise ParameterError(f"group_size must be -1 (a row), 0 (the tensor) or positive, got {self.group_size}")
        if self.scale_dtype not in _DTYPES:
            raise ParameterError(f"scale_dtype must be one of {', '.join(_DTYPES)}, got {self.scale_dtype!r}")

    @property
    def code_bits(self) -> int:
        """Stored bits of a code, sign included."""
        return self.bits + (self.levels == "full")

    @property
    def n_levels(self) -> int:
        """Levels of a side."""
        return 2 ** (self.code_bits - 1)

    def fit(self, W: Tensor, energy: Tensor | None = None) -> TwinLogParameters:
        """Search the ranges of ``W`` (out, in).

        Parameters
        ----------
        W : Tensor of shape (out, in)
        energy : Tensor of shape (in,), optional
            Mean square of every input channel, to weight the squared errors with.

        Raises
        ------
        ModelError
            If the group size does not divide the inputs.
        """
        rows = self._rows(W.detach().float())
        weight = None if energy is None else self._rows(energy.float().expand_as(W))
        sides = [self._fit_side(rows * sign, weight, zeros=sign > 0) for sign in (1.0, -1.0)]
        dtype = _DTYPES[self.scale_dtype]
        base, step, ratio = (torch.stack([s[i] for s in sides]) for i in range(3))
        return TwinLogParameters(base.to(dtype), step.to(dtype), ratio[0], ratio[1])

    def quantize(self, W: Tensor, parameters: TwinLogParameters | None = None) -> TwinLogTensor:
        """Round ``W`` (out, in) on ranges of its own, or on those given; exact zeros become the smallest level."""
        found = self.fit(W) if parameters is None else parameters
        rows = self._rows(W.detach().float())
        negative = (rows < 0).long()
        base, step = (t.float().T.gather(1, negative) for t in (found.base, found.step))
        level = torch.log2(rows.abs().clamp(min=2.0**-126))
        q = torch.round((level - base) / torch.where(step > 0, step, torch.ones_like(step)))
        codes = q.clamp(0, self.n_levels - 1).long() + self.n_levels * negative
        packed = pack_bits(codes.to(torch.int16).reshape(W.shape), self.code_bits)
        return TwinLogTensor(self, packed, found.base, found.step, tuple(W.shape))

    def bits_per_weight(self, shape: tuple[int, int]) -> float:
        """Return stored bits for each weight: codes with their signs, and ranges."""
        out, inputs = shape
        groups = out if self.group_size == -1 else 1 if self.group_size == 0 else out * inputs // self.group_size
        side = 4 * groups * 8 * _DTYPES[self.scale_dtype].itemsize
        return (out * ((inputs * self.code_bits + 7) // 8) * 8 + side) / (out * inputs)

    def _rows(self, W: Tensor) -> Tensor:
        if self.group_size == 0:
            return W.reshape(1, -1)
        if self.group_size > 0:
            if W.shape[1] % self.group_size:
                raise ModelError(f"group size {self.group_size} does not divide the {W.shape[1]} inputs of the weight")
            return W.reshape(-1, self.group_size)
        return W

    def _fit_side(self, rows: Tensor, weight: Tensor | None, zeros: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Base, step and ratio (groups,) for the positive entries; ``zeros``: exact zeros are stored here."""
        found = []
        per_row = len(self._candidates(rows.new_zeros(1, 1))[0][0]) * self.n_levels
        for part in range(0, len(rows), block := max(1, CHUNK // max(per_row, rows.shape[1]))):
            w = None if weight is None else weight[part : part + block]
            found.append(self._fit_rows(rows[part : part + block], w, zeros))
        base, step, ratio = (torch.cat(f) for f in zip(*found, strict=True))
        return base, step, ratio

    def _candidates(self, widest: Tensor) -> tuple[Tensor, Tensor]:
        """(ratio, span) to try for rows whose largest weight is ``widest`` (rows, 1) octaves above the smallest."""
        stride = max(1, min(4, self.n_levels // 16))  # many levels: the error is flat, and every candidate costs more
        ratios, spans = (grid.flip(0)[::stride].to(widest.device) for grid in (RATIOS, SPANS))
        one = torch.ones_like(widest)
        if self.search == "none":
            return one, widest
        if self.search == "clip":
            return ratios.expand(len(widest), -1), widest + torch.log2(ratios)
        r, s = (t.reshape(-1).expand(len(widest), -1) for t in torch.meshgrid(ratios, spans, indexing="ij"))
        return torch.cat((one, r), 1), torch.cat((widest, s), 1)

    def _fit_rows(self, rows: Tensor, weight: Tensor | None, zeros: bool) -> tuple[Tensor, Tensor, Tensor]:
        inside = rows > 0
        size = torch.where(inside, rows, torch.zeros_like(rows))
        share = inside.double() if weight is None else inside * weight.double()
        logs = torch.where(inside, torch.log2(rows.clamp(min=2.0**-126)), torch.full_like(rows, float("inf")))
        logs, order = logs.sort(1)
        w, m = share.gather(1, order), size.double().gather(1, order)
        # sums over the k smallest entries: 1, m, m^2, each weighted; the error of any codebook follows from them
        sums = [torch.nn.functional.pad((w * m**p).cumsum(1), (1, 0)) for p in range(3)]
        top = torch.log2(size.amax(1, keepdim=True).clamp(min=2.0**-126))
        low = torch.minimum(logs[:, :1], top)
        ratio, span = self._candidates(top - low)
        span = span.clamp(min=0.0)
        step = span / (self.n_levels - 1)
        base = top + torch.log2(ratio) - span
        if self.scale_dtype != "float32":  # judge what will be stored
            dtype = _DTYPES[self.scale_dtype]
            base, step = base.to(dtype).float(), step.to(dtype).float()
        q = torch.arange(self.n_levels, device=rows.device)
        cuts = base[..., None] + step[..., None] * (q[:-1] + 0.5)
        places = torch.searchsorted(logs, cuts.flatten(1)).unflatten(1, cuts.shape[1:])
        last = torch.full_like(places[..., :1], rows.shape[1])
        places = torch.cat((torch.zeros_like(last), places, last), -1)
        n, s1, s2 = (s.gather(1, places.flatten(1)).unflatten(1, places.shape[1:]).diff(dim=-1) for s in sums)
        value = torch.exp2((base[..., None] + step[..., None] * q).double())
        error = (s2 - 2 * value * s1 + value**2 * n).sum(-1)
        if zeros:
            none = (rows == 0).double() if weight is None else (rows == 0) * weight.double()
            error = error + none.sum(1, keepdim=True) * value[..., 0] ** 2
        best = error.argmin(1, keepdim=True)
        base, step, ratio = (t.gather(1, best)[:, 0] for t in (base, step, ratio))
        empty = ~inside.any(1)
        return (
            torch.where(empty, torch.full_like(base, EMPTY), base),
            torch.where(empty, torch.zeros_like(step), step),
            ratio,
        )


@dataclass(frozen=True)
class TwinLogTensor:
    """A weight on twin logarithmic levels.

    Attributes
    ----------
    format : TwinLog
    packed : uint8 Tensor of shape (out, ceil(in * code_bits / 8))
        Codes: level, and the number of levels added for a negative weight.
    base, step : Tensor of shape (2, groups)
    size : tuple of int
        (out, in).
    """

    format: TwinLog
    packed: Tensor
    base: Tensor
    step: Tensor
    size: tuple[int, ...]

    kind = "twin_log"

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.size  # type: ignore[return-value]

    @property
    def nbytes(self) -> int:
        """Bytes as saved."""
        return self.packed.numel() + 2 * self.base.numel() * self.base.element_size()

    @property
    def bits_per_weight(self) -> float:
        """Stored bits for each weight."""
        return 8 * self.nbytes / (self.size[0] * self.size[1])

    def table(self) -> Tensor:
        """Return the float32 values of all codes of each group, (groups, 2 * n_levels)."""
        return self._signed(torch.exp2(self._exponents()))

    def dequantize(self) -> Tensor:
        """Return float32 values (out, in), looked up."""
        return self._look_up(self.table())

    def shifted(self, fraction_bits: int = 8) -> Tensor:
        """Return the values that integer arithmetic gives: ``2^frac`` as an integer of ``fraction_bits``, shifted."""
        e = self._exponents()
        whole = torch.floor(e)
        integer = torch.round(torch.exp2(e - whole + fraction_bits))
        return self._look_up(self._signed(torch.ldexp(integer, (whole - fraction_bits).int())))

    def meta(self) -> dict[str, Any]:
        """Return what JSON must keep."""
        return {"kind": self.kind, "shape": list(self.size), "format": asdict(self.format)}

    def tensors(self) -> dict[str, Tensor]:
        """Return what safetensors must keep."""
        return {"packed": self.packed, "base": self.base, "step": self.step}

    @classmethod
    def from_tensors(cls, meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> TwinLogTensor:
        """Rebuild what was saved."""
        return cls(TwinLog(**meta["format"]), tensors["packed"], tensors["base"], tensors["step"], tuple(meta["shape"]))

    def _exponents(self) -> Tensor:
        q = torch.arange(self.format.n_levels, device=self.base.device)
        return (self.base.float()[..., None] + self.step.float()[..., None] * q).transpose(0, 1)  # (groups, 2, levels)

    @staticmethod
    def _signed(sizes: Tensor) -> Tensor:
        return torch.cat((sizes[:, 0], -sizes[:, 1]), 1)

    def _look_up(self, table: Tensor) -> Tensor:
        codes = unpack_bits(self.packed, self.format.code_bits, self.size[1]).long() & (2 * self.format.n_levels - 1)
        return table.gather(1, self.format._rows(codes)).reshape(self.size)
