"""Where the outliers of a network are, when they come and go, and what they do (An et al. 2025, arXiv 2502.06415)."""

from skerry.core.lazy import lazy_package

__getattr__, __dir__, __all__ = lazy_package(
    __name__,
    {
        "InputCensus": "skerry.quant.diagnose.inputs",
        "OutlierReport": "skerry.quant.diagnose.report",
        "EmergentReport": "skerry.quant.diagnose.emergent",
        "emergent_features": "skerry.quant.diagnose.emergent",
        "input_census": "skerry.quant.diagnose.inputs",
        "intervene": "skerry.quant.diagnose.intervention",
        "outliers": "skerry.quant.diagnose.report",
        "sink_decomposition": "skerry.quant.diagnose.attention",
        "weight_outliers": "skerry.quant.diagnose.weights",
    },
)
