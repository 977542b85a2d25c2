"""The 0/1 label that a person names: read strictly, and what the scores are worth against it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from skerry.core import metrics
from skerry.core.errors import DataError

if TYPE_CHECKING:
    import polars as pl

__all__ = ["label_metrics", "read_labels"]


def read_labels(column: pl.Series, name: str, start: int) -> NDArray[np.int64]:
    """Read a 0/1 label: numbers, booleans or their text; anything but 0/1/true/false names its row."""
    import polars as pl

    known = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "true": 1, "false": 0}
    mapped = column.cast(pl.String, strict=False).str.to_lowercase().replace_strict(known, default=None)
    bad = mapped.is_null()
    if bad.any():
        i = int(bad.arg_max())
        raise DataError(
            f"label column {name!r}, row {start + i}: {column[i]!r} is neither 0/1 nor true/false; "
            "recode it so that 1 marks the outliers"
        )
    return mapped.to_numpy().astype(np.int64)


def label_metrics(y: NDArray, s: NDArray, flagged: NDArray) -> dict[str, float]:
    """Return how well scores ``s`` and decisions agree with ``y``; all of shape (n,), both classes present."""
    n = int(flagged.sum())
    return {
        "auroc": metrics.roc_auc(y, s),
        "average_precision": metrics.average_precision(y, s),
        "precision_at_flagged": float(y[flagged].mean()) if n else 0.0,
        "recall_at_flagged": float(y[flagged].sum() / y.sum()),
        "flagged": float(n),
        "positives": float(y.sum()),
    }
