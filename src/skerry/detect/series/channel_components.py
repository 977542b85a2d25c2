"""ChannelComponents: a moment is odd if the last steps of a channel have a shape unlike that channel's own.

Each channel has principal components of its own windows (Shyu et al., 2003, by way of
:class:`~skerry.detect.tabular.pca.PCA`), so that a channel among fifty is not drowned by the others, and the cost
grows with the channels, not with their square.
"""

from __future__ import annotations

from numbers import Integral
from typing import Any, Self

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray
from sklearn.utils._param_validation import Interval

from skerry.core.series_detector import SeriesDetector, forward_filled
from skerry.detect.tabular.pca import FAR, PCA

__all__ = ["ChannelComponents"]

CLIP = 20.0  # interquartile ranges up to which a channel counts in full; beyond it only the logarithm of the excess
FIT_WINDOWS = 50_000  # windows that the components are learned from, drawn uniformly
UNSEEN = 2.0  # what a channel counts for at most before a whole window has passed: most of it is made up
BLOCK_STEPS = 1 << 14  # windows held at once


class ChannelComponents(SeriesDetector):
    """Root mean square over the channels of how far each one's window lies along its own principal components.

    Parameters
    ----------
    window : int, default 32
        Steps in a window, itself the last.
    threshold : str, float or Threshold, default "auto"

    Attributes
    ----------
    mean_, weight_ : ndarray of shape (c, window)
        Of the windows of each channel: centre, and reciprocal deviation (0 where a channel is constant).
    projection_ : ndarray of shape (c, window, window)
        Components of each channel over the root of their eigenvalues; unused columns are 0.
    location_, scale_ : ndarray of shape (c,)
        Median and interquartile range of each channel's training scores.

    Notes
    -----
    With q the squared length of a standardised window in its channel's components, z = (q - location) / scale, held
    in [0, 20], the score is ``sqrt(mean_j max(z_j, 0)^2)``. Causal: the first step stands for what came before it; a
    missing value is the last one seen. Before a whole window has passed z is held at 2.
    ``explain`` shares the score by the squares.

    Examples
    --------
    >>> x = np.sin(np.arange(600) / 5)
    >>> x[400:410] = 0.0
    >>> s = ChannelComponents(window=16).fit_score(x)
    >>> bool(400 <= s.argmax() < 426)
    True
    """

    causal = True
    _parameter_constraints = {"window": [Interval(Integral, 1, None, closed="left")]}

    def __init__(self, window: int = 32, threshold: Any = "auto") -> None:
        self.window = window
        self.threshold = threshold

    def _fit(self, X: NDArray) -> None:
        self._fit_and_score(X, np.arange(len(X)))

    def _fit_and_score(self, X: NDArray, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        n, c = X.shape
        w = self.window
        ends = np.arange(n)
        if n > FIT_WINDOWS:
            ends = np.sort(np.random.RandomState(0).choice(n, FIT_WINDOWS, replace=False))
        views = self._views(X)
        self.mean_, self.weight_, self.projection_ = np.zeros((c, w)), np.zeros((c, w)), np.zeros((c, w, w))
        for j in range(c):
            model = PCA()
            model._fit(np.ascontiguousarray(views[ends, j]))
            projection = model._projection()
            self.mean_[j], self.weight_[j] = model.mean_, 1.0 / model.scale_
            self.projection_[j, :, : projection.shape[1]] = projection
        raw = self._raw(views)
        q1, median, q3 = np.quantile(raw, [0.25, 0.5, 0.75], axis=0)
        spread = np.where(q3 > q1, q3 - q1, raw.std(axis=0))
        self.location_, self.scale_ = median, np.maximum(spread, 1e-9 * np.maximum(1.0, np.abs(median)))
        self.reset()
        return self._together(self._begun(self._standardised(raw)))[rows]

    def _views(self, X: NDArray) -> NDArray[np.float64]:
        """Return the windows (T, c, window) that end at each step, latest value first."""
        filled = forward_filled(X, self.feature_medians_)
        padded = np.concatenate([np.repeat(filled[:1], self.window - 1, axis=0), filled])
        return sliding_window_view(padded, self.window, axis=0)[:, :, ::-1]

    def _raw(self, views: NDArray) -> NDArray[np.float64]:
        """Return the squared length of each window in the components of its channel, (T, c)."""
        out = np.empty(views.shape[:2])
        for start in range(0, len(views), BLOCK_STEPS):
            part = slice(start, start + BLOCK_STEPS)
            for j in range(views.shape[1]):
                z = np.minimum(np.maximum((views[part, j] - self.mean_[j]) * self.weight_[j], -FAR), FAR)
                y = z @ self.projection_[j]
                out[part, j] = np.einsum("ij,ij->i", y, y)
        return out

    def _standardised(self, raw: NDArray[np.float64]) -> NDArray[np.float64]:
        z = (raw - self.location_) / self.scale_
        return np.minimum(np.maximum(z, 0.0), CLIP) + 1e-3 * np.log1p(np.maximum(z - CLIP, 0.0))

    def _begun(self, z: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return z of a series from its first step on, with the steps held that have no whole window before them."""
        z[: self.window - 1] = np.minimum(z[: self.window - 1], UNSEEN)
        return z

    @staticmethod
    def _together(z: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.sqrt(np.add.reduce(z * z, axis=1) / z.shape[1])

    def _score(self, X: NDArray) -> NDArray[np.float64]:
        return self._together(self._begun(self._standardised(self._raw(self._views(X)))))

    def _explain(self, X: NDArray) -> NDArray[np.float64]:
        """Share the score by the squares of the channels; rows sum to it."""
        squares = self._begun(self._standardised(self._raw(self._views(X)))) ** 2
        total = squares.sum(axis=1, keepdims=True)
        return squares / np.where(total > 0.0, total, 1.0) * np.sqrt(total / X.shape[1])

    @property
    def reach(self) -> int:
        """The window but its last step."""
        return self.window - 1

    def reset(self) -> Self:
        """Forget the steps seen by :meth:`update`."""
        self.recent_, self.seen_ = np.empty((0, len(self.location_))), 0
        return self

    def update_many(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the scores of the next steps, ``X`` of shape (n, c): what ``update`` would say to each in turn."""
        X = self._check_X(X, reset=False)
        filled = forward_filled(X, self.recent_[-1] if len(self.recent_) else self.feature_medians_)
        past = self.recent_ if len(self.recent_) else np.repeat(filled[:1], self.window, axis=0)
        joined = np.concatenate([past, filled])
        self.recent_ = joined[-self.window :].copy()
        z = self._standardised(self._raw(sliding_window_view(joined[1:], self.window, axis=0)[:, :, ::-1]))
        young = max(0, self.window - 1 - self.seen_)
        z[:young] = np.minimum(z[:young], UNSEEN)
        self.seen_ = min(self.seen_ + len(X), self.window - 1)
        return self._together(z)

    def update(self, x: ArrayLike) -> float:
        """Return the score of the next step ``x`` of shape (c,)."""
        return self._update(self._check_step(x))

    def _update(self, x: NDArray[np.float64]) -> float:
        x = forward_filled(x, self.recent_[-1] if len(self.recent_) else self.feature_medians_)
        past = self.recent_ if len(self.recent_) else np.repeat(x, self.window, axis=0)
        self.recent_ = np.concatenate([past[1:], x])
        window = np.minimum(np.maximum((self.recent_[::-1].T - self.mean_) * self.weight_, -FAR), FAR)
        y = np.matmul(window[:, None], self.projection_)[:, 0]  # all channels in one call
        z = self._standardised(np.add.reduce(y * y, axis=1)[None])
        if self.seen_ < self.window - 1:
            z, self.seen_ = np.minimum(z, UNSEEN), self.seen_ + 1
        return float(self._together(z)[0])
