"""What this processor, or GPU, can multiply: in 8 and 4 bits, found by trying, and in 16 bits faster than in 32."""

from __future__ import annotations

from functools import lru_cache

import torch

__all__ = ["int4_products", "int8_products", "product_dtype"]


@lru_cache
def int8_products(device: str = "cpu") -> bool:
    """Return whether exact 8-bit products are there, for a type of device.

    On processors without VNNI oneDNN's product saturates: it adds pairs of products in 16 bits, where 255 * 127 +
    255 * 127 is cut to 32767. Those, and builds of torch without such a product, answer False; the caller then
    multiplies in another way.
    """
    from skerry.quant.runtime.packing import packed_int8

    try:
        packed = packed_int8(torch.full((16, 64), 127, dtype=torch.int8, device=device))
        found = packed.product(torch.full((2, 64), 255, dtype=torch.uint8, device=device))
        return bool((found == 127 * 127 * 64).all())
    except (RuntimeError, AttributeError, NotImplementedError):
        return False


@lru_cache
def int4_products(device: str = "cpu") -> bool:
    """Return whether torch's int4 weight-only product is there for a type of device, and computes what we think."""
    from skerry.quant.runtime.packing import PackedInt4

    codes = (torch.arange(64 * 64).reshape(64, 64) * 7 // 3 % 16 - 8).to(torch.int8)
    try:
        packed = PackedInt4(codes.to(device))
        scale = torch.ones(2, 64, 2, dtype=torch.bfloat16, device=device)
        found = packed.product(torch.eye(64, dtype=torch.bfloat16, device=device), 32, scale)
        return bool((found.float().cpu() == codes.T + 1).all())
    except (RuntimeError, AttributeError, NotImplementedError):
        return False


@lru_cache
def product_dtype(device: str = "cpu") -> torch.dtype:
    """Return what large products are quickest in: bfloat16 on GPUs and where oneDNN has them (AVX-512), else float32.

    Without them torch multiplies bfloat16 in a plain loop, six times slower than float32 on AVX2.
    """
    if device != "cpu":
        return torch.bfloat16
    try:
        found = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    except (AttributeError, RuntimeError):
        found = False
    return torch.bfloat16 if found else torch.float32
