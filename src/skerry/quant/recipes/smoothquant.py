"""SmoothQuant: :class:`~skerry.quant.transforms.smooth.Smooth`, then round to nearest."""

from skerry.quant.recipe import Bits, Recipe
from skerry.quant.recipes.common import inputs, weights
from skerry.quant.transforms.smooth import Smooth

__all__ = ["build"]


def build(bits: Bits, *, alpha: float = 0.5, static: bool = False) -> Recipe:
    """Return the recipe; ``alpha`` is the share of the range that moves into the weights."""
    return Recipe(
        "smoothquant", weights(bits), activation=inputs(bits, static=static), transforms=(Smooth(alpha=alpha),)
    )
