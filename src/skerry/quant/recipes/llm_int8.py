"""LLM.int8() (arXiv 2208.07339): 8-bit products, and the few outlier columns beside them in floating point."""

from skerry.core.errors import ParameterError
from skerry.quant.formats import MixedInt8, OutlierSplit
from skerry.quant.recipe import Bits, Recipe
from skerry.quant.solvers import StaticColumns

__all__ = ["build"]


def build(
    bits: Bits,
    *,
    threshold: float = 6.0,
    mode: str = "dynamic",
    symmetric: bool = True,
    scope: str = "columns",
) -> Recipe:
    """Return the recipe; inputs of ``threshold`` and above leave the 8-bit product, column by column.

    ``mode="static"`` names the columns on calibration data and keeps their weights in bfloat16; ``symmetric=False`` is
    the paper's zero-point variant; ``scope="entries"`` sets a token's scale as the released library does.
    """
    if (bits.weight, bits.activation) != (8, 8):
        raise ParameterError(f"llm-int8 is w8a8, got {bits}")
    split = OutlierSplit(threshold=threshold, symmetric=symmetric, scope=scope, mode=mode)
    return Recipe("llm-int8", MixedInt8(), StaticColumns(threshold) if mode == "static" else None, split)
