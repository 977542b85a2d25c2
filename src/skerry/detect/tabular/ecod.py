"""ECOD: how far out in the tails of its columns a row lies, without any parameter to tune.

Li, Zhao, Hu, Botta, Ionescu and Chen (2022), "ECOD: Unsupervised outlier detection using empirical cumulative
distribution functions", IEEE TKDE. The score is a sum of -log tail probabilities (nats).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils._param_validation import StrOptions

from skerry.core.detector import Detector
from skerry.core.threshold import Threshold
from skerry.kernels import tails

__all__ = ["ECOD"]


class ECOD(Detector):
    """Empirical-cumulative-distribution outlier detection.

    Parameters
    ----------
    aggregation : {"total", "feature"}, default "total"
        ``"total"`` is the paper: the largest of three sums over features, of left tails, of right tails and
        of the tails that skewness chooses. ``"feature"`` sums the larger tail of each feature, which is
        what the widely used implementation computes (its skewness branch can never win the maximum); it
        sees a row that is low in one feature and high in another. Over 22 public tables the mean AUROC is
        0.806 and 0.815.
    threshold : str, float or Threshold, default "auto"

    Attributes
    ----------
    table_ : dict of ndarray, the fields of skerry.kernels.tails.TailTable
        Compressed training tails; about 7,000 values per column at a million rows.
    skewness_ : ndarray of shape (n_features,), float64

    Notes
    -----
    With ``F_left(z) = #{x <= z} / n`` and ``F_right(z) = #{x >= z} / n`` per feature, the sums are ``-sum
    log F_left``, ``-sum log F_right`` and ``-sum log`` of the left tail where the skewness is negative, of
    the right tail elsewhere; the score is their maximum (Algorithm 1). The tails are those of the training
    table alone, so a score never depends on the batch. Up to rank 500 from either end they are exact,
    further in within 0.1 %, that is 0.001 nats per feature. A value beyond the training range gets the
    smallest tail 1/n and, further, ``log(1 + distance / standard deviation)``.

    Do not use it where outliers are odd only as combinations of values: each feature is judged alone.

    Examples
    --------
    >>> X = np.r_[np.random.default_rng(0).normal(size=(200, 2)), [[6.0, 6.0]]]
    >>> int(ECOD().fit(X).anomaly_score(X).argmax())
    200
    """

    _parameter_constraints: dict[str, list[Any]] = {"aggregation": [StrOptions({"total", "feature"})]}

    def __init__(self, aggregation: str = "total", *, threshold: str | float | Threshold = "auto") -> None:
        self.aggregation = aggregation
        self.threshold = threshold

    def _fit(self, X: NDArray) -> None:
        table = tails.fit_tails(X)
        self.table_ = dict(vars(table))
        self.skewness_ = table.skewness

    def _score(self, X: NDArray) -> NDArray[np.float64]:
        rule = tails.TOTAL if self.aggregation == "total" else tails.EITHER
        return tails.score_tails(X, tails.TailTable(**self.table_), self.skewness_ >= 0, rule)

    def _explain(self, X: NDArray) -> NDArray[np.float64]:
        """Return the terms of the sum that won; they add up to the score."""
        left, right = tails.tail_terms(X, tails.TailTable(**self.table_))
        if self.aggregation == "feature":
            return np.maximum(left, right)
        three = np.stack([left, right, np.where(self.skewness_ >= 0, right, left)])
        return three[three.sum(axis=2).argmax(axis=0), np.arange(len(X))]
