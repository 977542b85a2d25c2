"""AdaDim (arXiv 2309.15531): groups along rows or along columns, layer by layer, by the output they give."""

from skerry.core.errors import ParameterError
from skerry.quant.recipe import Bits, Recipe
from skerry.quant.recipes.common import inputs, weights
from skerry.quant.solvers import GPTQ, RTN, AdaDim

__all__ = ["build"]


def build(bits: Bits, *, base: str = "gptq") -> Recipe:
    """Return the recipe; ``base`` is the solver under it, "gptq" or "rtn"."""
    if base not in ("gptq", "rtn"):
        raise ParameterError(f"base must be 'gptq' or 'rtn', got {base!r}")
    solver = AdaDim(base=GPTQ() if base == "gptq" else RTN())
    return Recipe("adadim", weights(bits, symmetric=False), solver, inputs(bits), propagate="float")
