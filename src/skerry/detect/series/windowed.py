"""Windowed: any detector on tables becomes one on series, by scoring the window that ends at each step."""

from __future__ import annotations

from numbers import Integral
from typing import Any, Self

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.utils._param_validation import HasMethods, Interval

from skerry.core.detector import Detector
from skerry.core.series_detector import SeriesDetector, forward_filled

__all__ = ["Windowed"]

BLOCK_VALUES = 1 << 22  # window values held at once
FIT_WINDOWS = 50_000  # windows that the inner detector learns from, drawn uniformly


class Windowed(SeriesDetector):
    """Score the last ``window`` steps, laid out as one row of a table, with a detector for tables.

    Parameters
    ----------
    detector : Detector or None, default None
        Any detector of :mod:`skerry.detect.tabular`; None takes ``IsolationForest``.
    window : int, default 32
        Steps in a window.
    stride : int, default 1
        Only every ``stride``-th step of the window is a column, counted back from its end.
    random_state : int, RandomState or None, default None
        Handed to the detector, where it has none of its own.
    threshold : str, float or Threshold, default "auto"

    Attributes
    ----------
    detector_ : the fitted detector
    location_, scale_ : ndarray of shape (c,)
        Mean and deviation of each channel; windows are standardised by them, so channels weigh alike.

    Notes
    -----
    Causal: before the first ``window`` steps have passed, the first step stands for what came before it. A missing
    value is the last one seen. ``explain`` sums the columns that belong to one channel.

    Examples
    --------
    >>> x = np.sin(np.arange(600) / 5)
    >>> x[400:410] = 0.0
    >>> s = Windowed(window=16, random_state=0).fit_score(x)
    >>> bool(400 <= s.argmax() < 426)
    True
    """

    causal = True
    _parameter_constraints = {
        "detector": [HasMethods(["fit", "anomaly_score"]), None],
        "window": [Interval(Integral, 1, None, closed="left")],
        "stride": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        detector: Detector | None = None,
        window: int = 32,
        stride: int = 1,
        random_state: Any = None,
        threshold: Any = "auto",
    ) -> None:
        self.detector = detector
        self.window = window
        self.stride = stride
        self.random_state = random_state
        self.threshold = threshold

    def _fit(self, X: NDArray) -> None:
        self._learn(X)

    def _fit_and_score(self, X: NDArray, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        known = self._learn(X)
        return self._score_training(X, rows) if known is None else known[rows]

    def _learn(self, X: NDArray) -> NDArray[np.float64] | None:
        """Fit the inner detector; return the scores of all windows where that took them."""
        from skerry.detect.tabular.isolation_forest import IsolationForest

        filled = forward_filled(X, self.feature_medians_)
        self.location_ = filled.mean(axis=0)
        spread = filled.std(axis=0)
        # a channel that varies by rounding alone is constant
        self.scale_ = np.where(spread > np.maximum(1e-12 * np.abs(self.location_), 1e-150), spread, 1.0)
        detector = IsolationForest() if self.detector is None else clone(self.detector)
        if "random_state" in detector.get_params(deep=False) and detector.random_state is None:
            detector.set_params(random_state=self.random_state)
        padded = self._padded(X)
        some: slice | NDArray[np.int64] = slice(None)
        if len(X) > FIT_WINDOWS:
            some = np.sort(np.random.RandomState(0).choice(len(X), FIT_WINDOWS, replace=False))
        windows, known = self._rows(padded, some), None
        if len(X) <= FIT_WINDOWS and hasattr(detector, "fit_score"):
            known = detector.fit_score(windows)
        else:
            detector.fit(windows)
        self.detector_ = detector
        self.reset()
        return known

    def _padded(self, X: NDArray) -> NDArray[np.float64]:
        """Return standardised, filled steps with ``window - 1`` copies of the first in front of them."""
        z = (forward_filled(X, self.feature_medians_) - self.location_) / self.scale_
        return np.concatenate([np.repeat(z[:1], self.window - 1, axis=0), z])

    def _rows(self, padded: NDArray, ends: slice | NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the windows that end at ``ends`` as rows (windows, columns), channel by channel."""
        views = sliding_window_view(padded, self.window, axis=0)[:, :, :: -self.stride][ends]
        return np.ascontiguousarray(views).reshape(len(views), -1)

    def _blocks(self, padded: NDArray):
        n = len(padded) - self.window + 1
        columns = padded.shape[1] * len(range(0, self.window, self.stride))
        step = max(1, BLOCK_VALUES // columns)
        for start in range(0, n, step):
            ends = slice(start, min(start + step, n))
            yield ends, self._rows(padded, ends)

    def _score(self, X: NDArray) -> NDArray[np.float64]:
        return self._of_windows(self._padded(X))

    def _of_windows(self, padded: NDArray) -> NDArray[np.float64]:
        """Return the score of each whole window of standardised steps."""
        out = np.empty(len(padded) - self.window + 1)
        for ends, rows in self._blocks(padded):
            out[ends] = self.detector_.anomaly_score(rows)
        return out

    def _explain(self, X: NDArray) -> NDArray[np.float64]:
        out = np.empty(X.shape)
        for ends, rows in self._blocks(self._padded(X)):
            out[ends] = self.detector_.explain(rows).reshape(len(rows), X.shape[1], -1).sum(axis=2)
        return out

    @property
    def reach(self) -> int:
        """The window but its last step."""
        return self.window - 1

    def reset(self) -> Self:
        """Forget the steps seen by :meth:`update`."""
        self.recent_ = np.empty((0, len(self.location_)))
        return self

    def update_many(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the scores of the next steps, ``X`` of shape (n, c): what ``update`` would say to each in turn."""
        X = self._check_X(X, reset=False)
        filled = forward_filled(X, self.recent_[-1] if len(self.recent_) else self.feature_medians_)
        past = self.recent_ if len(self.recent_) else np.repeat(filled[:1], self.window, axis=0)
        joined = np.concatenate([past, filled])
        self.recent_ = joined[-self.window :].copy()
        return self._of_windows((joined[1:] - self.location_) / self.scale_)

    def update(self, x: ArrayLike) -> float:
        """Return the score of the next step ``x`` of shape (c,)."""
        return self._update(self._check_step(x))

    def _update(self, x: NDArray[np.float64]) -> float:
        x = forward_filled(x, self.recent_[-1] if len(self.recent_) else self.feature_medians_)
        past = self.recent_ if len(self.recent_) else np.repeat(x, self.window, axis=0)
        self.recent_ = np.concatenate([past[1:], x])  # in the unit of the series
        z = (self.recent_[:: -self.stride] - self.location_) / self.scale_
        row = np.ascontiguousarray(z.T).reshape(1, -1)
        # a row made here needs no validation, which would take most of the time
        score = self.detector_._score if isinstance(self.detector_, Detector) else self.detector_.anomaly_score
        return float(score(row)[0])
