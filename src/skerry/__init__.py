"""Skerry: outliers, end to end.

Public names are imported on first use, so that ``import skerry`` stays cheap and never loads torch, numba or
polars before they are needed.
"""

from skerry.core.lazy import lazy_package

__version__ = "0.1.0"

_PACKAGES = ("core", "data", "detect", "rank", "robust", "quant", "train", "report", "bench")
_NAMES = {
    "Conformal": "skerry.core.threshold",
    "Contamination": "skerry.core.threshold",
    "DataError": "skerry.core.errors",
    "Detector": "skerry.core.detector",
    "ExtremeValue": "skerry.core.threshold",
    "Findings": "skerry.core.findings",
    "MissingExtra": "skerry.core.errors",
    "ModelError": "skerry.core.errors",
    "ParameterError": "skerry.core.errors",
    "SkerryError": "skerry.core.errors",
    "find_events": "skerry.detect.series.pipeline",
    "find_outliers": "skerry.detect.tabular.pipeline",
    "load": "skerry.core.persistence",
    "save": "skerry.core.persistence",
}

__getattr__, __dir__, __all__ = lazy_package(__name__, _NAMES | dict.fromkeys(_PACKAGES, ""))
