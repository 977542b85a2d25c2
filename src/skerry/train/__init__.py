"""Train so that outliers never form: modules in :mod:`skerry.train.nn`, optimizers in :mod:`skerry.train.optim`.

:mod:`skerry.train.lab` trains small transformers from these parts, and :mod:`skerry.train.metrics` measures any.
"""

from skerry.core.lazy import lazy_package
from skerry.train.nn import NAMES

_LAB = {
    "Backcopy": "skerry.train.backcopy",
    "BackcopyTask": "skerry.train.lab_data",
    "ByteWindows": "skerry.train.lab_data",
    "LabConfig": "skerry.train.lab",
    "OutlierProbe": "skerry.train.metrics",
    "SmallGPT": "skerry.train.lab_model",
    "SmallViT": "skerry.train.lab_model",
    "mean_excess_kurtosis": "skerry.train.metrics",
    "measure": "skerry.train.metrics",
    "train_lab": "skerry.train.lab",
}
__getattr__, __dir__, __all__ = lazy_package(__name__, NAMES | _LAB | dict.fromkeys(("nn", "optim"), ""))
