"""OliVe (arXiv 2304.07493): outlier-victim pairs for weights and static inputs, at exactly 4 (or 8) bits."""

from skerry.core.errors import ParameterError
from skerry.quant.formats import OutlierVictim, VictimStatic
from skerry.quant.recipe import Bits, Recipe

__all__ = ["build"]


def build(bits: Bits, *, types: tuple[str, ...] = ("int", "flint"), tie: str = "larger") -> Recipe:
    """Return the recipe; ``types`` are the normal codes that compete, ``tie`` is what two outliers in a pair do."""
    if bits.weight not in (4, 8) or bits.activation not in (4, 8, 16):
        raise ParameterError(f"olive stores 4 or 8 bits (or activations in floating point, a16), got {bits}")
    kinds = types if bits.weight == 4 else ("int",)
    activation = None
    if bits.activation < 16:
        activation = VictimStatic(bits.activation, types if bits.activation == 4 else ("int",), tie)
    return Recipe("olive", OutlierVictim(bits.weight, kinds, tie), activation=activation)
