"""A weight solver on the inputs that the layer will get: rounded, as its activation quantizer sends them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from skerry.core.errors import ParameterError
from skerry.quant.parts import Format, Solved
from skerry.quant.solvers.gptq import GPTQ
from skerry.quant.solvers.quantease import QuantEase
from skerry.quant.statistics import LayerStatistics

__all__ = ["RoundedInputs"]


@dataclass(frozen=True)
class RoundedInputs:
    """Gives another solver the Gram matrix of rounded inputs (OutlierTune's newer release, arXiv 2406.18832).

    Rounding adds to the diagonal what noise adds, and clipping takes away what never arrives: columns that the
    quantizer drowns need less care. Of at most 4096 tokens it is exact; of more, those say what rounding changes.

    Parameters
    ----------
    base : GPTQ or QuantEase, default GPTQ()

    Raises
    ------
    ParameterError
        For another solver: it would not look at the Gram matrix.

    Examples
    --------
    >>> import torch
    >>> from skerry.quant.activation import TokenDynamic
    >>> X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    >>> found = RoundedInputs().statistics(LayerStatistics.of(X, {"gram", "sample"}), TokenDynamic(4))
    >>> Y = TokenDynamic(4).fake(X).double()
    >>> bool(torch.allclose(found.gram, Y.T @ Y))
    True
    """

    base: Any = GPTQ()

    def __post_init__(self) -> None:
        if not isinstance(self.base, (GPTQ, QuantEase)):
            raise ParameterError(f"RoundedInputs works over GPTQ or QuantEase, got {type(self.base).__name__}")

    @property
    def needs(self) -> frozenset[str]:
        """Statistics: those of the base, and tokens to round."""
        return self.base.needs | {"gram", "sample"}

    def statistics(self, found: LayerStatistics, activation: Any) -> LayerStatistics:
        """Return the statistics with the Gram matrix of inputs rounded by ``activation`` (None: as they are)."""
        if activation is None or found.gram is None or found.sample is None:
            return found
        X = found.sample
        rounded = activation.calibrated(found).fake(X).double()
        change = rounded.T @ rounded - X.double().T @ X.double()
        return replace(found, gram=found.gram + change * (found.tokens / len(X)))

    def solve(self, W: Tensor, statistics: LayerStatistics, grid: Format, *, name: str = "the weight") -> Solved:
        """Return the base solver's result: how inputs are rounded is known to :meth:`solve_in` only."""
        return self.base.solve(W, statistics, grid, name=name)

    def solve_in(
        self, W: Tensor, statistics: LayerStatistics, grid: Format, *, group: Any, layer: str, context: Any
    ) -> Solved:
        """Solve on inputs rounded as the group's will be; for the engine."""
        return self.base.solve(W, self.statistics(statistics, context.activation), grid, name=layer)
