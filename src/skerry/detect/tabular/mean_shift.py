"""Mean-shift scoring around any detector (Tan, Yang, Chen and Rahardja, 2023, MSS).

Some anomalies are rebuilt well. The reconstruction of a row is therefore compared with the row after it was shifted to
the mean of its neighbours: an inlier hardly moves, an outlier is pulled to the crowd. Any detector that is not a
reconstruction gets the squared length of the shift added to its score, both scaled robustly (our extension).
"""

from __future__ import annotations

from numbers import Integral, Real

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from skerry.core.detector import HUGE, Detector
from skerry.core.errors import ParameterError
from skerry.kernels.mean_shift import MeanShifter

__all__ = ["MeanShift"]

LIMIT = 1e140  # standard deviations at which a value is clipped: its square is finite


class MeanShift(Detector):
    """Score of ``detector`` against the shifted row.

    Parameters
    ----------
    detector : detector
        A copy is fitted. One with ``score_against(X, target)``, such as ``AutoEncoder``, is scored against the shifted
        row; any other has the squared shift added to its score.
    n_neighbors : int or "auto", default "auto"
        Rows averaged, the row itself among them; 1 moves nothing, and groups of anomalies larger than this do not
        move. "auto" is 2 % of the rows within 10..100, and at most 30 under 1,500 rows.
    n_shifts : int, default 3
        0 moves nothing.
    weight : float >= 0, default 1.0
        Of the shift beside the score of a detector without ``score_against``; others ignore it.
    threshold : str, float or Threshold, default "auto"

    Attributes
    ----------
    detector_ : detector
        The fitted copy.
    n_neighbors_ : int
    mean_, scale_ : ndarray of shape (d,), float64
        Constant columns have scale 1.
    stages_ : list of ndarray of shape (n, d), float64
        The standardised training table before each shift.
    centres_, spreads_ : ndarray of shape (2,), float64
        Median and interquartile range of the detector's training scores and of the squared training shifts.

    Notes
    -----
    With nothing to move the score is the detector's own. The shift is not a gain everywhere: on labelled tables it
    helps the squared error of an autoencoder and not, on average, its probabilistic losses; see the study
    ``apre-mss``, where ``MeanShiftDistance`` stands beside it.

    Examples
    --------
    >>> from skerry.detect.tabular import HBOS
    >>> X = np.r_[np.linspace(0, 1, 40), 9.0].reshape(-1, 1)
    >>> int(MeanShift(HBOS()).fit(X).anomaly_score(X).argmax())
    40
    """

    _parameter_constraints = {
        "detector": [HasMethods(["fit", "anomaly_score"])],
        "n_neighbors": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "n_shifts": [Interval(Integral, 0, None, closed="left")],
        "weight": [Interval(Real, 0, None, closed="left")],
    }

    def __init__(self, detector, n_neighbors="auto", n_shifts=3, weight=1.0, threshold="auto"):
        self.detector = detector
        self.n_neighbors = n_neighbors
        self.n_shifts = n_shifts
        self.weight = weight
        self.threshold = threshold

    def _fit(self, X: NDArray) -> None:
        self.detector_ = clone(self.detector).fit(X)
        n = X.shape[0]
        if self.n_neighbors == "auto":
            self.n_neighbors_ = min(30 if n < 1500 else 100, max(10, round(0.02 * n)))
        else:
            self.n_neighbors_ = int(self.n_neighbors)
        wide = X.astype(np.float64)
        self.mean_ = wide.mean(axis=0)
        spread = wide.std(axis=0)
        # a column that varies by rounding alone is constant; the quotient must stay squarable
        self.scale_ = np.where(spread > np.maximum(1e-13 * np.abs(self.mean_), 1e-150), spread, 1.0)
        self._shifter = MeanShifter(self.n_neighbors_, self.n_shifts).fit((wide - self.mean_) / self.scale_)
        self.stages_ = self._shifter.stages_
        parts = [self.detector_.anomaly_score(X), self._moved(X)[1].sum(axis=1)]
        self.centres_ = np.array([np.median(p) for p in parts])
        self.spreads_ = np.array([_spread(p) for p in parts])

    def explain_parts(self, X: ArrayLike) -> dict[str, NDArray[np.float64]]:
        """Split :meth:`explain` of a wrapped reconstruction detector into its parts, each of shape (n, d).

        Returns
        -------
        dict of ndarray
            "reconstruction" and "uncertainty" as of the detector alone, and "shift", what the shifted target adds.

        Raises
        ------
        ParameterError
            If the wrapped detector reconstructs nothing and so has no such parts.
        """
        check_is_fitted(self)
        if not hasattr(self.detector_, "explain_parts"):
            raise ParameterError(f"{type(self.detector_).__name__} has no explain_parts; use explain")
        X = self._check_X(X, reset=False)
        return self.detector_.explain_parts(X, self._moved(X)[0] if self.stages_ else None)

    def _moved(self, X: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the shifted rows in the unit of X, and the squared shift of each column in deviations."""
        z = np.clip((X.astype(np.float64) - self.mean_) / self.scale_, -LIMIT, LIMIT)
        t = self._shifter.transform(z)
        return np.clip(t * self.scale_ + self.mean_, -HUGE, HUGE), (z - t) ** 2

    def _score(self, X: NDArray) -> NDArray[np.float64]:
        if not self.stages_:
            return self.detector_.anomaly_score(X)
        target, moved = self._moved(X)
        if hasattr(self.detector_, "score_against"):
            return self.detector_.score_against(X, target)
        base = (self.detector_.anomaly_score(X) - self.centres_[0]) / self.spreads_[0]
        return base + self.weight * (moved.sum(axis=1) - self.centres_[1]) / self.spreads_[1]

    def _explain(self, X: NDArray) -> NDArray[np.float64]:
        if self.stages_ and hasattr(self.detector_, "explain_against"):
            return self.detector_.explain_against(X, self._moved(X)[0])
        if not hasattr(self.detector_, "explain"):
            return super()._explain(X)
        parts = self.detector_.explain(X)
        if not self.stages_:
            return parts
        return parts / self.spreads_[0] + self.weight * self._moved(X)[1] / self.spreads_[1]

    def __getstate__(self):
        return {k: v for k, v in super().__getstate__().items() if k != "_shifter"}

    def __setstate__(self, state):
        super().__setstate__(state)
        if "stages_" in state:
            self._shifter = MeanShifter(self.n_neighbors_, self.n_shifts)
            self._shifter.__setstate__({"stages_": list(state["stages_"])})


def _spread(scores: NDArray) -> float:
    q1, q3 = np.quantile(scores, [0.25, 0.75])
    # of equal scores, rounding alone is no spread
    floor = 1e-12 * max(np.abs(scores).max(), 1e-150)
    return float(q3 - q1 if q3 - q1 > floor else scores.std() if scores.std() > floor else 1.0)
