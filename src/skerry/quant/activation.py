"""How the inputs of a quantized linear layer are rounded: when the scale is set, and who shares it.

Every kind computes in float32, rounds half to even and clamps before any cast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from skerry.core.errors import ModelError, ParameterError
from skerry.quant.statistics import LayerStatistics

__all__ = ["GroupDynamic", "RoundClamp", "TensorDynamic", "TensorStatic", "TokenClip", "TokenDynamic", "TokenRatio"]

TINY = 1e-12


def _levels(bits: int, symmetric: bool) -> tuple[int, int]:
    if not 2 <= bits <= 16:
        raise ParameterError(f"activation bits must be 2 to 16, got {bits}")
    top = 2 ** (bits - 1) - 1
    return (-top if symmetric else -top - 1), top


def _rounded(x: Tensor, low: Tensor, high: Tensor, bits: int, symmetric: bool) -> Tensor:
    """Round to the min-max grid of ranges that broadcast over ``x``."""
    qmin, qmax = _levels(bits, symmetric)
    if symmetric:
        scale = (torch.maximum(-low, high) / qmax).clamp(min=TINY)
        return torch.round(x / scale).clamp(qmin, qmax) * scale
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    scale = ((high - low) / (qmax - qmin)).clamp(min=TINY)
    zero = torch.round(qmin - low / scale)
    return (torch.round(x / scale + zero).clamp(qmin, qmax) - zero) * scale


class _Dynamic:
    needs: frozenset[str] = frozenset()
    kind: str

    def calibrated(self, statistics: LayerStatistics):
        """Return itself: the scale is set at run time."""
        return self


@dataclass(frozen=True)
class TokenDynamic(_Dynamic):
    """One scale for every token, set at run time; ``ratio`` shrinks its range.

    Examples
    --------
    >>> TokenDynamic(bits=4).fake(torch.tensor([[7.0, 0.4], [0.7, 0.32]]))
    tensor([[7.0000, 0.0000],
            [0.7000, 0.3000]])
    """

    bits: int = 8
    symmetric: bool = True
    ratio: float = 1.0

    kind = "token_dynamic"

    def fake(self, x: Tensor) -> Tensor:
        """Return ``x`` (..., in) rounded."""
        y = x.float()
        low, high = y.amin(-1, keepdim=True) * self.ratio, y.amax(-1, keepdim=True) * self.ratio
        return _rounded(y, low, high, self.bits, self.symmetric).to(x.dtype)


@dataclass(frozen=True)
class TensorDynamic(_Dynamic):
    """One scale for all tokens of a call, set at run time."""

    bits: int = 8
    symmetric: bool = True

    kind = "tensor_dynamic"

    def fake(self, x: Tensor) -> Tensor:
        """Return ``x`` (..., in) rounded."""
        if not x.numel():
            return x
        y = x.float()
        return _rounded(y, y.amin(), y.amax(), self.bits, self.symmetric).to(x.dtype)


@dataclass(frozen=True)
class GroupDynamic(_Dynamic):
    """One scale for every token and group of channels.

    Attributes
    ----------
    unsigned : bool or "auto"
        Codes 0 .. 2^b - 1, for inputs that are never negative; "auto" decides by calibration.
    """

    bits: int = 4
    group_size: int = 64
    symmetric: bool = True
    unsigned: bool | str = False

    kind = "group_dynamic"

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """Statistics wanted."""
        return frozenset({"range"}) if self.unsigned == "auto" else frozenset()

    def calibrated(self, statistics: LayerStatistics) -> GroupDynamic:
        """Return the quantizer with its sign decided from calibration."""
        found = self
        if self.unsigned == "auto":
            if statistics.low is None:
                raise ModelError("unsigned='auto' needs the 'range' statistic")
            found = replace(found, unsigned=bool(statistics.low.min() >= 0.0))
        return found

    def fake(self, x: Tensor) -> Tensor:
        """Return ``x`` (..., in) rounded.

        Raises
        ------
        ModelError
            If the group size does not divide the channels.
        """
        if x.shape[-1] % self.group_size:
            raise ModelError(f"activation group size {self.group_size} does not divide {x.shape[-1]} channels")
        y = x.float().unflatten(-1, (-1, self.group_size))
        low, high = y.amin(-1, keepdim=True), y.amax(-1, keepdim=True)
        if self.unsigned is True:
            top = 2**self.bits - 1
            scale = (high.clamp(min=0.0) / top).clamp(min=TINY)
            rounded = torch.round(y / scale).clamp(0, top) * scale
        else:
            rounded = _rounded(y, low, high, self.bits, self.symmetric)
        return rounded.flatten(-2).to(x.dtype)


@dataclass(frozen=True)
class TensorStatic:
    """One scale for everything, set from calibration.

    Attributes
    ----------
    low, high : float or None
        Range; None until :meth:`calibrated`.
    """

    bits: int = 8
    symmetric: bool = True
    low: float | None = None
    high: float | None = None

    kind = "tensor_static"
    needs = frozenset({"range"})

    def calibrated(self, statistics: LayerStatistics) -> TensorStatic:
        """Return the quantizer with the calibration range."""
        if statistics.low is None or statistics.high is None:
            raise ModelError("a static activation scale needs the 'range' statistic")
        return replace(self, low=float(statistics.low.min()), high=float(statistics.high.max()))

    def clipped(self, x: Tensor) -> Tensor:
        """Return which values of ``x`` (..., in) lie outside the calibrated range, by more than half a step."""
        if self.low is None or self.high is None:
            raise ModelError("this static activation quantizer has not seen calibration data")
        qmin, qmax = _levels(self.bits, self.symmetric)
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        if self.symmetric:
            high = max(-low, high)
            low = -high
        half = max((high - low) / (qmax - qmin), TINY) / 2
        y = x.float()
        return (y < low - half) | (y > high + half)

    def fake(self, x: Tensor) -> Tensor:
        """Return ``x`` (..., in) rounded, clipped to the range."""
        if self.low is None or self.high is None:
            raise ModelError("this static activation quantizer has not seen calibration data")
        y = x.float()
        return _rounded(y, y.new_tensor(self.low), y.new_tensor(self.high), self.bits, self.symmetric).to(x.dtype)


def _least_error(tried: list[Any], X: Tensor) -> Any:
    """Return the first of the quantizers with the least squared error on ``X``."""
    return min(tried, key=lambda q: float(((q.fake(X) - X) ** 2).sum(dtype=torch.float64)))


@dataclass(frozen=True)
class TokenClip:
    """One scale for everything that leaves the loudest tokens out (token-wise clipping); becomes a ``TensorStatic``.

    Outlier Suppression (arXiv 2209.13325, section 4.2) ranks tokens by their largest and by their smallest value and
    clips both at a quantile of the tokens: separator tokens with huge values say little, and go first.

    Parameters
    ----------
    bits : int, default 8
    symmetric : bool, default True
    keep : float in (0, 1], optional
        Quantile of the tokens. By default it is searched from 1 down in steps of 0.005, by 0.05 at 8 bits and 0.10
        below, for the least squared error of the rounded inputs (the paper asks the model's loss instead). Up to 4096
        tokens are looked at.

    Raises
    ------
    ParameterError
        For a quantile out of range.

    Examples
    --------
    >>> X = torch.tensor([[0.5, -0.5]]).repeat(500, 1) * torch.linspace(1, 2, 500)[:, None]
    >>> X[7, 0] = 3.0
    >>> [round(TokenClip(4, keep=k).calibrated(LayerStatistics.of(X)).high, 2) for k in (1.0, 0.9, None)]
    [3.0, 0.95, 0.96]
    """

    bits: int = 8
    symmetric: bool = True
    keep: float | None = None

    kind = "token_clip"
    needs = frozenset({"sample"})

    def __post_init__(self) -> None:
        _levels(self.bits, self.symmetric)
        if self.keep is not None and not 0.0 < self.keep <= 1.0:
            raise ParameterError(f"keep must be above 0 and at most 1, got {self.keep}")

    def calibrated(self, statistics: LayerStatistics) -> TensorStatic:
        """Return the quantizer with its range.

        Raises
        ------
        ModelError
            Without the 'sample' statistic.
        """
        if statistics.sample is None:
            raise ModelError("token-wise clipping needs the 'sample' statistic")
        X = statistics.sample.float()
        tops, bottoms = X.amax(-1).sort().values, (-X.amin(-1)).sort().values
        steps = 10 if self.bits >= 8 else 20
        grid = [1.0 - 0.005 * i for i in range(steps + 1)] if self.keep is None else [self.keep]
        ranks = [max(1, math.ceil(quantile * len(X) - 1e-6)) - 1 for quantile in grid]
        return _least_error(
            [TensorStatic(self.bits, self.symmetric, -float(bottoms[r]), float(tops[r])) for r in ranks], X
        )

    def fake(self, x: Tensor) -> Tensor:
        """Refuse: it rounds only once it is calibrated."""
        raise ModelError("this static activation quantizer has not seen calibration data")


@dataclass(frozen=True)
class TokenRatio:
    """One scale a token on a range shrunk by a searched share, one for the layer; becomes a ``TokenDynamic``.

    OutlierTune's newer release (arXiv 2406.18832) rounds so what no norm feeds. Shares from 1 down to 0.51 are tried
    for the least squared error of up to 4096 tokens.

    Parameters
    ----------
    bits : int, default 8
    symmetric : bool, default True

    Examples
    --------
    >>> X = torch.randn(200, 64, generator=torch.Generator().manual_seed(0))
    >>> [TokenRatio(b).calibrated(LayerStatistics.of(X, {"sample"})).ratio for b in (8, 3)]
    [1.0, 0.77]
    """

    bits: int = 8
    symmetric: bool = True

    kind = "token_ratio"
    needs = frozenset({"sample"})

    def __post_init__(self) -> None:
        _levels(self.bits, self.symmetric)

    def calibrated(self, statistics: LayerStatistics) -> TokenDynamic:
        """Return the quantizer with its share.

        Raises
        ------
        ModelError
            Without the 'sample' statistic.
        """
        if statistics.sample is None:
            raise ModelError("a searched share of the tokens' ranges needs the 'sample' statistic")
        X = statistics.sample.float()
        tried = [TokenDynamic(self.bits, self.symmetric, round(1.0 - 0.01 * i, 2)) for i in range(50)]
        return _least_error(tried, X)

    def fake(self, x: Tensor) -> Tensor:
        """Refuse: it rounds only once it is calibrated."""
        raise ModelError("this activation quantizer has not seen calibration data")


@dataclass(frozen=True)
class RoundClamp(_Dynamic):
    """No scale at all: the input already comes in units of its step (OutlierTune)."""

    bits: int = 8

    kind = "round_clamp"

    def clipped(self, x: Tensor) -> Tensor:
        """Return which values of ``x`` (..., in) lie outside the range, by more than rounding."""
        top = 2 ** (self.bits - 1) - 1
        y = torch.round(x.float())
        return (y < -top - 1) | (y > top)

    def fake(self, x: Tensor) -> Tensor:
        """Return ``x`` (..., in) rounded to integers of the signed range."""
        top = 2 ** (self.bits - 1) - 1
        return torch.round(x.float()).clamp(-top - 1, top).to(x.dtype)
