"""AdaDim: groups along the outputs or along the inputs, chosen layer by layer (arXiv 2309.15531, ICLR 2024).

A group of neighbouring inputs of one output row ("oc") lets a sensitive column spoil the grid of its neighbours; a
group of neighbouring outputs within one input column ("ic") gives that column grids of its own. Which of the two a
layer wants is measured: both are rounded to nearest, and the smaller error of the output decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from skerry.core.errors import ParameterError
from skerry.quant.numerics import AffineGrid, IntTensor
from skerry.quant.parts import Format, Solved
from skerry.quant.solvers.gptq import GPTQ
from skerry.quant.solvers.layer import affine, checked, gram_of, grouped, layer_error, on_the_weights_device, per_scale
from skerry.quant.solvers.rtn import RTN
from skerry.quant.solvers.tiles import Tiled
from skerry.quant.statistics import LayerStatistics

__all__ = ["AdaDim"]

DIMS = ("oc", "ic", "tensor2d")


@dataclass(frozen=True)
class AdaDim:
    """Tries a base solver's grids along rows and along columns, and keeps the better.

    Parameters
    ----------
    base : RTN or GPTQ, default RTN()
        What solves the weight once the dimension is chosen.
    dims : tuple of {"oc", "ic", "tensor2d"}, default ("oc", "ic")
        Candidates, earlier ones preferred at equal error. "tensor2d" (not in the paper) shares a scale within tiles.
    reference : {"current", "float"}, default "current"
        What the engine compares outputs with: those of the parent as it is, with earlier layers already quantized, or
        of the float model.
    choose : {"rtn", "base"}, default "rtn"
        Compare roundings to nearest, as published, or what the base solver makes of every candidate.
    official : bool, default False
        The published grids: asymmetric, and ranges need not contain 0 (a group of weights of one sign is clipped).
    tile : (int, int), default (16, 8)
        Rows and columns of "tensor2d".

    Raises
    ------
    ParameterError
        For an unknown dimension, reference or base.

    Notes
    -----
    Where the group size does not divide a dimension the largest smaller size that does is used for that candidate and
    noted (key and value layers of grouped-query attention have few outputs).

    Examples
    --------
    >>> W = torch.tensor([[0.1, -0.3, 2, 0.2], [-0.05, 0.2, -3, 0.3], [0.15, -0.1, 1, -0.2], [0.02, 0.25, -2, 0.1]])
    >>> power = LayerStatistics(tokens=4, gram=torch.diag(torch.tensor([100.0, 1, 1, 1], dtype=torch.float64)))
    >>> found = AdaDim().solve(W, power, AffineGrid(3, symmetric=False, group_size=4))
    >>> found.info["dim"], round(found.info["error_oc"], 4), round(found.info["error_ic"], 4)
    ('ic', 1.4798, 0.1844)
    """

    base: Any = RTN()
    dims: tuple[str, ...] = ("oc", "ic")
    reference: str = "current"
    choose: str = "rtn"
    official: bool = False
    tile: tuple[int, int] = (16, 8)

    def __post_init__(self) -> None:
        if not self.dims or set(self.dims) - set(DIMS):
            raise ParameterError(f"dims must be some of {', '.join(DIMS)}, got {self.dims!r}")
        if self.reference not in ("current", "float"):
            raise ParameterError(f"reference must be 'current' or 'float', got {self.reference!r}")
        if self.choose not in ("rtn", "base"):
            raise ParameterError(f"choose must be 'rtn' or 'base', got {self.choose!r}")
        if not isinstance(self.base, (RTN, GPTQ)):
            raise ParameterError(f"AdaDim works over RTN or GPTQ, got {type(self.base).__name__}")
        if self.official and self.base.clip:
            raise ParameterError("official grids are not searched: set clip=False in the base solver")

    @property
    def needs(self) -> frozenset[str]:
        """Statistics: the Gram matrix."""
        return self.base.needs | {"gram"}

    @on_the_weights_device
    def solve(
        self,
        W: Tensor,
        statistics: LayerStatistics,
        grid: Format,
        *,
        name: str = "the weight",
        loss: Callable[[Tensor], float] | None = None,
        parent: str = "",
    ) -> Solved:
        """Return the weight on the grid of the better dimension; ``info`` holds the decision.

        Parameters
        ----------
        W : Tensor of shape (out, in)
        statistics : LayerStatistics
        grid : AffineGrid
            Bits, group size and kind; its ``axis`` is what is chosen here.
        name : str
        loss : callable, optional
            Error of the output that matters with a candidate (out, in) for the weight; by default the error of the
            layer's own output.
        parent : str
            Name of the module whose output ``loss`` looks at, for the record.

        Raises
        ------
        ModelError
            If the weight or the Gram matrix is not finite.
        """
        W, grid = checked(W, name), affine(grid, name, "AdaDim")
        gram = gram_of(statistics, W, name)
        grids = {dim: self._grid(dim, grid, tuple(W.shape)) for dim in self.dims}  # type: ignore[arg-type]
        rounded = {dim: self._rounded(W, dim, grids[dim]) for dim in self.dims}
        solved: dict[str, Solved] = {}
        if self.choose == "base":
            solved = {dim: self._base(W, statistics, dim, grids[dim], name) for dim in self.dims}
        candidates = {dim: solved[dim].dense() if solved else rounded[dim].dequantize() for dim in self.dims}
        error = loss if loss is not None else lambda V: layer_error(W, V, gram)
        errors = {dim: float(error(V)) for dim, V in candidates.items()}
        best = min(self.dims, key=lambda dim: errors[dim])  # the first of equals
        found = solved.get(best) or self._base(W, statistics, best, grids[best], name)
        record = self._record(W, gram, best, errors, grids[best], grid, rounded[self.dims[0]].dequantize())
        record |= {"parent": parent or name, "reference": self.reference if loss else "own output"}
        return replace(found, info={**found.info, **record})

    def solve_in(
        self, W: Tensor, statistics: LayerStatistics, grid: Format, *, group: Any, layer: str, context: Any
    ) -> Solved:
        """Decide by the output of the layer's parent (attention, gated MLP) on recorded calls; for the engine."""
        from skerry.quant.linear import played

        probe, linear = context.probe, group.consumers[layer]
        if not probe.calls:
            return self.solve(W, statistics, grid, name=layer)
        wanted = probe.outputs() if self.reference == "current" else None

        def loss(V: Tensor) -> float:
            with played(linear, V.to(W.device, linear.weight.dtype)):
                return float(probe.error(wanted))

        return self.solve(W, statistics, grid, name=layer, loss=loss, parent=group.parent or layer)

    def _grid(self, dim: str, grid: AffineGrid, shape: tuple[int, int]) -> AffineGrid:
        if self.official:
            grid = replace(grid, symmetric=False)
        if dim == "tensor2d":
            return replace(grid, axis=1, group_size=self.tile[0] * self.tile[1])
        axis = 1 if dim == "oc" else 0
        size = grid.group_size
        if size > 0:
            size = max(g for g in range(1, min(size, shape[axis]) + 1) if shape[axis] % g == 0)
        return replace(grid, axis=axis, group_size=size)

    def _rounded(self, W: Tensor, dim: str, grid: AffineGrid) -> IntTensor | Tiled:
        if dim == "tensor2d":
            return Tiled.rounded(W, grid, self.tile)
        return grid.quantize(W, *(unextended(W, grid) if self.official else grid.fit(W)))

    def _base(self, W: Tensor, statistics: LayerStatistics, dim: str, grid: AffineGrid, name: str) -> Solved:
        if dim == "tensor2d":
            return Tiled.solved(W, statistics, grid, self.tile, self.base, name)
        if isinstance(self.base, GPTQ):
            return self.base.solve_on(W, statistics, grid, name, unextended if self.official else None)
        if not self.official:
            return self.base.solve(W, statistics, grid, name=name)
        stored = grid.quantize(W, *unextended(W, grid))
        return Solved(stored, objective=layer_error(W, stored.dequantize(), gram_of(statistics, W, name)))

    def _record(
        self,
        W: Tensor,
        gram: Tensor,
        best: str,
        errors: Mapping[str, float],
        used: AffineGrid,
        grid: AffineGrid,
        first: Tensor,
    ) -> dict[str, Any]:
        power = gram.diagonal().clamp(min=0.0)
        by_column = power * (W - first).double().square().sum(0)
        top = max(1, round(0.01 * len(power)))
        total, middle = float(by_column.sum()), float(power.median())
        record: dict[str, Any] = {"dim": best} | {f"error_{dim}": e for dim, e in errors.items()}
        record |= {"bits": grid.bits, "group_size": used.group_size}
        if used.group_size != grid.group_size and best != "tensor2d":
            record["reduced_from"] = grid.group_size
        record["outlier_score"] = float(power.max()) / middle if middle > 0.0 else float("inf")
        record["column_concentration"] = float(by_column.topk(top).values.sum()) / total if total > 0.0 else 0.0
        return record


def unextended(W: Tensor, grid: AffineGrid) -> tuple[Tensor, Tensor]:
    """Return the published grids: ``scale = max(max - min, 1e-5) / (2^b - 1)``, ``zero = -round(min / scale)``.

    The range need not contain 0: a group of positive weights has its zero point at the lowest code and is clipped.
    """
    view = grouped(W, grid)
    low, high = per_scale(view.amin(-1), grid), per_scale(view.amax(-1), grid)
    levels = 2**grid.bits - 1
    scale = ((high - low).clamp(min=1e-5) / levels).to(getattr(torch, grid.scale_dtype))
    # signed codes: the published ones run from 0
    qmin = -(2 ** (grid.bits - 1))
    zero = qmin + (-torch.round(low / scale.float())).clamp(0, levels)
    return scale, zero.to(torch.int32)
