"""Outlier Suppression+ (arXiv 2304.09145): :class:`~skerry.quant.transforms.shift_scale.ShiftScale`, nearest rounding.

The paper's settings: static per-tensor inputs; symmetric at 8 bits, asymmetric below. Weights get one scale a row at 8
bits too, where the paper has one a tensor: no runtime asks for the coarser one.
"""

from skerry.core.errors import ParameterError
from skerry.quant.activation import GroupDynamic, TensorStatic, TokenClip, TokenDynamic
from skerry.quant.recipe import Bits, Recipe
from skerry.quant.recipes.common import weights
from skerry.quant.transforms.shift_scale import ShiftScale

__all__ = ["build"]

INPUTS = ("tensor-static", "token-clip", "token", "group")


def build(
    bits: Bits,
    *,
    shift: bool = True,
    static: bool = True,
    act: str | None = None,
    floor: float = 1.0,
    n_grid: int | str = "auto",
    rms: str = "drop",
    group_size: int = 1024,
) -> Recipe:
    """Return the recipe; ``floor`` is the smallest threshold tried (0.1 for Llama in the paper's code).

    ``act`` is how inputs are rounded: "tensor-static" (the default), "token-clip" (the same without the loudest tokens,
    as the paper does for BERT), "token" (for Llama; ``static=False`` says the same) or "group" (for OPT at 4 bits:
    groups of ``group_size`` on both sides). ``rms="bias"`` keeps the shift behind an RMSNorm.
    """
    act = ("tensor-static" if static else "token") if act is None else act
    if act not in INPUTS:
        raise ParameterError(f"act must be one of {', '.join(INPUTS)}, got {act!r}")
    symmetric = bits.activation >= 8
    activation = None
    if bits.activation < 16:
        activation = {
            "tensor-static": TensorStatic(bits.activation, symmetric),
            "token-clip": TokenClip(bits.activation, symmetric),
            "token": TokenDynamic(bits.activation, symmetric),
            "group": GroupDynamic(bits.activation, group_size, symmetric),
        }[act]
    grouped = group_size if act == "group" and bits.group_size is None else None
    return Recipe(
        "os-plus",
        weights(bits, symmetric=bits.weight >= 8, group_size=grouped),
        activation=activation,
        transforms=(ShiftScale(shift=shift, floor=floor, n_grid=n_grid, rms=rms),),
        sequential="group",
    )
