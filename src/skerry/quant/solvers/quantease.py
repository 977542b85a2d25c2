"""QuantEase: coordinate descent on the layer's error, with weights kept apart if asked for (arXiv 2309.01885).

The descent needs no factorisation; started from GPTQ's result it cannot end above it. The variants with outliers
minimise ``|| W X - (V + H) X ||^2`` for V on the grid and a sparse H: sweeps over V alternate with a gradient step on H
and its projection to the largest entries, or columns (iterative hard thresholding).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from skerry.core.errors import ParameterError
from skerry.quant.numerics import AffineGrid, IntTensor
from skerry.quant.parts import Format, Solved
from skerry.quant.solvers.coordinate_descent import CoordinateDescent
from skerry.quant.solvers.layer import (
    affine,
    checked,
    column_order,
    error_feedback,
    feedback_factor,
    fell_back,
    finished,
    gram_of,
    on_the_weights_device,
    told,
)
from skerry.quant.solvers.outliers import OutlierPart
from skerry.quant.statistics import LayerStatistics

__all__ = ["QuantEase"]

INITS = ("gptq", "rtn", "weight")


@dataclass(frozen=True)
class QuantEase:
    """Coordinate descent from a start on the grid, or from the float weight itself.

    Parameters
    ----------
    sweeps : int, default 5
        Passes over all columns; ends early when nothing moves any more. The published setting is 30 from the float
        weight with relaxation: ``QuantEase(sweeps=30, init="weight", relax=True)``.
    init : {"gptq", "rtn", "weight"}, default "gptq"
        Where the descent starts.
    relax : bool, default False
        Leave every third sweep (the 2nd, 5th, ... up to the 26th, never the last) off the grid.
    act_order : bool, default True
        Visit the most active inputs first.
    damp : float, default 0.01
        Of GPTQ's factor, for ``init="gptq"``.
    outliers : float, default 0
        Share of the weights kept in floating point beside the grid (of the columns, if ``structured``).
    structured : bool, default False
        Keep whole columns.
    step : float, default 1
        Length of the gradient step on the kept weights in units of 1 / L; up to 1 it cannot raise the error.
    scaled : bool, default True
        Step and choose kept weights in the metric of the Gram matrix's diagonal, where steps are longer and weights of
        active inputs count more; False is the paper's plain step and largest entries.
    outlier_dtype : {"float16", "bfloat16", "float32"}, default "float16"
        How kept weights are stored.
    refit : bool, default False
        After every sweep give each row the scales of least error for its codes (grids along rows); the paper's grids
        stay as they were made. It costs about two sweeps each time.

    Raises
    ------
    ParameterError
        For a setting out of range.

    Notes
    -----
    The best state on the grid that any sweep ended in is returned. The released code of the variants with outliers does
    not quantize (it writes the new column to another buffer); this follows the paper's equations.

    Examples
    --------
    >>> from skerry.quant.solvers import GPTQ
    >>> generator = torch.Generator().manual_seed(0)
    >>> X = torch.randn(200, 16, generator=generator) @ torch.randn(16, 16, generator=generator)
    >>> W = torch.randn(8, 16, generator=generator)
    >>> statistics, grid = LayerStatistics.of(X, {"gram"}), AffineGrid(bits=3, symmetric=False)
    >>> found = QuantEase().solve(W, statistics, grid)
    >>> found.objective <= GPTQ().solve(W, statistics, grid).objective
    True
    """

    sweeps: int = 5
    init: str = "gptq"
    relax: bool = False
    act_order: bool = True
    damp: float = 0.01
    outliers: float = 0.0
    structured: bool = False
    step: float = 1.0
    scaled: bool = True
    outlier_dtype: str = "float16"
    refit: bool = False

    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    def __post_init__(self) -> None:
        if self.init not in INITS:
            raise ParameterError(f"init must be one of {', '.join(INITS)}, got {self.init!r}")
        if self.sweeps < 1:
            raise ParameterError(f"sweeps must be at least 1, got {self.sweeps}")
        if not 0.0 <= self.outliers <= 1.0:
            raise ParameterError(f"outliers is a share between 0 and 1, got {self.outliers}")
        if self.damp < 0.0 or self.step <= 0.0:
            raise ParameterError(f"damp must not be negative and step positive, got {self.damp} and {self.step}")
        if self.outlier_dtype not in ("float16", "bfloat16", "float32"):
            raise ParameterError(f"outlier_dtype must be float16, bfloat16 or float32, got {self.outlier_dtype!r}")

    def rounded(self, sweep: int) -> bool:
        """Return whether sweep number ``sweep`` (from 0) stays on the grid; the official schedule."""
        return not self.relax or sweep % 3 != 1 or sweep > 25 or sweep == self.sweeps - 1

    @on_the_weights_device
    def solve(self, W: Tensor, statistics: LayerStatistics, grid: Format, *, name: str = "the weight") -> Solved:
        """Return the weight on its grid, and what is kept beside it.

        ``trace`` holds the error after every sweep that ended on the grid, ``info["start"]`` that of the start.

        Raises
        ------
        ModelError
            If the weight or the Gram matrix is not finite, or the grid's groups do not divide the weight.
        """
        W, grid = checked(W, name), affine(grid, name, "QuantEase")
        gram = gram_of(statistics, W, name)
        grid.group_of(tuple(W.shape), name)  # type: ignore[arg-type]
        if self.refit and (grid.axis == 0 or grid.group_size == 0):
            raise ParameterError(f"{name}: scales are refitted along rows: axis=1 and a group size, or -1")
        info = told({"init": self.init, "act_order": self.act_order}, statistics, gram)
        if not bool((gram.diagonal() > 0.0).any()):
            scale, zero = grid.fit(W)
            info = fell_back(name, info | {"silent": True})
            return finished(W, grid, grid.codes(W, scale, zero), scale, zero, gram, info)
        live = W * (gram.diagonal() > 0.0) if self.init == "gptq" else W
        order = column_order(gram, self.act_order)
        part = OutlierPart.of(
            live[:, order], self.outliers, self.structured, self.step, self.outlier_dtype, self.scaled
        )
        if part is None:
            state = self._started(live, gram, order, grid, None, name, info)
            return self._descend(state, info)
        part.measure(gram[order][:, order])
        kept = part.dense[:, torch.argsort(order)]
        ranges = part.grid_without(grid, live, kept)
        state = self._started((live - kept).float(), gram, order, grid, ranges, name, info)
        return self._descend_with(part, state, live, info)

    def _started(
        self,
        target: Tensor,
        gram: Tensor,
        order: Tensor,
        grid: AffineGrid,
        ranges: tuple[Tensor, Tensor | None] | None,
        name: str,
        info: dict[str, Any],
    ) -> CoordinateDescent:
        """Return the descent at its start; ``ranges`` are grids given beforehand."""
        scale, zero = grid.fit(target) if ranges is None else ranges
        codes = None
        if self.init == "gptq":
            factor = feedback_factor(gram[order][:, order], self.damp)
            if factor is None:
                info["init"] = "rtn"
                info["fallback"] = "rtn as the start: the Gram matrix is not positive definite"
            else:
                info["damp"] = factor.damp
                # along columns GPTQ fits its grids as it goes: the descent keeps those
                fresh = ranges is None and grid.axis == 0 and grid.group_size != 0
                given = (None, None) if fresh else (scale, zero)
                codes, scale, zero = error_feedback(target, factor, order, grid, *given, name)
        state = CoordinateDescent(target, gram, order, grid, scale, zero, name)
        if self.init != "weight":
            state.start(grid.codes(target, scale, zero) if codes is None else codes)
            info["start"] = state.error()
        return state

    def _descend(self, state: CoordinateDescent, info: dict[str, Any]) -> Solved:
        best, codes = (info["start"], state.codes.clone()) if state.settled else (float("inf"), None)
        trace, made, scale = [], 0, state.scale
        for sweep in range(self.sweeps):
            on_grid, was_settled = self.rounded(sweep), state.settled
            moved = state.sweep(on_grid)
            made += 1
            if on_grid:
                moved += state.refit() if self.refit else 0
                trace.append(state.error())
                if trace[-1] < best or codes is None:
                    best, codes, scale = trace[-1], state.codes.clone(), state.scale
                if not moved and was_settled and not self.relax:
                    break
        info["sweeps"] = made
        codes = state.found(codes)
        return Solved(IntTensor(state.grid, codes, scale, state.zero), None, None, best, tuple(trace), info)

    def _descend_with(self, part: OutlierPart, state: CoordinateDescent, W: Tensor, info: dict[str, Any]) -> Solved:
        best, codes, kept, scale = float("inf"), None, part.dense, state.scale
        if state.settled:
            best, codes = info["start"], state.codes.clone()
        trace = []
        for sweep in range(self.sweeps):
            on_grid = self.rounded(sweep)
            state.sweep(on_grid)
            if on_grid:
                if self.refit:
                    state.refit()
                trace.append(state.error())
                if trace[-1] < best or codes is None:
                    best, codes, kept, scale = trace[-1], state.codes.clone(), part.dense, state.scale
            if sweep < self.sweeps - 1:
                part.improve(state)
        # what is stored: the kept weights in their dtype, and the grid settled once more around them
        extra = part.stored(kept[:, state.back])
        dense = torch.zeros_like(W) if extra is None else extra.dense()
        state.target, state.scale = (W.double() - dense.double())[:, state.order].contiguous(), scale
        state.start(state.found(codes))
        state.sweep()
        trace.append(state.error())
        info |= {"sweeps": self.sweeps, "outliers": self.outliers, "structured": self.structured}
        weight = IntTensor(state.grid, state.found(), state.scale, state.zero)
        return Solved(weight, extra, None, trace[-1], tuple(trace), info)
