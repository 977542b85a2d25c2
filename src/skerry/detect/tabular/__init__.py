"""Detectors on tables: ``X`` of shape (n, d), one score per row, higher = more anomalous."""

from skerry.core.lazy import lazy_package

_HOME = "skerry.detect.tabular."
NAMES = {
    "AutoEncoder": _HOME + "autoencoder",
    "AutoOD": _HOME + "autood",
    "CBLOF": _HOME + "cblof",
    "COPOD": _HOME + "copod",
    "ECOD": _HOME + "ecod",
    "Ensemble": _HOME + "ensemble",
    "HBOS": _HOME + "hbos",
    "INNE": _HOME + "inne",
    "IsolationForest": _HOME + "isolation_forest",
    "KNN": _HOME + "knn",
    "LODA": _HOME + "loda",
    "LOF": _HOME + "lof",
    "MeanShift": _HOME + "mean_shift",
    "MeanShiftDistance": _HOME + "mean_shift_distance",
    "PCA": _HOME + "pca",
    "RobustCovariance": _HOME + "robust_covariance",
    "ReferenceNeighbours": _HOME + "reference_neighbours",
    "TableModel": _HOME + "pipeline",
    "find_outliers": _HOME + "pipeline",
    "make_detector": _HOME + "registry",
}

__getattr__, __dir__, __all__ = lazy_package(__name__, NAMES)
