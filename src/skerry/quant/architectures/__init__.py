"""Architectures: what the engine must know of a model class, one small file each."""

from skerry.core.lazy import lazy_package

__getattr__, __dir__, __all__ = lazy_package(__name__, {})
