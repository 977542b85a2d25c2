"""Round to nearest: the baseline of every solver, and what they fall back to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from skerry.quant.numerics import AffineGrid
from skerry.quant.parts import Format, Solved
from skerry.quant.solvers.layer import checked, gram_of, layer_error, min_max, on_the_weights_device
from skerry.quant.statistics import LayerStatistics

__all__ = ["RTN"]


@dataclass(frozen=True)
class RTN:
    """Rounds every weight to the nearest value of its format; looks at no input.

    Parameters
    ----------
    clip : bool, default False
        On uniform grids, search ranges shrunk to as little as a fifth for the least ``sum |w - q(w)|^2.4``.

    Examples
    --------
    >>> import torch
    >>> found = RTN().solve(torch.tensor([[-1.0, 0.6, 0.25, 0.0]]), LayerStatistics(), AffineGrid(bits=4))
    >>> found.weight.codes.tolist()
    [[-7, 4, 2, 0]]
    """

    clip: bool = False

    needs: ClassVar[frozenset[str]] = frozenset()

    @on_the_weights_device
    def solve(self, W: Tensor, statistics: LayerStatistics, grid: Format, *, name: str = "the weight") -> Solved:
        """Return the rounded weight; ``objective`` is NaN unless the Gram matrix is at hand.

        Raises
        ------
        ModelError
            If the weight is not finite or the grid's groups do not divide it.
        """
        W = checked(W, name)
        gram = None if statistics.gram is None else gram_of(statistics, W, name)
        if isinstance(grid, AffineGrid):
            grid.group_of(tuple(W.shape), name)  # type: ignore[arg-type]
            stored = grid.quantize(W, *min_max(W, grid, clip=self.clip))
        else:
            stored = grid.quantize(W)
        error = float("nan") if gram is None else layer_error(W, stored.dequantize(), gram)
        return Solved(stored, objective=error)
