"""What most recipes share: the weights' grid and the inputs' quantizer that bit widths stand for."""

from __future__ import annotations

from skerry.core.errors import ParameterError
from skerry.quant.activation import TensorStatic, TokenDynamic
from skerry.quant.formats.float4 import Float4
from skerry.quant.formats.float8 import Float8, Float8Token
from skerry.quant.numerics import AffineGrid
from skerry.quant.recipe import Bits

__all__ = ["inputs", "weights"]


def weights(
    bits: Bits, *, symmetric: bool = True, group_size: int | None = None
) -> AffineGrid | Float8 | Float4 | None:
    """Return the format for weights: groups of 128 for weight-only at 4 bits and below, else one scale a row."""
    if bits.weight == 16:
        return None
    if bits.form != "int":
        return Float8() if bits.form == "fp8" else Float4(bits.form)
    if bits.group_size is not None:
        group_size = bits.group_size
    elif group_size is None:
        group_size = 128 if bits.activation == 16 and bits.weight <= 4 else -1
    # 16-bit scales are what the packed 4-bit product reads; float32 ones would cost it a second product
    scales = "bfloat16" if bits.activation == 16 and bits.weight <= 4 else "float32"
    return AffineGrid(bits.weight, symmetric=symmetric, group_size=group_size, scale_dtype=scales)


def inputs(
    bits: Bits, *, static: bool = False, symmetric: bool = True
) -> TokenDynamic | TensorStatic | Float8Token | None:
    """Return the quantizer for inputs: one scale a token, or one a tensor from calibration (``static``).

    Raises
    ------
    ParameterError
        For static FP8.
    """
    if bits.activation == 16:
        return None
    if bits.form == "fp8":
        if static:
            raise ParameterError("fp8 inputs get one scale a token; static=True is for integers")
        return Float8Token()
    return TensorStatic(bits.activation, symmetric) if static else TokenDynamic(bits.activation, symmetric)
