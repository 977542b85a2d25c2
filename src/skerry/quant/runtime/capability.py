"""What this processor can multiply: in 8 and 4 bits, found by trying, and in 16 bits faster than in 32."""

from __future__ import annotations

from functools import lru_cache

import torch

__all__ = ["int4_products", "int8_products", "product_dtype"]


@lru_cache(maxsize=1)
def int8_products() -> bool:
    """Return whether oneDNN's u8 x s8 product is there and does not saturate.

    Processors without VNNI add pairs of products in 16 bits: 255 * 127 + 255 * 127 is cut to 32767. Those, and
    builds of torch without oneDNN, answer False; the caller then multiplies in bfloat16.
    """
    from skerry.quant.runtime.packing import PackedInt8

    try:
        packed = PackedInt8(torch.full((16, 64), 127, dtype=torch.int8))
        found = packed.product(torch.full((2, 64), 255, dtype=torch.uint8))
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return bool((found == 127 * 127 * 64).all())


@lru_cache(maxsize=1)
def int4_products() -> bool:
    """Return whether torch's int4 weight-only product is there."""
    try:
        codes = torch.zeros(64, 64, dtype=torch.int32)
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        scale = torch.ones(2, 64, 2, dtype=torch.bfloat16)
        found = torch.ops.aten._weight_int4pack_mm_for_cpu(torch.ones(1, 64).bfloat16(), packed, 32, scale)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return bool((found.float() == 64 * -8 + 64).all())


@lru_cache(maxsize=1)
def product_dtype() -> torch.dtype:
    """Return what large products are quickest in: bfloat16 where oneDNN has them (AVX-512), else float32.

    Without them torch multiplies bfloat16 in a plain loop, six times slower than float32 on AVX2.
    """
    try:
        found = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    except (AttributeError, RuntimeError):
        found = False
    return torch.bfloat16 if found else torch.float32
