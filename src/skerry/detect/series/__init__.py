"""Find the moments that do not belong: detectors for series of shape (T, c)."""

from skerry.core.lazy import lazy_package

NAMES = {
    "MatrixProfile": "skerry.detect.series.matrix_profile",
    "Windowed": "skerry.detect.series.windowed",
}
__getattr__, __dir__, __all__ = lazy_package(__name__, NAMES)
