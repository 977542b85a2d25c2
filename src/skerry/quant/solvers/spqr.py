"""SpQR: error feedback with small groups, second-level grids, and single weights kept apart (arXiv 2306.03078)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from skerry.core.errors import ParameterError
from skerry.kernels.quantization_outliers import spqr_block
from skerry.kernels.threads import threads_for
from skerry.quant.parts import Format, Solved
from skerry.quant.solvers.layer import (
    BLOCK,
    affine,
    checked,
    column_order,
    feedback_factor,
    fell_back,
    finished,
    gram_of,
    layer_error,
    on_the_weights_device,
    told,
)
from skerry.quant.solvers.outliers import sparse_entries
from skerry.quant.solvers.two_level import Level, TwoLevel
from skerry.quant.statistics import LayerStatistics

__all__ = ["SpQR"]


@dataclass(frozen=True)
class SpQR:
    """GPTQ's loop with groups fitted as they are reached, and single weights in 16 bits beside them.

    A weight is kept when its squared error, divided by that of GPTQ's inverse factor, exceeds
    ``threshold * mean(variance of the column / U_jj^2)``. Before, the group's range is fitted without the weights whose
    absence would lower the group's error by as much. Grids are asymmetric with real zero points.

    Parameters
    ----------
    threshold : float, default 0.2
        Infinity keeps none.
    damp : float, default 1
        Share of the mean diagonal entry added to the diagonal, as published.
    act_order : bool, default True
        The most active inputs first; groups are of neighbours in that order.
    scale_bits : int, default 3
        Of scales and zero points on the second level; 16 stores each in bfloat16.
    scale_rows : int, default 16
        Rows that share a second-level grid.

    Raises
    ------
    ParameterError
        For a setting out of range.

    Notes
    -----
    Published with groups of 16, which the grid's ``group_size`` sets here.

    Examples
    --------
    >>> from skerry.quant.numerics import AffineGrid
    >>> generator = torch.Generator().manual_seed(0)
    >>> X = torch.randn(200, 32, generator=generator) @ torch.randn(32, 32, generator=generator)
    >>> W = torch.randn(16, 32, generator=generator)
    >>> found = SpQR().solve(W, LayerStatistics.of(X, {"gram"}), AffineGrid(3, group_size=16))
    >>> 0 < len(found.sparse.values) < 0.2 * W.numel()
    True
    """

    threshold: float = 0.2
    damp: float = 1.0
    act_order: bool = True
    scale_bits: int = 3
    scale_rows: int = 16

    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    def __post_init__(self) -> None:
        if not self.threshold > 0.0 or self.damp < 0.0:
            raise ParameterError(f"threshold must be positive and damp not negative: {self.threshold}, {self.damp}")
        if self.scale_bits != 16 and not 2 <= self.scale_bits <= 8:
            raise ParameterError(f"scale_bits must be 2 to 8, or 16, got {self.scale_bits}")
        if self.scale_rows < 1:
            raise ParameterError(f"scale_rows must be at least 1, got {self.scale_rows}")

    @on_the_weights_device
    def solve(self, W: Tensor, statistics: LayerStatistics, grid: Format, *, name: str = "the weight") -> Solved:
        """Return the weight on two-level grids and the entries kept beside it.

        Raises
        ------
        ModelError
            If the weight or the Gram matrix is not finite, or the grid's groups do not divide the weight.
        ParameterError
            For grids along columns or of the whole tensor.
        """
        W, grid = checked(W, name), affine(grid, name, "SpQR")
        if grid.axis == 0 or grid.group_size == 0:
            raise ParameterError("SpQR groups neighbouring inputs of a row: axis=1 and a group size, or -1")
        gram = gram_of(statistics, W, name)
        size = grid.group_of(tuple(W.shape), name)  # type: ignore[arg-type]
        order = column_order(gram, self.act_order)
        factor = feedback_factor(gram[order][:, order], self.damp)
        info = told({"act_order": self.act_order}, statistics, gram)
        if factor is None:
            info = fell_back(name, info | {"silent": not bool(gram.any())})
            scale, zero = grid.fit(W)
            return finished(W, grid, grid.codes(W, scale, zero), scale, zero, gram, info)
        live = (W * (gram.diagonal() > 0.0))[:, order].double().contiguous()
        spread = live.var(0, unbiased=False) if len(W) > 1 else live.square()
        limit = self.threshold * float((spread * factor.power).mean())
        out, inputs = W.shape
        error, codes, extra = torch.zeros_like(live), torch.zeros(out, inputs, dtype=torch.int8), torch.zeros(W.shape)
        levels = self._levels(out, inputs // size)
        floor = np.float32(max(float(W.abs().amax()) * 1e-8, 1e-30))
        dtype = torch.float16 if float(W.abs().amax()) < 6e4 else torch.bfloat16
        low, high = np.float32(-(2 ** (grid.bits - 1))), np.float32(2 ** (grid.bits - 1) - 1)
        block = BLOCK if size == inputs else size * max(1, BLOCK // size)
        with threads_for(out * inputs * BLOCK):
            for start in range(0, inputs, block):
                stop = min(start + block, inputs)
                target = live[:, start:stop].clone()
                if start:
                    target.addmm_(error[:, :start], factor.feedback[:start, start:stop])
                own = factor.feedback[start:stop, start:stop].contiguous().numpy()
                state = (target.numpy(), live.numpy(), error.numpy(), codes.numpy(), extra.numpy(), own)
                settings = (factor.power.numpy(), limit, size, self.scale_rows, start, low, high, floor)
                spqr_block(*state, *settings, self.scale_bits, 11 if dtype == torch.float16 else 8, *levels)
        moved = self.act_order and size < inputs
        if not moved:  # one grid a row: the codes can stand in their places
            codes = codes[:, torch.argsort(order)].contiguous()
        scale, zero = self._level(*levels[:4]), self._level(*levels[4:])
        weight = TwoLevel(grid.bits, size, codes, scale, zero, order.to(torch.int32) if moved else None)
        kept = torch.empty_like(extra)
        kept[:, order] = extra
        sparse = sparse_entries(kept, str(dtype).removeprefix("torch."))
        objective = layer_error(W, weight.dequantize() + kept, gram)
        info |= {"damp": factor.damp, "outliers": len(sparse.values) / W.numel()}
        return Solved(weight, sparse if len(sparse.values) else None, None, objective, (), info)

    def _levels(self, out: int, groups: int) -> list[np.ndarray]:
        """Return arrays for scales, then for zero points: values, codes, low ends, steps."""
        tiles = -(-out // self.scale_rows)
        return [
            np.zeros((n, groups), dtype)
            for _ in range(2)
            for n, dtype in ((out, np.float32), (out, np.uint8), (tiles, np.float32), (tiles, np.float32))
        ]

    def _level(self, values: np.ndarray, codes: np.ndarray, low: np.ndarray, step: np.ndarray) -> Level:
        if self.scale_bits == 16:
            return Level(16, self.scale_rows, torch.from_numpy(values).bfloat16())
        ends = (torch.from_numpy(t).bfloat16() for t in (low, step))
        return Level(self.scale_bits, self.scale_rows, torch.from_numpy(codes), *ends)
