"""Round to nearest: min-max grids, nothing else; what every method must beat."""

from skerry.quant.recipe import Bits, Recipe
from skerry.quant.recipes.common import inputs, weights

__all__ = ["build"]


def build(bits: Bits, *, static: bool = False, symmetric: bool = True) -> Recipe:
    """Return the recipe; ``static`` takes one calibrated scale a tensor for the inputs."""
    return Recipe("rtn", weights(bits, symmetric=symmetric), activation=inputs(bits, static=static))
