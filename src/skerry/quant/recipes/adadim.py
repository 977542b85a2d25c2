"""AdaDim (arXiv 2309.15531): groups along rows or along columns, layer by layer, by the output they give."""

from skerry.core.errors import ParameterError
from skerry.quant.recipe import Bits, Recipe
from skerry.quant.recipes.common import inputs, weights
from skerry.quant.solvers import GPTQ, RTN, AdaDim

__all__ = ["build"]


def build(
    bits: Bits,
    *,
    base: str = "gptq",
    choose: str = "rtn",
    reference: str = "current",
    propagate: str = "float",
    official: bool = False,
    export_safe: bool = False,
) -> Recipe:
    """Return the recipe; ``base`` is the solver under it, "gptq" or "rtn".

    ``choose="base"`` compares what the base solver makes of both directions, and not roundings to nearest: twice the
    time, and never above either. ``reference``, ``propagate`` and ``official`` are those of
    :class:`~skerry.quant.solvers.adadim.AdaDim` and :class:`~skerry.quant.Recipe`, with the paper's defaults but for
    grids whose range contains 0. ``export_safe`` keeps to rows, the only direction that serving engines load.
    """
    if base not in ("gptq", "rtn"):
        raise ParameterError(f"base must be 'gptq' or 'rtn', got {base!r}")
    dims = ("oc",) if export_safe else ("oc", "ic")
    under = GPTQ() if base == "gptq" else RTN()
    solver = AdaDim(under, dims, reference=reference, choose=choose, official=official)
    return Recipe("adadim", weights(bits, symmetric=False), solver, inputs(bits), propagate=propagate)
