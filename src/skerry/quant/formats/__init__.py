"""Storage formats of weights beyond integer grids, and inputs in the same formats."""

from skerry.core.lazy import lazy_package

__getattr__, __dir__, __all__ = lazy_package(
    __name__,
    {
        "Float4": "skerry.quant.formats.float4",
        "Float8": "skerry.quant.formats.float8",
        "Float8Token": "skerry.quant.formats.float8",
        "OutlierVictim": "skerry.quant.formats.outlier_victim",
        "VictimStatic": "skerry.quant.formats.outlier_victim",
    },
)
