"""ECOD: how far out in the tails of its columns a row lies, without any parameter to tune.

Li, Zhao, Hu, Botta, Ionescu and Chen (2022), "ECOD: Unsupervised outlier detection using empirical cumulative
distribution functions", IEEE TKDE. The score is a sum of -log tail probabilities (nats).
"""

from __future__ import annotations

from skerry.core.threshold import Threshold
from skerry.detect.tabular.tail_detector import TailDetector
from skerry.kernels import tails

__all__ = ["ECOD"]


class ECOD(TailDetector):
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

    Notes
    -----
    Algorithm 1 of the paper: the score is the maximum of ``-sum log F_left``, ``-sum log F_right`` and the sum over
    the features' chosen tails. Tails, and attributes, are those of
    :class:`~skerry.detect.tabular.tail_detector.TailDetector`.

    Do not use it where outliers are odd only as combinations of values: each feature is judged alone.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.r_[np.random.default_rng(0).normal(size=(200, 2)), [[6.0, 6.0]]]
    >>> int(ECOD().fit(X).anomaly_score(X).argmax())
    200
    """

    def __init__(self, aggregation: str = "total", *, threshold: str | float | Threshold = "auto") -> None:
        self.aggregation = aggregation
        self.threshold = threshold

    @property
    def _rule(self) -> int:
        return tails.TOTAL if self.aggregation == "total" else tails.EITHER
