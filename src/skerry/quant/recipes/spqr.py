"""SpQR (arXiv 2306.03078): small groups with quantized scales, and the weights that matter most in 16 bits."""

from skerry.quant.recipe import Bits, Recipe
from skerry.quant.recipes.common import inputs, weights
from skerry.quant.solvers import SpQR

__all__ = ["build"]


def build(bits: Bits, *, threshold: float = 0.2, damp: float = 1.0, act_order: bool = True) -> Recipe:
    """Return the recipe; groups of 16 unless ``bits`` says otherwise; a higher ``threshold`` keeps fewer weights."""
    solver = SpQR(threshold=threshold, damp=damp, act_order=act_order)
    grid = weights(bits, symmetric=False, group_size=16)
    return Recipe("spqr", grid, solver, inputs(bits), sequential="group")
