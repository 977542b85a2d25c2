"""AWQ for one weight: scales of its inputs that protect the active ones, then ranges (arXiv 2306.00978)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from skerry.core.errors import ModelError, ParameterError
from skerry.quant.parts import Format, Solved
from skerry.quant.solvers.column_scaled import ColumnScaled
from skerry.quant.solvers.layer import affine, checked, gram_of, layer_error, on_the_weights_device, told
from skerry.quant.solvers.scale_search import channel_importance, search_ranges, search_scale
from skerry.quant.statistics import LayerStatistics

__all__ = ["AWQ"]


@dataclass(frozen=True)
class AWQ:
    """Multiplies the columns of active inputs before rounding and divides after; looks for the best exponent.

    The error searched by is that of the layer's own output. Where the layer before can take the division, the
    transform does it there, at no cost at run time; this solver serves single weights and benchmarks.

    Parameters
    ----------
    steps : int, default 20
        Exponents tried: 0, 1 / steps, ...
    weight_aware : bool, default False
        Divide by the columns' mean share of their group's largest weight, too.
    clip : bool, default True
        Afterwards search ranges of groups shrunk to as little as half.

    Raises
    ------
    ParameterError
        If ``steps`` is not positive.

    Examples
    --------
    >>> from skerry.quant.numerics import AffineGrid
    >>> generator = torch.Generator().manual_seed(0)
    >>> X = torch.randn(100, 16, generator=generator) * torch.tensor([30.0] + 15 * [1.0])
    >>> W, statistics = torch.randn(8, 16, generator=generator), LayerStatistics.of(X)
    >>> from skerry.quant.solvers import RTN
    >>> found, rounded = (s.solve(W, statistics, AffineGrid(3)).objective for s in (AWQ(), RTN()))
    >>> found < 0.5 * rounded
    True
    """

    steps: int = 20
    weight_aware: bool = False
    clip: bool = True

    needs: ClassVar[frozenset[str]] = frozenset({"gram", "mean_abs"})

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ParameterError(f"steps must be at least 1, got {self.steps}")

    @on_the_weights_device
    def solve(self, W: Tensor, statistics: LayerStatistics, grid: Format, *, name: str = "the weight") -> Solved:
        """Return the weight with its column scales, never worse than rounding to nearest.

        Raises
        ------
        ModelError
            If the weight or a statistic is missing or not finite, or the grid's groups do not divide the weight.
        """
        W, grid = checked(W, name), affine(grid, name, "AWQ")
        gram = gram_of(statistics, W, name)
        grid.group_of(tuple(W.shape), name)  # type: ignore[arg-type]
        if statistics.mean_abs is None:
            raise ModelError(f"{name}: AWQ needs the 'mean_abs' statistic of the layer's inputs")
        light = gram.float()  # a search of forty roundings needs no more

        def loss(scale: Tensor) -> float:
            scale = scale.half().float()
            E = W - grid.round(W * scale) / scale
            return float(((E @ light) * E).sum(dtype=torch.float64))

        importance = channel_importance([W], grid) if self.weight_aware else None
        found = search_scale(statistics.mean_abs.cpu(), loss, importance=importance, steps=self.steps)
        half = found.scale.half()
        scaled = W * half.float()
        choices = [ColumnScaled(grid.quantize(scaled), half)]
        if self.clip:
            inner = gram / torch.outer(half.double(), half.double())
            choices.append(ColumnScaled(grid.quantize(scaled, *search_ranges(scaled, grid, inner)), half))
        errors = [layer_error(W, c.dequantize(), gram) for c in choices]
        best = int(errors[-1] < errors[0]) if self.clip else 0
        info = told({"ratio": found.ratio, "clip": bool(best)}, statistics, gram)
        return Solved(choices[best], objective=errors[best], info=info)
