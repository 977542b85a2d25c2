"""LRQ-DiT (arXiv 2508.03485): rotations as strong as a layer needs, weights on twin logarithmic levels."""

from skerry.core.errors import ParameterError
from skerry.quant.activation import TokenDynamic
from skerry.quant.formats import TwinLog
from skerry.quant.recipe import Bits, Recipe
from skerry.quant.transforms.adaptive_rotation import AdaptiveRotation

__all__ = ["build"]


def build(bits: Bits, *, threshold: float = 1.0, block: int = 128, levels: str = "half") -> Recipe:
    """Return the recipe; layers whose inputs have a root mean square of ``threshold`` get the double rotation."""
    if bits.weight > 8:
        raise ParameterError(f"lrq-dit stores weights of 2 to 8 bits, got {bits}")
    activation = None if bits.activation == 16 else TokenDynamic(bits.activation, symmetric=False)
    return Recipe(
        "lrq-dit",
        TwinLog(bits.weight, levels),
        activation=activation,
        transforms=(AdaptiveRotation(threshold=threshold, block=block),),
        skip=("lm_head", "*.lm_head", "classifier", "*router*", "*embed*", "*adaln*", "*modulation*", "*final*"),
    )
