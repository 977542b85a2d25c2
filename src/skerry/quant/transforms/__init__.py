"""Transforms that keep the function and move the outliers."""

from skerry.core.lazy import lazy_package

__getattr__, __dir__, __all__ = lazy_package(__name__, {})
