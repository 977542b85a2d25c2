"""OutlierTune (arXiv 2406.18832): symmetrized channels, pre-executed dequantization, integer-valued activations.

Layers fed by a norm read integers without a scale; the others read inputs rounded per token.
"""

from skerry.core.errors import ParameterError
from skerry.quant.activation import RoundClamp, TokenDynamic, TokenRatio
from skerry.quant.recipe import Bits, Recipe
from skerry.quant.recipes.common import weights
from skerry.quant.solvers import GPTQ, RoundedInputs
from skerry.quant.transforms.symmetrize import PreDequant, Symmetrize

__all__ = ["build"]


def build(
    bits: Bits,
    *,
    symmetrize: bool = True,
    range: str = "absmax",
    rms: str = "bias",
    weight_solver: str = "rtn",
    token_ratio: bool = False,
) -> Recipe:
    """Return the recipe; ``range`` is "absmax" or "mse", ``rms`` "bias" or "drop".

    ``weight_solver="gptq"`` solves the weights on the integers that they will meet, ``token_ratio`` searches how far
    the ranges of tokens that no norm feeds are shrunk (both from the newer release).
    """
    if bits.activation == 16:
        raise ParameterError("outliertune quantizes activations: give activation bits of 2 to 8, for example w8a8")
    if weight_solver not in ("rtn", "gptq"):
        raise ParameterError(f"weight_solver must be 'rtn' or 'gptq', got {weight_solver!r}")
    steps = PreDequant(bits=bits.activation, range=range)
    return Recipe(
        "outliertune",
        weights(bits, symmetric=False),
        RoundedInputs(GPTQ()) if weight_solver == "gptq" else None,
        TokenRatio(bits.activation) if token_ratio else TokenDynamic(bits.activation),
        transforms=(Symmetrize(rms=rms), steps) if symmetrize else (steps,),
        overrides=(("@norm", {"activation": RoundClamp(bits.activation)}),),
    )
