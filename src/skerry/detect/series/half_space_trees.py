"""HalfSpaceTrees: a stream is scored by how many of its recent steps lie where the new one lies.

Tan, Ting and Liu, "Fast anomaly detection for streaming data", IJCAI 2011.
"""

from __future__ import annotations

from numbers import Integral
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval

from skerry.core.series_detector import SeriesDetector, forward_filled
from skerry.kernels.half_space import grow_half_spaces, stream_masses

__all__ = ["HalfSpaceTrees"]


class HalfSpaceTrees(SeriesDetector):
    """Mass of the half-spaces around a step in a reference window of recent ones.

    Parameters
    ----------
    n_estimators : int, default 25
    depth : int, default 10
        Halvings of the work range (the paper takes 15).
    window : int, default 250
        Steps after which the latest masses become the reference.
    size_limit : float, default 0.1
        Share of ``window`` under which a node is not split further.
    lags : int, default 3
        A row is the last ``lags`` steps of all channels; 1 is the paper's, blind to the order of steps.
    random_state : int, RandomState or None, default None
    threshold : str, float or Threshold, default "auto"

    Attributes
    ----------
    column_, split_ : ndarray of shape (n_estimators, 2^depth - 1)
    mass_ : ndarray of shape (n_estimators, 2^(depth + 1) - 1)
        Reference masses after the last full window of the training series.

    Notes
    -----
    The score is ``log2(1 + window 2^depth) - log2(1 + mean mass x 2^depth)``: 0 for the densest place, larger in
    thinner ones. Memory does not grow with the stream. Causal. Work ranges are drawn around the training series as
    in the paper: a uniform centre s in [0, 1] of each scaled column and ``2 max(s, 1 - s)`` to both sides.

    Examples
    --------
    >>> x = np.sin(np.arange(900) / 5)
    >>> x[700] = 4.0
    >>> s = HalfSpaceTrees(random_state=0).fit(x[:600]).anomaly_score(x[600:])
    >>> bool(100 <= s.argmax() < 103)
    True
    """

    causal = True
    _parameter_constraints = {
        "n_estimators": [Interval(Integral, 1, None, closed="left")],
        "depth": [Interval(Integral, 1, 20, closed="both")],
        "window": [Interval(Integral, 1, None, closed="left")],
        "lags": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        n_estimators: int = 25,
        depth: int = 10,
        window: int = 250,
        size_limit: float = 0.1,
        lags: int = 3,
        random_state: Any = None,
        threshold: Any = "auto",
    ) -> None:
        self.n_estimators = n_estimators
        self.depth = depth
        self.window = window
        self.size_limit = size_limit
        self.lags = lags
        self.random_state = random_state
        self.threshold = threshold

    def _fit(self, X: NDArray) -> None:
        rng = check_random_state(self.random_state)
        filled = forward_filled(X, self.feature_medians_)
        self.low_ = filled.min(axis=0)
        spread = filled.max(axis=0) - self.low_
        self.spread_ = np.where(spread > np.maximum(1e-12 * np.abs(filled).max(axis=0), 1e-150), spread, 1.0)
        d = X.shape[1] * self.lags
        centre = rng.uniform(size=(self.n_estimators, d))
        reach = 2.0 * np.maximum(centre, 1.0 - centre)
        self.column_ = rng.randint(0, d, size=(self.n_estimators, 2**self.depth - 1))
        self.split_ = grow_half_spaces(centre - reach, centre + reach, self.column_)
        rows = self._rows(filled)
        window = min(self.window, len(rows))
        self.mass_ = np.zeros((self.n_estimators, 2 ** (self.depth + 1) - 1))
        latest, seen = np.zeros_like(self.mass_), np.zeros(1, dtype=np.int64)
        stream_masses(rows, self.column_, self.split_, self.mass_, latest, seen, window, self._limit)
        if window < self.window:
            self.mass_ *= self.window / window
        self.reset()

    @property
    def _limit(self) -> float:
        return self.size_limit * self.window

    def _rows(self, filled: NDArray) -> NDArray[np.float64]:
        """Return each step with the ``lags - 1`` before it, on the scale of the training range."""
        z = np.clip((filled - self.low_) / self.spread_, -1e6, 1e6)
        steps = np.arange(len(z))
        return np.concatenate([z[np.maximum(steps - lag, 0)] for lag in range(self.lags)], axis=1)

    def _grade(self, mass: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.maximum(np.log2(1.0 + self.window * 2.0**self.depth) - np.log2(1.0 + mass), 0.0)

    def _score(self, X: NDArray) -> NDArray[np.float64]:
        rows = self._rows(forward_filled(X, self.feature_medians_))
        mass, latest, seen = self.mass_.copy(), np.zeros_like(self.mass_), np.zeros(1, dtype=np.int64)
        found = stream_masses(rows, self.column_, self.split_, mass, latest, seen, self.window, self._limit)
        return self._grade(found)

    def reset(self) -> Self:
        """Forget the steps seen by :meth:`update`."""
        self.recent_ = np.empty((0, len(self.low_)))
        self.live_mass_, self.latest_ = self.mass_.copy(), np.zeros_like(self.mass_)
        self.seen_ = np.zeros(1, dtype=np.int64)
        return self

    def update(self, x: ArrayLike) -> float:
        """Return the score of the next step ``x`` of shape (c,)."""
        return self._update(self._check_step(x))

    def _update(self, x: NDArray[np.float64]) -> float:
        return float(self._follow(x)[0])

    def update_many(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the scores of the next steps, ``X`` of shape (n, c): what ``update`` would say to each in turn."""
        return self._follow(self._check_X(X, reset=False))

    def _follow(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        filled = forward_filled(X, self.recent_[-1] if len(self.recent_) else self.feature_medians_)
        past = self.recent_ if len(self.recent_) else np.repeat(filled[:1], self.lags, axis=0)
        joined = np.concatenate([past, filled])
        self.recent_ = joined[-self.lags :].copy()
        rows, masses = self._rows(joined)[len(past) :], (self.live_mass_, self.latest_, self.seen_)
        return self._grade(stream_masses(rows, self.column_, self.split_, *masses, self.window, self._limit))
