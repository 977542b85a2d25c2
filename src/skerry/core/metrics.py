"""Measures of a ranking by anomaly score: one definition each, used everywhere.

``y`` is 1 for an anomaly and 0 for a normal item; a higher score means more anomalous. Ties are treated as one
step of the ranking, so no measure depends on the order of the rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skerry.core.affiliation import affiliation
from skerry.core.errors import DataError
from skerry.core.series_metrics import (
    average_detection_delay,
    nab_score,
    point_adjusted_f1,
    range_f1,
    range_precision,
    range_recall,
    ucr_hit,
)
from skerry.core.vus import range_auc_pr, range_auc_roc, vus_pr, vus_roc

__all__ = ["average_precision", "best_f1", "fpr_at_tpr", "precision_at_k", "roc_auc"]
__all__ += ["affiliation", "average_detection_delay", "nab_score", "point_adjusted_f1", "range_auc_pr", "range_auc_roc"]
__all__ += ["range_f1", "range_precision", "range_recall", "ucr_hit", "vus_pr", "vus_roc"]


def _check(y: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    label, s = np.asarray(y).ravel(), np.asarray(scores, dtype=np.float64).ravel()
    if label.shape != s.shape:
        raise DataError(f"labels and scores differ in length: {label.size} and {s.size}")
    if not np.isin(label, (0, 1)).all():
        raise DataError("labels must be 0 or 1")
    if np.isnan(s).any():
        raise DataError("scores hold NaN")
    label = label.astype(np.float64)
    if label.size == 0 or label.min() == label.max():
        raise DataError("the label holds only one class: a measure needs both 0 and 1")
    return label, s


def _steps(y: NDArray[np.float64], s: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return true and false positives when every score >= each distinct value is flagged, from the highest."""
    order = np.argsort(-s, kind="stable")
    ranked = s[order]
    ends = np.r_[np.flatnonzero(ranked[1:] != ranked[:-1]), s.size - 1]
    true = np.cumsum(y[order])[ends]
    return true, 1.0 + ends - true


def roc_auc(y: ArrayLike, scores: ArrayLike) -> float:
    """Return the area under the ROC curve; a tie counts one half.

    Parameters
    ----------
    y : array of shape (n,), 0 or 1
    scores : array of shape (n,)

    Raises
    ------
    DataError
        For one class only, NaN, or lengths that differ.

    Examples
    --------
    >>> roc_auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    0.75
    """
    label, s = _check(y, scores)
    true, false = _steps(label, s)
    t, f = np.r_[0.0, true], np.r_[0.0, false]
    return float(np.sum(np.diff(f) * (t[1:] + t[:-1]) / 2) / (t[-1] * f[-1]))


def average_precision(y: ArrayLike, scores: ArrayLike) -> float:
    """Return the mean precision over the recall steps (no interpolation).

    Examples
    --------
    >>> round(average_precision([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]), 4)
    0.8333
    """
    label, s = _check(y, scores)
    true, false = _steps(label, s)
    return float(np.sum(np.diff(np.r_[0.0, true]) * true / (true + false)) / true[-1])


def fpr_at_tpr(y: ArrayLike, scores: ArrayLike, tpr: float = 0.95) -> float:
    """Return the smallest false-positive rate at a true-positive rate of at least ``tpr``.

    Examples
    --------
    >>> fpr_at_tpr([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    0.5
    """
    label, s = _check(y, scores)
    true, false = _steps(label, s)
    return float(false[np.argmax(true >= tpr * true[-1] - 1e-12)] / false[-1])


def precision_at_k(y: ArrayLike, scores: ArrayLike, k: int | None = None) -> float:
    """Return the share of anomalies among the ``k`` highest scores (default: as many as there are anomalies).

    Where a tie straddles the cut, the expected share over random orders of the tie is returned.

    Examples
    --------
    >>> precision_at_k([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    0.5
    """
    label, s = _check(y, scores)
    k = int(label.sum()) if k is None else k
    if not 1 <= k <= label.size:
        raise DataError(f"k must lie in 1..{label.size}, got {k}")
    cut = np.partition(s, s.size - k)[s.size - k]
    above, tied = s > cut, s == cut
    rest = k - int(above.sum())
    return float((label[above].sum() + rest * label[tied].mean()) / k)


def best_f1(y: ArrayLike, scores: ArrayLike) -> float:
    """Return the largest F1 over all thresholds: an oracle, for reference only.

    Examples
    --------
    >>> best_f1([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    0.8
    """
    label, s = _check(y, scores)
    true, false = _steps(label, s)
    return float(np.max(2 * true / (true + false + true[-1])))
