"""QuaRot (arXiv 2404.00456): a rotated residual stream, Hadamard products before the other layers."""

from skerry.quant.recipe import Bits, Recipe
from skerry.quant.recipes.common import inputs, weights
from skerry.quant.transforms.rotation import OnlineHadamard, ResidualRotation

__all__ = ["build"]


def build(bits: Bits, *, gptq: bool = False, random_state: int = 0) -> Recipe:
    """Return the recipe; ``gptq`` solves the rotated weights by GPTQ in place of nearest rounding."""
    solver = None
    if gptq:
        from skerry.quant.solvers import GPTQ

        solver = GPTQ()
    return Recipe(
        "quarot",
        weights(bits),
        solver,
        inputs(bits),
        (ResidualRotation(random_state=random_state), OnlineHadamard()),
    )
