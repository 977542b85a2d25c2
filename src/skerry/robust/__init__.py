"""Resist outliers in estimation."""

from skerry.core.lazy import lazy_package

__getattr__, __dir__, __all__ = lazy_package(
    __name__,
    {
        "QGaussianMixedModel": "skerry.robust.mixed_effects",
        "SparseLogistic": "skerry.robust.sparse",
        "SparseRegression": "skerry.robust.sparse",
        "proximal_cg": "skerry.robust.conjugate_gradient",
    },
)
