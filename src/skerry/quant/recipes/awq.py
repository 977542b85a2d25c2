"""AWQ (arXiv 2306.00978): column scales of a weight from the mean size of its inputs, searched on the output."""

from skerry.quant.recipe import Bits, Recipe
from skerry.quant.recipes.common import inputs, weights
from skerry.quant.solvers import AWQ

__all__ = ["build"]


def build(bits: Bits, *, symmetric: bool = False) -> Recipe:
    """Return the recipe; see :class:`~skerry.quant.solvers.awq.AWQ`."""
    return Recipe("awq", weights(bits, symmetric=symmetric), AWQ(), inputs(bits))
