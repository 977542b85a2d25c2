"""How far a row moves when it is shifted to the mean of its neighbours (Tan, Yang, Chen and Rahardja, 2023).

The score of the paper's mean-shift part alone, without a network: the squared distance, in standard deviations,
between a row and itself after ``n_shifts`` mean shifts.
"""

from __future__ import annotations

from numbers import Integral

import numpy as np
from numpy.typing import NDArray
from sklearn.utils._param_validation import Interval

from skerry.core.detector import Detector
from skerry.kernels.mean_shift import MeanShifter

__all__ = ["MeanShiftDistance"]


class MeanShiftDistance(Detector):
    """Squared length of the shift of a standardised row towards its neighbours.

    Parameters
    ----------
    n_neighbors : int, default 30
        Rows averaged, the row itself among them; groups of anomalies larger than this do not move.
    n_shifts : int, default 3
    threshold : str, float or Threshold, default "auto"

    Attributes
    ----------
    mean_, scale_ : ndarray of shape (d,), float64
        Constant columns have scale 1.

    Notes
    -----
    ``explain`` gives the squared shift of each column; rows sum to the score.

    Examples
    --------
    >>> X = np.r_[np.zeros(9), 5.0].reshape(-1, 1)
    >>> int(MeanShiftDistance(n_neighbors=4).fit(X).anomaly_score(X).argmax())
    9
    """

    _parameter_constraints = {
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
        "n_shifts": [Interval(Integral, 0, None, closed="left")],
    }

    def __init__(self, n_neighbors=30, n_shifts=3, threshold="auto"):
        self.n_neighbors = n_neighbors
        self.n_shifts = n_shifts
        self.threshold = threshold

    def _fit(self, X: NDArray) -> None:
        X = X.astype(np.float64)
        self.mean_ = X.mean(axis=0)
        spread = X.std(axis=0)
        # a column that varies by rounding alone is constant
        self.scale_ = np.where(spread > 1e-13 * np.abs(self.mean_), spread, 1.0)
        self.scale_[self.scale_ < 1e-150] = 1.0  # the quotient must stay squarable
        shifter = MeanShifter(self.n_neighbors, self.n_shifts).fit((X - self.mean_) / self.scale_)
        self.stages_ = shifter.stages_
        self._shifter = shifter

    def _explain(self, X: NDArray) -> NDArray[np.float64]:
        z = np.clip((X.astype(np.float64) - self.mean_) / self.scale_, -1e140, 1e140)
        return (z - self._shifter.transform(z)) ** 2

    def _score(self, X: NDArray) -> NDArray[np.float64]:
        return self._explain(X).sum(axis=1)

    def __getstate__(self):
        return {k: v for k, v in super().__getstate__().items() if k != "_shifter"}

    def __setstate__(self, state):
        super().__setstate__(state)
        if "stages_" in state:
            self._shifter = MeanShifter(self.n_neighbors, self.n_shifts)
            self._shifter.__setstate__({"stages_": list(state["stages_"])})
