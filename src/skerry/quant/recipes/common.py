"""What most recipes share: the weights' grid and the inputs' quantizer that bit widths stand for."""

from __future__ import annotations

from skerry.quant.activation import TensorStatic, TokenDynamic
from skerry.quant.numerics import AffineGrid
from skerry.quant.recipe import Bits

__all__ = ["inputs", "weights"]


def weights(bits: Bits, *, symmetric: bool = True, group_size: int | None = None) -> AffineGrid | None:
    """Return the grid for weights: groups of 128 for weight-only at 4 bits and below, else one scale a row."""
    if bits.weight == 16:
        return None
    if bits.group_size is not None:
        group_size = bits.group_size
    elif group_size is None:
        group_size = 128 if bits.activation == 16 and bits.weight <= 4 else -1
    # 16-bit scales are what the packed 4-bit product reads; float32 ones would cost it a second product
    scales = "bfloat16" if bits.activation == 16 and bits.weight <= 4 else "float32"
    return AffineGrid(bits.weight, symmetric=symmetric, group_size=group_size, scale_dtype=scales)


def inputs(bits: Bits, *, static: bool = False, symmetric: bool = True) -> TokenDynamic | TensorStatic | None:
    """Return the quantizer for inputs: one scale a token, or one a tensor from calibration (``static``)."""
    if bits.activation == 16:
        return None
    return TensorStatic(bits.activation, symmetric) if static else TokenDynamic(bits.activation, symmetric)
