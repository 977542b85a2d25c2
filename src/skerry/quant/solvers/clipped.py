"""Round to nearest on a range that is a fixed share of the weights' own: DuQuant's static clip (arXiv 2406.01721)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from skerry.core.errors import ParameterError
from skerry.quant.parts import Format, Solved
from skerry.quant.solvers.layer import affine, checked, gram_of, grouped, layer_error, on_the_weights_device, per_scale
from skerry.quant.statistics import LayerStatistics

__all__ = ["ClippedRTN"]


@dataclass(frozen=True)
class ClippedRTN:
    """Rounds to nearest after shrinking every group's minimum and maximum by a factor; looks at no input.

    Parameters
    ----------
    ratio : float in (0, 1], default 0.8

    Raises
    ------
    ParameterError
        For a ratio out of range.

    Examples
    --------
    >>> import torch
    >>> from skerry.quant.numerics import AffineGrid
    >>> found = ClippedRTN(0.5).solve(torch.tensor([[-1.0, 0.5, 0.25, 0.0]]), LayerStatistics(), AffineGrid(bits=3))
    >>> [round(w, 3) for w in found.weight.dequantize()[0].tolist()]
    [-0.5, 0.5, 0.333, 0.0]
    """

    ratio: float = 0.8

    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        if not 0.0 < self.ratio <= 1.0:
            raise ParameterError(f"ratio must be in (0, 1], got {self.ratio}")

    @on_the_weights_device
    def solve(self, W: Tensor, statistics: LayerStatistics, grid: Format, *, name: str = "the weight") -> Solved:
        """Return the rounded weight; ``objective`` is NaN unless the Gram matrix is at hand.

        Raises
        ------
        ModelError
            If the weight is not finite, the format is no uniform grid or its groups do not divide the weight.
        """
        W, grid = checked(W, name), affine(grid, name, "ClippedRTN")
        grid.group_of(tuple(W.shape), name)  # type: ignore[arg-type]
        view = grouped(W, grid)
        low, high = (per_scale(end, grid) * self.ratio for end in (view.amin(-1), view.amax(-1)))
        stored = grid.quantize(W, *grid.fit(W, low=low, high=high))
        gram = None if statistics.gram is None else gram_of(statistics, W, name)
        error = float("nan") if gram is None else layer_error(W, stored.dequantize(), gram)
        return Solved(stored, objective=error)
