"""SVDQuant (arXiv 2411.05007): smoothing, a low-rank branch, and groups of 64 on both sides at 4 bits."""

from skerry.quant.activation import GroupDynamic, TokenDynamic
from skerry.quant.numerics import AffineGrid
from skerry.quant.recipe import Bits, Recipe
from skerry.quant.recipes.common import weights
from skerry.quant.transforms.low_rank import BranchSmooth, LiftedInput, LowRankAbsorb

__all__ = ["build"]


def build(
    bits: Bits,
    *,
    rank: int = 32,
    n_grid: int = 20,
    iterations: int = 100,
    shift_gelu: bool = True,
    gptq: bool = False,
    fold: bool = True,
) -> Recipe:
    """Return the recipe; 8-bit activations are rounded per token, narrower ones per token and group.

    ``iterations=1`` is the plain decomposition; ``fold=False`` divides at run time and not in the norms before, which
    LoRA adapters need (:func:`skerry.quant.attach_lora`).
    """
    residual = None
    if gptq:
        from skerry.quant.solvers import GPTQ

        residual = GPTQ()
    size = bits.group_size or 64
    weight = AffineGrid(bits.weight, group_size=size, scale_dtype="bfloat16") if bits.weight < 8 else weights(bits)
    activation: GroupDynamic | TokenDynamic | None = None
    if bits.activation < 8:
        activation = GroupDynamic(bits.activation, size, unsigned="auto" if shift_gelu else False)
    elif bits.activation < 16:
        activation = TokenDynamic(bits.activation)
    lift = (LiftedInput(),) if shift_gelu and bits.activation < 8 else ()
    return Recipe(
        "svdquant",
        weight,
        LowRankAbsorb(rank=rank, iterations=iterations, residual=residual),
        activation,
        (*lift, BranchSmooth(rank=rank, n_grid=n_grid, fold=fold)),
    )
