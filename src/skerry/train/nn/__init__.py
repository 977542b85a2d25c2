"""Modules that keep a transformer free of outliers: plain ``torch.nn.Module``s that drop into anyone's code.

Norms take ``(..., d)`` and return the same shape; attention takes ``(B, T, d)``. They need the extra ``deep``; the
conversion of ``transformers`` models needs that package too.
"""

from skerry.core.lazy import lazy_package

_HOME = "skerry.train.nn."
NAMES = {
    "ClippedSoftmax": _HOME + "softmax",
    "GatedAttention": _HOME + "attention",
    "HeadGate": _HOME + "gates",
    "clipped_softmax": _HOME + "softmax",
}

__getattr__, __dir__, __all__ = lazy_package(__name__, NAMES)
