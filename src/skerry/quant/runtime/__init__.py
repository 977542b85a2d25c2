"""Kernels that multiply stored weights, and which one to take."""

from skerry.core.lazy import lazy_package

__getattr__, __dir__, __all__ = lazy_package(
    __name__,
    {
        "CostTable": "skerry.quant.runtime.choose",
        "QuantizedKVCache": "skerry.quant.runtime.kv_cache",
        "choose": "skerry.quant.runtime.choose",
        "measure_costs": "skerry.quant.runtime.choose",
        "prepare_kernel": "skerry.quant.runtime.choose",
    },
)
