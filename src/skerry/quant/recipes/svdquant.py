"""SVDQuant (arXiv 2411.05007): smoothing, a low-rank branch, and on both sides groups of 64 at 4 bits, or NVFP4."""

from skerry.core.errors import ParameterError
from skerry.quant.activation import GroupDynamic, TokenDynamic
from skerry.quant.formats.float4 import Float4, Float4Group
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
    LoRA adapters need (:func:`skerry.quant.attach_lora`). "nvfp4" and "mxfp4" are e2m1 floats on both sides, in blocks
    of 16 and 32; their codes have a sign, so inputs are not shifted.
    """
    if bits.form != "int":
        return _floating(bits, rank, n_grid, iterations, gptq, fold)
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


def _floating(bits: Bits, rank: int, n_grid: int, iterations: int, gptq: bool, fold: bool) -> Recipe:
    if gptq:
        raise ParameterError(f"GPTQ rounds to integers: {bits} takes gptq=False")
    solver, smooth = LowRankAbsorb(rank=rank, iterations=iterations), BranchSmooth(rank=rank, n_grid=n_grid, fold=fold)
    return Recipe("svdquant", Float4(bits.form), solver, Float4Group(bits.form), (smooth,))
