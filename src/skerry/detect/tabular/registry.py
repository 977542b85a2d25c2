"""Names of the detectors as the command knows them."""

from __future__ import annotations

import importlib
from typing import Any

from skerry.core.detector import Detector
from skerry.core.errors import ParameterError, nearest
from skerry.detect.tabular import NAMES

__all__ = ["DETECTORS", "make_detector"]

DETECTORS: dict[str, str] = {
    "ensemble": "Ensemble",
    "isolation-forest": "IsolationForest",
    "knn": "KNN",
    "lof": "LOF",
    "hbos": "HBOS",
    "ecod": "ECOD",
    "copod": "COPOD",
    "pca": "PCA",
    "robust-covariance": "RobustCovariance",
    "inne": "INNE",
    "cblof": "CBLOF",
    "loda": "LODA",
    "reference-neighbours": "ReferenceNeighbours",
    "mean-shift-distance": "MeanShiftDistance",
    "autoencoder": "AutoEncoder",
    "autood": "AutoOD",
}


def make_detector(name: str | Detector = "ensemble", **parameters: Any) -> Detector:
    """Return a detector by its command-line name; parameters it does not have are left out.

    Parameters
    ----------
    name : str or Detector
        ``"isolation-forest"``, ``"knn"`` ...; class names work too. A detector is returned as it is.
    **parameters
        For example ``threshold`` and ``random_state``.

    Raises
    ------
    ParameterError
        For an unknown name; the message lists the nearest ones.

    Examples
    --------
    >>> make_detector("knn", threshold="contamination:0.01", random_state=0)
    KNN(threshold='contamination:0.01')
    """
    if isinstance(name, Detector):
        return name
    key = name.strip().lower().replace("_", "-")
    class_name = DETECTORS.get(key) or next((c for c in DETECTORS.values() if c.lower() == key), None)
    if class_name is None:
        raise ParameterError(f"unknown detector {name!r}: {nearest(key, DETECTORS)}")
    cls = getattr(importlib.import_module(NAMES[class_name]), class_name)
    known = cls._get_param_names()
    return cls(**{k: v for k, v in parameters.items() if k in known})
