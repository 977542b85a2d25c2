"""The weight of LLM.int8() with fixed outlier columns: those stay in bfloat16, the rest becomes int8 (2208.07339)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from skerry.core.errors import ModelError, ParameterError
from skerry.quant.formats.mixed_decomposition import MixedInt8
from skerry.quant.parts import Format, Solved
from skerry.quant.solvers.layer import checked, on_the_weights_device
from skerry.quant.statistics import LayerStatistics

__all__ = ["StaticColumns"]


@dataclass(frozen=True)
class StaticColumns:
    """Keeps the columns whose input reached ``threshold`` during calibration; no live search, no rows read from int8.

    Use it with ``OutlierSplit(threshold, mode="static")``, which leaves the same columns of the input alone. It is not
    in the paper.

    Parameters
    ----------
    threshold : float, default 6.0

    Raises
    ------
    ParameterError
        If it is negative.

    Examples
    --------
    >>> X = torch.tensor([[1.0, 8.0], [0.5, -7.0]])
    >>> found = StaticColumns().solve(torch.tensor([[0.5, 100.0]]), LayerStatistics.of(X, {"absmax"}), MixedInt8())
    >>> found.sparse.columns.tolist(), found.dense().tolist()
    ([1], [[0.5, 100.0]])
    """

    threshold: float = 6.0

    needs: ClassVar[frozenset[str]] = frozenset({"absmax"})

    def __post_init__(self) -> None:
        if not self.threshold >= 0.0:
            raise ParameterError(f"threshold must be 0 or larger, got {self.threshold}")

    @on_the_weights_device
    def solve(self, W: Tensor, statistics: LayerStatistics, grid: Format, *, name: str = "the weight") -> Solved:
        """Return the weight; ``info["outlier_columns"]`` counts what is kept.

        Raises
        ------
        ModelError
            If the weight is not finite, the 'absmax' statistic is missing, or the format is not ``MixedInt8``.
        """
        W = checked(W, name)
        if not isinstance(grid, MixedInt8):
            raise ModelError(f"{name}: static outlier columns belong to MixedInt8, not to {type(grid).__name__}")
        if statistics.absmax is None:
            raise ModelError(f"{name}: static outlier columns need the 'absmax' statistic of the layer's inputs")
        columns = tuple(torch.nonzero(statistics.absmax >= self.threshold)[:, 0].tolist())
        if not columns:
            return Solved(grid.quantize(W), info={"outlier_columns": 0})
        return grid.with_columns(W, columns)
