"""Solvers: from a float weight and statistics of its inputs to the stored weight."""

from skerry.core.lazy import lazy_package

NAMES = {
    "SpQR": "skerry.quant.solvers.spqr",
    "TwoLevel": "skerry.quant.solvers.two_level",
    "AdaDim": "skerry.quant.solvers.adadim",
    "Tiled": "skerry.quant.solvers.tiles",
    "AWQ": "skerry.quant.solvers.awq",
    "ColumnScaled": "skerry.quant.solvers.column_scaled",
    "QuantEase": "skerry.quant.solvers.quantease",
    "GPTQ": "skerry.quant.solvers.gptq",
    "solve_convolution": "skerry.quant.solvers.convolution",
    "RTN": "skerry.quant.solvers.rtn",
    "RoundedInputs": "skerry.quant.solvers.rounded_inputs",
    "TwinLogSearch": "skerry.quant.solvers.twin_log_search",
    "StaticColumns": "skerry.quant.solvers.static_columns",
}
__getattr__, __dir__, __all__ = lazy_package(__name__, NAMES)
