"""LRQ-DiT (arXiv 2508.03485): rotations as strong as a layer needs, weights on twin logarithmic levels."""

from skerry.core.errors import ParameterError
from skerry.quant.activation import TokenDynamic
from skerry.quant.formats import TwinLog
from skerry.quant.recipe import Bits, Recipe
from skerry.quant.solvers import TwinLogSearch
from skerry.quant.transforms.adaptive_rotation import AdaptiveRotation, QuantileRotation

__all__ = ["build"]


def build(
    bits: Bits,
    *,
    threshold: float | str = 1.0,
    block: int = 128,
    levels: str = "half",
    max_steps: int = 256,
    weighted: bool = False,
) -> Recipe:
    """Return the recipe; layers whose inputs have a root mean square of ``threshold`` get the double rotation.

    A threshold of ``"quantile:0.95"`` gives it to the twentieth of the layers with the largest root mean squares. Bits
    with a group size ("w3a8g64") give every group of weights ranges of its own. ``weighted`` searches these ranges with
    errors weighed by the activity of their inputs.
    """
    if bits.weight > 8:
        raise ParameterError(f"lrq-dit stores weights of 2 to 8 bits, got {bits}")
    activation = None if bits.activation == 16 else TokenDynamic(bits.activation, symmetric=False)
    return Recipe(
        "lrq-dit",
        TwinLog(bits.weight, levels, bits.group_size or -1),
        TwinLogSearch() if weighted else None,
        activation=activation,
        transforms=(_rotation(threshold, block, max_steps),),
        skip=("lm_head", "*.lm_head", "classifier", "*router*", "*embed*", "*adaln*", "*modulation*", "*final*"),
    )


def _rotation(threshold: float | str, block: int, max_steps: int) -> AdaptiveRotation | QuantileRotation:
    try:
        if isinstance(threshold, str) and threshold.startswith("quantile:"):
            return QuantileRotation(float(threshold.removeprefix("quantile:")), block, max_steps)
        return AdaptiveRotation(float(threshold), block, max_steps)
    except ValueError as error:
        if isinstance(error, ParameterError):
            raise
        raise ParameterError(f"threshold must be a number or like 'quantile:0.95', got {threshold!r}") from None
