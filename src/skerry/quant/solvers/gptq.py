"""GPTQ: round columns one after the other and let the later ones make up for the error (arXiv 2210.17323).

Beside the static grids of the original weight there are fresh ones, fitted when a group's first column is reached: the
natural choice for grids along an input column (AdaDim, arXiv 2309.15531).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from skerry.core.errors import ParameterError
from skerry.quant.numerics import AffineGrid
from skerry.quant.parts import Format, Solved
from skerry.quant.solvers.layer import (
    affine,
    checked,
    column_order,
    error_feedback,
    feedback_factor,
    fell_back,
    finished,
    gram_of,
    min_max,
    on_the_weights_device,
    told,
)
from skerry.quant.statistics import LayerStatistics

__all__ = ["GPTQ"]


@dataclass(frozen=True)
class GPTQ:
    """Error feedback in a fixed order of columns, by a factor of the damped Gram matrix.

    Parameters
    ----------
    damp : float, default 0.01
        Share of the mean diagonal entry added to the diagonal; raised by steps of 0.0025 to 0.1 if the matrix is not
        positive definite, and past that the layer is rounded to nearest, with a warning and a line in ``info``.
    act_order : bool, default True
        The most active inputs first; codes stay in the original order of columns.
    grids : {"auto", "static", "fresh"}, default "auto"
        Fit grids on the original weight ("static") or when their first column is reached, on the weights as
        compensated by then ("fresh"). "auto": static for grids along a row, fresh for grids along a column.
    clip : bool, default False
        Search shrunk ranges for static grids, as :class:`~skerry.quant.solvers.RTN` does.

    Raises
    ------
    ParameterError
        For a negative ``damp`` or an unknown kind of grids.

    Notes
    -----
    Weights of inputs that were 0 on every calibration token become 0, as published.

    Examples
    --------
    >>> import torch
    >>> from skerry.quant.numerics import AffineGrid
    >>> X = torch.tensor([[1.0, 0.9], [0.8, 1.0], [1.1, 1.0]])
    >>> W = torch.tensor([[0.72, -1.0]])
    >>> statistics, grid = LayerStatistics.of(X, {"gram"}), AffineGrid(bits=2)
    >>> GPTQ().solve(W, statistics, grid).dense().tolist()  # rounding up by 0.28 is left standing
    [[1.0, -1.0]]
    """

    damp: float = 0.01
    act_order: bool = True
    grids: str = "auto"
    clip: bool = False

    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    def __post_init__(self) -> None:
        if self.damp < 0.0:
            raise ParameterError(f"damp must not be negative, got {self.damp}")
        if self.grids not in ("auto", "static", "fresh"):
            raise ParameterError(f"grids must be 'auto', 'static' or 'fresh', got {self.grids!r}")

    @on_the_weights_device
    def solve(self, W: Tensor, statistics: LayerStatistics, grid: Format, *, name: str = "the weight") -> Solved:
        """Return the weight on its grid.

        Raises
        ------
        ModelError
            If the weight or the Gram matrix is not finite, or the grid's groups do not divide the weight.
        ParameterError
            For fresh grids along rows together with ``act_order``: their columns would not be neighbours.
        """
        return self.solve_on(W, statistics, affine(grid, name, "GPTQ"), name)

    def solve_on(
        self,
        W: Tensor,
        statistics: LayerStatistics,
        grid: AffineGrid,
        name: str,
        fit: Callable[[Tensor, AffineGrid], tuple[Tensor, Tensor]] | None = None,
    ) -> Solved:
        """Return the weight on grids of the rule ``fit`` (AdaDim's published one); None is minimum and maximum."""
        W = checked(W, name)
        gram = gram_of(statistics, W, name)
        grid.group_of(tuple(W.shape), name)  # type: ignore[arg-type]
        fresh = self.fresh(grid.axis) and grid.group_size != 0
        if fresh and grid.axis == 1 and self.act_order and grid.group_size > 0:
            raise ParameterError("fresh grids along rows need act_order=False; use static ones")
        live = W * (gram.diagonal() > 0.0)
        order = column_order(gram, self.act_order)
        factor = feedback_factor(gram[order][:, order], self.damp)
        info = told({"act_order": self.act_order}, statistics, gram)
        if factor is None:
            info = fell_back(name, info | {"silent": not bool(gram.any())})
            scale, zero = fit(W, grid) if fit else min_max(W, grid, clip=self.clip)
            return finished(W, grid, grid.codes(W, scale, zero), scale, zero, gram, info)
        info["damp"] = factor.damp
        if factor.damp > self.damp:
            info["damp_raised"] = True
        # a whole row's own fresh grid is the static one: nothing is compensated before its first column
        static = not fresh or (grid.axis == 1 and grid.group_size < 0)
        scale, zero = None, None
        if static:
            scale, zero = fit(live, grid) if fit else min_max(live, grid, clip=self.clip)
        codes, scale, zero = error_feedback(live, factor, order, grid, scale, zero, name, unextended=fit is not None)
        return finished(W, grid, codes, scale, zero, gram, info)

    def fresh(self, axis: int) -> bool:
        """Return whether grids along ``axis`` are fitted when they are reached."""
        return axis == 0 if self.grids == "auto" else self.grids == "fresh"
