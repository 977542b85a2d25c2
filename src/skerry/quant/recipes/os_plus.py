"""Outlier Suppression+ (arXiv 2304.09145): :class:`~skerry.quant.transforms.shift_scale.ShiftScale`, nearest rounding.

The paper's settings: static per-tensor inputs; symmetric at 8 bits, asymmetric below.
"""

from skerry.quant.recipe import Bits, Recipe
from skerry.quant.recipes.common import inputs, weights
from skerry.quant.transforms.shift_scale import ShiftScale

__all__ = ["build"]


def build(
    bits: Bits, *, shift: bool = True, static: bool = True, floor: float = 1.0, n_grid: int | str = "auto"
) -> Recipe:
    """Return the recipe; ``floor`` is the smallest threshold tried (0.1 for Llama in the paper's code)."""
    symmetric = bits.weight >= 8
    return Recipe(
        "os-plus",
        weights(bits, symmetric=symmetric),
        activation=inputs(bits, static=static, symmetric=bits.activation >= 8),
        transforms=(ShiftScale(shift=shift, floor=floor, n_grid=n_grid),),
        sequential="group",
    )
