"""The default detector: three views of a table that fail in different places, averaged on one scale.

* isolation forest: few random splits isolate the row (marginals and their combinations, any scale);
* robust covariance: far from the bulk along correlated directions;
* neighbourhood: far from the nearest twentieth of a random reference set, which sees clusters that the other two
  cannot, and is not fooled by small groups of equal outliers.

The members and the scale were chosen once on the development tables (``benchmarks/tabular.md``); nothing is tuned
on the table at hand. Each member's score is centred by its training median, divided by its interquartile range and
clipped at 20 of them, so that one member's wild scale cannot outvote the others for long; beyond the clip only the
log of the excess counts, which keeps extreme rows in order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.utils import check_random_state

from skerry.core.detector import Detector
from skerry.core.errors import ParameterError
from skerry.detect.tabular.isolation_forest import IsolationForest
from skerry.detect.tabular.reference_neighbours import ReferenceNeighbours
from skerry.detect.tabular.robust_covariance import RobustCovariance

__all__ = ["Ensemble"]

CLIP = 20.0  # interquartile ranges
SCALE_ROWS = 4_096  # training rows that set each member's scale where fit has no need to score more


class Ensemble(Detector):
    """Mean of the clipped robust z-scores of several detectors.

    Parameters
    ----------
    detectors : list of Detector or None, default None
        None takes :class:`IsolationForest`, :class:`RobustCovariance` and :class:`ReferenceNeighbours`.
    random_state : int, RandomState or None, default None
    threshold : str, float or Threshold, default "auto"

    Attributes
    ----------
    detectors_ : list of fitted Detector
    columns_ : list of ndarray of int
        Columns that each member sees: all, but for robust covariance only those of more than two values, since a
        scatter has no scale along a switch that most rows leave off.
    location_, scale_ : ndarray of shape (number of detectors,)

    Notes
    -----
    ``explain`` shares the row's score among the features: each member's contributions are made non-negative and
    scaled to its share of the score above the lowest possible one, so that features are comparable across members.

    Examples
    --------
    >>> X = np.r_[np.random.default_rng(0).normal(size=(300, 3)), [[6.0, -6.0, 6.0]]]
    >>> int(Ensemble(random_state=0).fit(X).anomaly_score(X).argmax())
    300
    """

    _parameter_constraints = {"detectors": [list, tuple, None]}

    def __init__(self, detectors=None, random_state=None, threshold="auto"):
        self.detectors = detectors
        self.random_state = random_state
        self.threshold = threshold

    def _fit(self, X: NDArray) -> None:
        rows = np.arange(len(X))
        if len(X) > SCALE_ROWS:
            rows = np.sort(check_random_state(0).choice(len(X), SCALE_ROWS, replace=False))
        self._fit_members(X, rows)

    def _fit_and_score(self, X: NDArray, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        return self._standardised(self._fit_members(X, rows)).mean(axis=0)

    def _fit_members(self, X: NDArray, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Fit every member, set its scale from its scores of ``rows``, and return these, shape (members, rows)."""
        rng = check_random_state(self.random_state)
        members = self.detectors
        if members is None:
            members = [IsolationForest(), RobustCovariance(), ReferenceNeighbours()]
        if not members or not all(isinstance(m, Detector) for m in members):
            raise ParameterError("Ensemble: detectors must be a non-empty list of detectors")
        sample = X if rows.size == len(X) else np.ascontiguousarray(X[rows])
        medians = np.median(sample, axis=0)
        self.detectors_: list[Detector] = []
        self.columns_: list[NDArray[np.int64]] = []
        raw = np.empty((len(members), len(sample)))
        for i, member in enumerate(members):
            detector = clone(member)
            if "random_state" in detector.get_params(deep=False) and detector.random_state is None:
                detector.set_params(random_state=int(rng.randint(2**31 - 1)))
            columns = _many_valued(sample) if isinstance(detector, RobustCovariance) else np.arange(X.shape[1])
            self.columns_.append(columns)
            detector._check_parameters()
            detector._fit(_take(X, columns))  # without a threshold of its own: that would score all rows once more
            detector.n_features_in_ = columns.size
            detector.feature_medians_ = medians[columns]
            raw[i] = detector._score(_take(sample, columns))
            self.detectors_.append(detector)
        q1, median, q3 = np.quantile(raw, [0.25, 0.5, 0.75], axis=1)
        spread = np.where(q3 > q1, q3 - q1, raw.std(axis=1))
        self.location_, self.scale_ = median, np.maximum(spread, 1e-12 * np.maximum(1.0, np.abs(median)))
        return raw

    def _standardised(self, raw: NDArray[np.float64]) -> NDArray[np.float64]:
        z = (raw - self.location_[:, None]) / self.scale_[:, None]
        excess = np.maximum(np.abs(z) - CLIP, 0.0)
        return np.clip(z, -CLIP, CLIP) + np.sign(z) * 1e-3 * np.log1p(excess)

    def _parts(self, X: NDArray) -> NDArray[np.float64]:
        pairs = zip(self.detectors_, self.columns_, strict=True)
        return self._standardised(np.array([detector._score(_take(X, columns)) for detector, columns in pairs]))

    def _score(self, X: NDArray) -> NDArray[np.float64]:
        return self._parts(X).mean(axis=0)

    def _explain(self, X: NDArray) -> NDArray[np.float64]:
        parts = np.maximum(self._parts(X), 0.0) / len(self.detectors_)
        out = np.zeros(X.shape)
        for weight, detector, columns in zip(parts, self.detectors_, self.columns_, strict=True):
            shares = np.maximum(detector._explain(_take(X, columns)), 0.0)
            total = shares.sum(axis=1)
            shares /= np.where(total > 0, total, 1.0)[:, None]
            out[:, columns] += shares * weight[:, None]
        return out


def _many_valued(sample: NDArray) -> NDArray[np.int64]:
    """Return the columns with more than two distinct values, or all where none has."""
    low, high = sample.min(axis=0), sample.max(axis=0)
    found = np.flatnonzero(((sample > low) & (sample < high)).any(axis=0))
    return found if found.size else np.arange(sample.shape[1])


def _take(X: NDArray, columns: NDArray[np.int64]) -> NDArray:
    return X if columns.size == X.shape[1] else np.ascontiguousarray(X[:, columns])
