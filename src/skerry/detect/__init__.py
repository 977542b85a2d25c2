"""Find what does not belong: rows of tables and steps of series.

Tables live in :mod:`skerry.detect.tabular`, series in :mod:`skerry.detect.series`; the names of both are public here.
"""

from skerry.core.lazy import lazy_package
from skerry.detect import series, tabular

# "Ensemble" alone is the one for tables
__getattr__, __dir__, __all__ = lazy_package(__name__, series.NAMES | tabular.NAMES | {"tabular": "", "series": ""})
