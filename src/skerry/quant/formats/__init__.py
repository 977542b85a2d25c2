"""Formats: how a weight lies in memory and on disk."""

from skerry.core.lazy import lazy_package

__getattr__, __dir__, __all__ = lazy_package(__name__, {})
