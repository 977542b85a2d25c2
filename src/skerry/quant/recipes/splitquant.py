"""SplitQuant (arXiv 2501.12428): three value ranges of a weight, each on its own grid; no data needed."""

from skerry.core.errors import ParameterError
from skerry.quant.formats.split import SplitGrid
from skerry.quant.recipe import Bits, Recipe
from skerry.quant.recipes.common import inputs

__all__ = ["build"]


def build(bits: Bits, *, quantizer: str = "tensor", clusters: int = 3) -> Recipe:
    """Return the recipe; ``quantizer`` is "tensor" (one scale a part) or "row". 1.6 bits more are stored."""
    if quantizer not in ("tensor", "row"):
        raise ParameterError(f"quantizer must be 'tensor' or 'row', got {quantizer!r}")
    if bits.weight > 8:
        raise ParameterError(f"splitquant rounds weights to 2 to 8 bits, got {bits}")
    group_size = 0 if quantizer == "tensor" else -1
    return Recipe("splitquant", SplitGrid(bits.weight, group_size, clusters), activation=inputs(bits))
