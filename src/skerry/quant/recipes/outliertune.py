"""OutlierTune (arXiv 2406.18832): symmetrized channels, pre-executed dequantization, integer-valued activations.

Layers fed by a norm read integers without a scale; the others read inputs rounded per token.
"""

from skerry.core.errors import ParameterError
from skerry.quant.activation import RoundClamp, TokenDynamic
from skerry.quant.recipe import Bits, Recipe
from skerry.quant.recipes.common import weights
from skerry.quant.transforms.symmetrize import PreDequant, Symmetrize

__all__ = ["build"]


def build(bits: Bits, *, symmetrize: bool = True, range: str = "absmax", rms: str = "bias") -> Recipe:
    """Return the recipe; ``range`` is "absmax" or "mse", ``rms`` "bias" or "drop"."""
    if bits.activation == 16:
        raise ParameterError("outliertune quantizes activations: give activation bits of 2 to 8, for example w8a8")
    steps = PreDequant(bits=bits.activation, range=range)
    return Recipe(
        "outliertune",
        weights(bits, symmetric=False),
        activation=TokenDynamic(bits.activation),
        transforms=(Symmetrize(rms=rms), steps) if symmetrize else (steps,),
        overrides=(("@norm", {"activation": RoundClamp(bits.activation)}),),
    )
