"""SwitchSurprise: a channel of at most two values has no shape; what counts is a value it seldom or never had.

Commands, states and flags among sensors are such channels. Taken as waves, their rare jumps drown the others.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skerry.core.series_detector import SeriesDetector

__all__ = ["SwitchSurprise", "is_switch"]

POWER = 4  # of the surprise: a value seen once in thousands counts, one seen once in ten hardly does


def is_switch(X: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which channels of (T, c) take at most two values; missing ones do not count.

    >>> is_switch(np.array([[0.0, 0.1], [1.0, 0.2], [0.0, np.nan], [np.nan, 0.3]]))
    array([ True, False])
    """
    low, high = (f(np.where(np.isnan(X), end, X), axis=0) for f, end in ((np.min, np.inf), (np.max, -np.inf)))
    return ((X == low) | (X == high) | np.isnan(X)).all(axis=0)


class SwitchSurprise(SeriesDetector):
    """Surprise at the present values of channels, as a share of the largest there can be, to the fourth power.

    Parameters
    ----------
    threshold : str, float or Threshold, default "auto"

    Attributes
    ----------
    values_ : list of ndarray
        Values that each channel had in the training series, in order.
    surprise_ : list of ndarray
        Of each of these values.

    Notes
    -----
    With p the share of the training steps (those not missing) that had the value, the surprise is
    ``(-log p / log n)^4``; a value not among them has 1. The score is the largest over the channels, in [0, 1]; a
    missing value has none. Causal, and a step's score depends on it alone.

    Examples
    --------
    >>> x = np.zeros(1_000)
    >>> x[::10] = 1.0
    >>> SwitchSurprise().fit(x).anomaly_score(np.array([0.0, 1.0, 2.0])).round(3)
    array([0.   , 0.012, 1.   ])
    """

    causal = True

    def __init__(self, threshold: Any = "auto") -> None:
        self.threshold = threshold

    def _fit(self, X: NDArray) -> None:
        self.values_, self.surprise_ = [], []
        for x in X.T:
            values, counts = np.unique(x[~np.isnan(x)], return_counts=True)
            n = max(int(counts.sum()), 2)
            self.values_.append(values)
            self.surprise_.append((np.log(n / counts) / np.log(n)).clip(0.0, 1.0) ** POWER)

    def _parts(self, X: NDArray) -> NDArray[np.float64]:
        out = np.ones(X.shape)
        for j, (values, surprise) in enumerate(zip(self.values_, self.surprise_, strict=True)):
            if values.size:
                at = np.minimum(np.searchsorted(values, X[:, j]), values.size - 1)
                out[:, j] = np.where(values[at] == X[:, j], surprise[at], 1.0)
        return np.where(np.isnan(X), 0.0, out)

    def _score(self, X: NDArray) -> NDArray[np.float64]:
        return self._parts(X).max(axis=1)

    def _explain(self, X: NDArray) -> NDArray[np.float64]:
        """Give the score to the channels that have it; rows sum to it."""
        parts = self._parts(X)
        top = (parts == parts.max(axis=1, keepdims=True)).astype(np.float64)
        return top / top.sum(axis=1, keepdims=True) * parts.max(axis=1, keepdims=True)

    @property
    def reach(self) -> int:
        """None but the step itself."""
        return 0

    def reset(self) -> Self:
        """Do nothing: no step is remembered."""
        return self

    def update_many(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the scores of the next steps, ``X`` of shape (n, c)."""
        return self._score(self._check_X(X, reset=False))

    def update(self, x: ArrayLike) -> float:
        """Return the score of the next step ``x`` of shape (c,)."""
        return self._update(self._check_step(x))

    def _update(self, x: NDArray[np.float64]) -> float:
        return float(self._score(x)[0])
