"""Train so that outliers never form: norms, attention and embeddings live in :mod:`skerry.train.nn`."""

from skerry.core.lazy import lazy_package
from skerry.train.nn import NAMES

__getattr__, __dir__, __all__ = lazy_package(__name__, NAMES | dict.fromkeys(("nn", "optim"), ""))
