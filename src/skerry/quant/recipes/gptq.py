"""GPTQ (arXiv 2210.17323): error feedback over the columns of a weight; inputs rounded per token, if at all."""

from skerry.quant.recipe import Bits, Recipe
from skerry.quant.recipes.common import inputs, weights
from skerry.quant.solvers import GPTQ

__all__ = ["build"]


def build(
    bits: Bits,
    *,
    damp: float = 0.01,
    act_order: bool = True,
    symmetric: bool = True,
    propagate: str = "quantized",
) -> Recipe:
    """Return the recipe; see :class:`~skerry.quant.solvers.gptq.GPTQ` for the settings.

    ``propagate="mixed"`` lets every layer make good what the layers before it lost.
    """
    solver = GPTQ(damp=damp, act_order=act_order)
    return Recipe(
        "gptq", weights(bits, symmetric=symmetric), solver, inputs(bits), sequential="group", propagate=propagate
    )
