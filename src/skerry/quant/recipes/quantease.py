"""QuantEase (arXiv 2309.01885): coordinate descent on the layer's output error, a few weights kept in 16 bits."""

from skerry.quant.recipe import Bits, Recipe
from skerry.quant.recipes.common import inputs, weights
from skerry.quant.solvers import QuantEase

__all__ = ["build"]


def build(
    bits: Bits,
    *,
    sweeps: int = 5,
    init: str = "gptq",
    outliers: float = 0.0,
    structured: bool = False,
    symmetric: bool = False,
) -> Recipe:
    """Return the recipe; ``outliers`` is the share of weights (or, ``structured``, of columns) kept in 16 bits."""
    solver = QuantEase(sweeps=sweeps, init=init, outliers=outliers, structured=structured)
    return Recipe("quantease", weights(bits, symmetric=symmetric), solver, inputs(bits), sequential="group")
