"""DuQuant (arXiv 2406.01721): smoothing, a greedy rotation, a zigzag permutation, a second rotation; no training.

The double rotation is that of :class:`~skerry.quant.transforms.adaptive_rotation.AdaptiveRotation`, for every layer.
"""

from __future__ import annotations

from skerry.core.errors import ParameterError
from skerry.quant.activation import TokenDynamic
from skerry.quant.recipe import Bits, Recipe
from skerry.quant.recipes.common import weights
from skerry.quant.solvers.clipped import ClippedRTN
from skerry.quant.transforms.adaptive_rotation import AdaptiveRotation
from skerry.quant.transforms.smooth import Smooth

__all__ = ["build"]


def build(
    bits: Bits,
    *,
    alpha: float = 0.5,
    block: int = 128,
    max_steps: int = 256,
    weight_clip: float | None = None,
    activation_clip: float | None = None,
    random_state: int = 0,
) -> Recipe:
    """Return the recipe.

    Parameters
    ----------
    bits : Bits
    alpha : float, default 0.5
        Share of the range that smoothing moves into the weights.
    block, max_steps, random_state
        Of the rotations.
    weight_clip, activation_clip : float, optional
        Shares of the range that are kept: by default the published 0.8 and 0.9 below 8 bits, and 1 at 8 bits, where
        what is cut off costs more than finer steps give.

    Raises
    ------
    ParameterError
        Where weights or inputs stay in floating point.
    """
    if bits.weight == 16 or bits.activation == 16:
        raise ParameterError(f"duquant rounds weights and inputs, got {bits}")
    weight_clip = (0.8 if bits.weight < 8 else 1.0) if weight_clip is None else weight_clip
    activation_clip = (0.9 if bits.activation < 8 else 1.0) if activation_clip is None else activation_clip
    return Recipe(
        "duquant",
        weights(bits, symmetric=False),
        ClippedRTN(weight_clip),
        TokenDynamic(bits.activation, symmetric=False, ratio=activation_clip),
        (
            Smooth(alpha=alpha),
            AdaptiveRotation(threshold=0.0, block=block, max_steps=max_steps, random_state=random_state),
        ),
    )
