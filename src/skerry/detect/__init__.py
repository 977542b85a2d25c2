"""Find what does not belong. Tables live in :mod:`skerry.detect.tabular`; its names are public here too."""

from skerry.core.lazy import lazy_package
from skerry.detect.tabular import NAMES

__getattr__, __dir__, __all__ = lazy_package(__name__, NAMES | {"tabular": ""})
