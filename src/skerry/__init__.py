"""Skerry: outliers, end to end.

Public names are imported on first use, so that ``import skerry`` stays cheap and never loads torch, numba or
polars before they are needed.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PACKAGES = ("core", "data", "detect", "rank", "robust", "report", "bench")
_NAMES = {
    "DataError": "core.errors",
    "MissingExtra": "core.errors",
    "ModelError": "core.errors",
    "ParameterError": "core.errors",
    "SkerryError": "core.errors",
    "Conformal": "core.threshold",
    "Contamination": "core.threshold",
    "ExtremeValue": "core.threshold",
    "Findings": "core.findings",
    "load": "core.persistence",
    "save": "core.persistence",
}

__all__ = sorted([*_NAMES, *_PACKAGES, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"skerry.{name}")
    if name in _NAMES:
        value = getattr(importlib.import_module(f"skerry.{_NAMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'skerry' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
