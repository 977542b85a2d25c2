"""QuantEase (arXiv 2309.01885): coordinate descent on the layer's output error, a few weights kept in 16 bits."""

from skerry.quant.recipe import Bits, Recipe
from skerry.quant.recipes.common import inputs, weights
from skerry.quant.solvers import QuantEase

__all__ = ["build"]


def build(
    bits: Bits,
    *,
    sweeps: int | None = None,
    init: str = "gptq",
    relax: bool = False,
    act_order: bool = True,
    outliers: float = 0.0,
    structured: bool = False,
    symmetric: bool = False,
    group_size: int | None = None,
    refit: bool = False,
) -> Recipe:
    """Return the recipe; ``outliers`` is the share of weights (or, ``structured``, of columns) kept in 16 bits.

    ``sweeps`` is 5 by default, and 30 with outliers, whose places are found on the way. Weights of 4 bits and below get
    groups of 128, which serving engines load, unless ``bits`` or ``group_size`` say otherwise. The paper's own run is
    ``init="weight", relax=True, sweeps=30, group_size=-1`` (one grid a row). ``refit`` (ours) lets scales follow codes.
    """
    sweeps = (30 if outliers else 5) if sweeps is None else sweeps
    solver = QuantEase(sweeps, init, relax, act_order, outliers=outliers, structured=structured, refit=refit)
    return Recipe(
        "quantease", weights(bits, symmetric=symmetric, group_size=group_size), solver, inputs(bits), sequential="group"
    )
