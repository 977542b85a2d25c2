"""Storage formats of weights beyond integer grids, and inputs in the same formats."""

from skerry.core.lazy import lazy_package

__getattr__, __dir__, __all__ = lazy_package(
    __name__,
    {
        "Float4": "skerry.quant.formats.float4",
        "Float4Group": "skerry.quant.formats.float4",
        "Float8": "skerry.quant.formats.float8",
        "Float8Token": "skerry.quant.formats.float8",
        "MixedInt8": "skerry.quant.formats.mixed_decomposition",
        "MixedInt8Linear": "skerry.quant.formats.mixed_linear",
        "OutlierSplit": "skerry.quant.formats.mixed_decomposition",
        "OutlierVictim": "skerry.quant.formats.outlier_victim",
        "TwinLog": "skerry.quant.formats.twin_log",
        "VictimStatic": "skerry.quant.formats.outlier_victim",
    },
)
