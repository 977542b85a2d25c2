"""Names of the series detectors as the command knows them."""

from __future__ import annotations

import importlib
from typing import Any

from skerry.core.errors import ParameterError, nearest
from skerry.core.series_detector import SeriesDetector
from skerry.detect.series import NAMES

__all__ = ["MERGE_GAP", "SERIES_DETECTORS", "make_series_detector"]

# the steps that the detectors here look back over by default: flags nearer than that may be echoes of one anomaly
MERGE_GAP = 32

SERIES_DETECTORS: dict[str, str] = {
    "channel-components": "ChannelComponents",
    "ensemble": "Ensemble",
    "forecast": "Forecast",
    "half-space-trees": "HalfSpaceTrees",
    "imdiffusion": "ImDiffusion",
    "matrix-profile": "MatrixProfile",
    "seasonal-residual": "SeasonalResidual",
    "spectral-residual": "SpectralResidual",
    "themis": "Themis",
    "windowed": "Windowed",
}


def make_series_detector(name: str | SeriesDetector = "ensemble", **parameters: Any) -> SeriesDetector:
    """Return a series detector by its command-line name; parameters it does not have are left out.

    ``"windowed:NAME"`` wraps the detector for tables of that name; ``"themis:PATH"`` takes an encoder of one's own, a
    Chronos folder or a file of :mod:`skerry.deep.pretrain_series`.

    Raises
    ------
    ParameterError
        For an unknown name; the message lists the nearest ones.

    Examples
    --------
    >>> make_series_detector("windowed:hbos", threshold="contamination:0.01")
    Windowed(detector=HBOS(), threshold='contamination:0.01')
    """
    if isinstance(name, SeriesDetector):
        return name
    key, _, inner = name.strip().partition(":")
    key = key.lower().replace("_", "-")
    class_name = SERIES_DETECTORS.get(key) or next((c for c in SERIES_DETECTORS.values() if c.lower() == key), None)
    if class_name is None or (inner and key not in ("windowed", "themis")):
        raise ParameterError(f"unknown series detector {name!r}: {nearest(key, SERIES_DETECTORS)}")
    if inner and key == "themis":
        parameters["encoder"] = inner
    elif inner:
        from skerry.detect.tabular.registry import make_detector

        parameters["detector"] = make_detector(inner)
    cls = getattr(importlib.import_module(NAMES[class_name]), class_name)
    known = cls._get_param_names()
    return cls(**{k: v for k, v in parameters.items() if k in known})
