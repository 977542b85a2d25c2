"""The default detector of series: three views of the steps just passed, averaged on one scale.

* windows under principal components: a shape that the usual shapes cannot rebuild;
* windows among a random reference set: a shape far from all usual ones, whatever its directions;
* a linear forecast: a step that does not follow from the steps before it.

All are causal, so the ensemble follows a stream. The members were chosen once on the development series
(``benchmarks/series.md``); nothing is tuned on the series at hand.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.utils import check_random_state

from skerry.core.errors import ParameterError
from skerry.core.series_detector import SeriesDetector
from skerry.detect.series.forecast import Forecast
from skerry.detect.series.windowed import Windowed

__all__ = ["Ensemble"]

CLIP = 20.0  # interquartile ranges up to which a member counts in full; beyond it only the logarithm of the excess


class Ensemble(SeriesDetector):
    """Mean of the clipped robust z-scores of several series detectors.

    Parameters
    ----------
    detectors : list of SeriesDetector or None, default None
        None takes ``Windowed(PCA())``, ``Windowed(ReferenceNeighbours())`` and
        ``Forecast(smoothing=16)``.
    random_state : int, RandomState or None, default None
    threshold : str, float or Threshold, default "auto"

    Attributes
    ----------
    detectors_ : list of fitted SeriesDetector
    location_, scale_ : ndarray of shape (number of detectors,)
        Median and interquartile range of each member's training scores.
    causal : bool
        Whether all members are.

    Examples
    --------
    >>> x = np.sin(np.arange(900) / 5)
    >>> x[700:710] += 2.0
    >>> s = Ensemble(random_state=0).fit_score(x)
    >>> bool(700 <= s.argmax() < 745)
    True
    """

    _parameter_constraints = {"detectors": [list, tuple, None]}

    def __init__(self, detectors: Any = None, random_state: Any = None, threshold: Any = "auto") -> None:
        self.detectors = detectors
        self.random_state = random_state
        self.threshold = threshold

    @property
    def causal(self) -> bool:  # type: ignore[override]
        """Whether all members are causal."""
        members = getattr(self, "detectors_", None) or self.detectors
        return members is None or all(m.causal for m in members)

    def _members(self) -> list[SeriesDetector]:
        if self.detectors is None:
            from skerry.detect.tabular.pca import PCA
            from skerry.detect.tabular.reference_neighbours import ReferenceNeighbours

            return [Windowed(PCA()), Windowed(ReferenceNeighbours()), Forecast(smoothing=16)]
        if not self.detectors or not all(isinstance(m, SeriesDetector) for m in self.detectors):
            raise ParameterError("Ensemble: detectors must be a non-empty list of series detectors")
        return [clone(m) for m in self.detectors]

    def _fit(self, X: NDArray) -> None:
        self._fit_and_score(X, np.arange(len(X)))

    def _fit_and_score(self, X: NDArray, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        rng = check_random_state(self.random_state)
        self.detectors_ = self._members()
        raw = np.empty((len(self.detectors_), len(X)))
        for i, detector in enumerate(self.detectors_):
            if "random_state" in detector.get_params(deep=False) and detector.random_state is None:
                detector.set_params(random_state=int(rng.randint(2**31 - 1)))
            raw[i] = detector.fit_score(X)
        q1, median, q3 = np.quantile(raw, [0.25, 0.5, 0.75], axis=1)
        spread = np.where(q3 > q1, q3 - q1, raw.std(axis=1))
        self.location_, self.scale_ = median, np.maximum(spread, 1e-9 * np.maximum(1.0, np.abs(median)))
        self.reset()
        return self._standardised(raw)[:, rows].mean(axis=0)

    def _standardised(self, raw: NDArray[np.float64]) -> NDArray[np.float64]:
        z = (raw - self.location_[:, None]) / self.scale_[:, None]
        excess = np.maximum(np.abs(z) - CLIP, 0.0)
        return np.clip(z, -CLIP, CLIP) + np.sign(z) * 1e-3 * np.log1p(excess)

    def _score(self, X: NDArray) -> NDArray[np.float64]:
        return self._standardised(np.array([d.anomaly_score(X) for d in self.detectors_])).mean(axis=0)

    def _explain(self, X: NDArray) -> NDArray[np.float64]:
        """Share each member's score among the channels by its own explanation; rows sum to at most the score."""
        weights = np.maximum(self._standardised(np.array([d.anomaly_score(X) for d in self.detectors_])), 0.0)
        out = np.zeros(X.shape)
        for weight, detector in zip(weights / len(weights), self.detectors_, strict=True):
            parts = np.maximum(detector.explain(X), 0.0)
            total = parts.sum(axis=1, keepdims=True)
            out += parts / np.where(total > 0.0, total, 1.0) * weight[:, None]
        return out

    def reset(self) -> Self:
        """Forget the steps seen by :meth:`update`."""
        for detector in self.detectors_:
            if hasattr(detector, "reset"):
                detector.reset()
        return self

    def update(self, x: ArrayLike) -> float:
        """Return the score of the next step ``x`` of shape (c,).

        Raises
        ------
        ParameterError
            If a member follows no stream.
        """
        for detector in self.detectors_:
            if not hasattr(detector, "update"):
                raise ParameterError(f"{type(detector).__name__} needs the whole series and follows no stream")
        raw = np.array([[detector.update(x)] for detector in self.detectors_])
        return float(self._standardised(raw)[:, 0].mean())
