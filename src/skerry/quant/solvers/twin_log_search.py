"""TwinLog with ranges searched for the layer's output: errors weigh as much as their input is active."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from skerry.core.errors import ModelError
from skerry.quant.formats.twin_log import TwinLog
from skerry.quant.parts import Format, Solved
from skerry.quant.solvers.layer import checked, gram_of, layer_error, on_the_weights_device
from skerry.quant.statistics import LayerStatistics

__all__ = ["TwinLogSearch"]


@dataclass(frozen=True)
class TwinLogSearch:
    """Weighs the squared error of every weight by the mean square of its input channel (LRQ-DiT, arXiv 2508.03485).

    The format's own search takes all channels alike. Where inputs are rotated, channels are nearly alike already.

    Examples
    --------
    >>> import torch
    >>> X = torch.randn(64, 16, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, 2, 16)
    >>> W = torch.randn(8, 16, generator=torch.Generator().manual_seed(1))
    >>> statistics, form = LayerStatistics.of(X, {"gram"}), TwinLog(bits=3)
    >>> found = TwinLogSearch().solve(W, statistics, form)
    >>> found.objective < layer_error(W, form.quantize(W).dequantize(), statistics.gram)
    True
    """

    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    @on_the_weights_device
    def solve(self, W: Tensor, statistics: LayerStatistics, grid: Format, *, name: str = "the weight") -> Solved:
        """Return the stored weight; ``objective`` is the error of the layer's output.

        Raises
        ------
        ModelError
            If the weight or the Gram matrix is not finite, or the format is not ``TwinLog``.
        """
        W = checked(W, name)
        if not isinstance(grid, TwinLog):
            raise ModelError(f"{name}: this search is of TwinLog's ranges, not of {type(grid).__name__}")
        gram = gram_of(statistics, W, name)
        energy = gram.diagonal().clamp(min=0.0) / max(statistics.tokens, 1)
        stored = grid.quantize(W, grid.fit(W, energy) if bool((energy > 0.0).any()) else None)
        return Solved(stored, objective=layer_error(W, stored.dequantize(), gram))
