"""LLM.int8() (arXiv 2208.07339): 8-bit products, and the few live outlier columns beside them in floating point."""

from skerry.core.errors import ParameterError
from skerry.quant.formats import MixedInt8, OutlierSplit
from skerry.quant.recipe import Bits, Recipe

__all__ = ["build"]


def build(bits: Bits, *, threshold: float = 6.0) -> Recipe:
    """Return the recipe; inputs of ``threshold`` and above leave the 8-bit product, column by column."""
    if (bits.weight, bits.activation) != (8, 8):
        raise ParameterError(f"llm-int8 is w8a8, got {bits}")
    return Recipe("llm-int8", MixedInt8(), activation=OutlierSplit(threshold=threshold))
