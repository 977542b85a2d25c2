"""Forecast: a step is odd if a linear forecast from the steps before it fails more than it usually does."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray
from sklearn.utils._param_validation import Interval

from skerry.core.series_detector import SeriesDetector, forward_filled

__all__ = ["Forecast"]

BLOCK_VALUES = 1 << 21  # lagged values held at once
LARGE = 20.0  # residual, in usual ones, up to which it counts in full; beyond it only its logarithm does


class Forecast(SeriesDetector):
    """Residual of a ridge regression of each channel on its own lags and on the last step of all channels.

    Parameters
    ----------
    lags : int, default 32
        Steps of its own past that a channel is forecast from.
    alpha : float, default 1e-3
        Ridge penalty, as a share of the mean diagonal of the Gram matrix.
    refits : int, default 2
        Times that the regression is repeated without the steps whose residual was over five usual ones, so that the
        outliers of the training series do not teach it.
    smoothing : int, default 1
        The score of a step is the mean over this many steps, itself the last: events that last count for more.
    threshold : str, float or Threshold, default "auto"

    Attributes
    ----------
    coef_ : ndarray of shape (c, lags + c + 1)
        Per channel: weights of its lags (latest first), of the last step of every channel, and the offset, in
        standardised units.
    location_, scale_ : ndarray of shape (c,)
        Median and spread of the channels.
    usual_ : ndarray of shape (c,)
        Usual size of each channel's residual: 1.4826 times the median absolute one, or its root mean square where
        that is 0.

    Notes
    -----
    Causal, and follows a stream with ``update``. The score is the root mean square over the channels of the residual
    in usual ones; the first ``lags`` steps of a series have too little past to count for more than one usual residual.
    A missing value is forecast like any other and scores 0 itself; for later steps it is the last
    value seen.

    Examples
    --------
    >>> x = np.sin(np.arange(600) / 5)
    >>> x[400] = 1.5
    >>> int(Forecast(lags=8).fit_score(x).argmax())
    400
    """

    causal = True
    _parameter_constraints = {
        "lags": [Interval(Integral, 1, None, closed="left")],
        "alpha": [Interval(Real, 0, None, closed="neither")],
        "refits": [Interval(Integral, 0, None, closed="left")],
        "smoothing": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self, lags: int = 32, alpha: float = 1e-3, refits: int = 2, smoothing: int = 1, threshold: Any = "auto"
    ) -> None:
        self.lags = lags
        self.alpha = alpha
        self.refits = refits
        self.smoothing = smoothing
        self.threshold = threshold

    def _fit(self, X: NDArray) -> None:
        filled = forward_filled(X, self.feature_medians_)
        self.location_ = np.median(filled, axis=0)
        away = np.abs(filled - self.location_)
        reach = away.max(axis=0)
        unit = np.where(reach > 0, reach, 1.0)
        spread = unit * np.sqrt(np.mean((away / unit) ** 2, axis=0))
        # a channel that varies by rounding alone is constant
        self.scale_ = np.where(spread > np.maximum(1e-12 * np.abs(self.location_), 1e-150), spread, np.inf)
        z = self._standardised(filled)
        n, c = z.shape
        p = self.lags + c + 1
        self.coef_ = np.zeros((c, p))
        keep = ~np.isnan(X)
        for _ in range(self.refits + 1):
            grams, targets = np.zeros((c, p, p)), np.zeros((c, p))
            for steps, lagged in self._blocks(z):
                for j in range(c):
                    rows = keep[steps, j]
                    features = self._features(lagged, j)[rows]
                    grams[j] += features.T @ features
                    targets[j] += features.T @ z[steps, j][rows]
            for j in range(c):
                penalty = self.alpha * max(np.trace(grams[j]) / p, 1e-12)
                self.coef_[j] = np.linalg.solve(grams[j] + penalty * np.eye(p), targets[j])
            self.usual_ = np.ones(c)
            residual = np.abs(self._residuals(z))
            observed = np.where(np.isnan(X), np.nan, residual)
            observed[: min(self.lags, n // 2)] = np.nan  # forecast from the made-up past before the first step
            for j in range(c):
                r = observed[~np.isnan(observed[:, j]), j]
                usual = 1.4826 * np.median(r) if r.size else 0.0
                rms = float(np.sqrt(np.mean(r**2))) if r.size else 0.0
                self.usual_[j] = max(usual if usual > 1e-9 * rms else rms, 1e-9)
            keep = ~np.isnan(X) & (residual <= 5.0 * self.usual_)
        self.reset()

    def _standardised(self, filled: NDArray) -> NDArray[np.float64]:
        return np.minimum(np.maximum((filled - self.location_) / self.scale_, -1e6), 1e6)

    def _blocks(self, z: NDArray):
        """Yield (steps, lagged values of shape (steps, c, lags), latest first)."""
        n, c = z.shape
        padded = np.concatenate([np.repeat(z[:1], self.lags, axis=0), z])
        views = sliding_window_view(padded, self.lags, axis=0)[:, :, ::-1]  # views[t] are the steps before t
        size = max(1, BLOCK_VALUES // (c * self.lags))
        for start in range(0, n, size):
            steps = np.arange(start, min(start + size, n))
            yield steps, views[steps]

    def _features(self, lagged: NDArray, j: int) -> NDArray[np.float64]:
        return np.concatenate([lagged[:, j], lagged[:, :, 0], np.ones((len(lagged), 1))], axis=1)

    def _residuals(self, z: NDArray) -> NDArray[np.float64]:
        """Return the residuals in usual ones, (T, c)."""
        out = np.empty(z.shape)
        for steps, lagged in self._blocks(z):
            for j in range(z.shape[1]):
                # a sum per row, so that a row does not depend on its block
                forecast = np.einsum("ij,j->i", self._features(lagged, j), self.coef_[j])
                out[steps, j] = (z[steps, j] - forecast) / self.usual_[j]
        return out

    def _parts(self, X: NDArray) -> NDArray[np.float64]:
        r = _bent(np.abs(self._residuals(self._standardised(forward_filled(X, self.feature_medians_)))))
        r[: self.lags] = np.minimum(r[: self.lags], 1.0)
        return np.where(np.isnan(X), 0.0, r)

    def _score(self, X: NDArray) -> NDArray[np.float64]:
        return self._smoothed(np.sqrt(np.mean(self._parts(X) ** 2, axis=1)))

    def _smoothed(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the mean of the last ``smoothing`` values, fewer at the start, along the first axis."""
        if self.smoothing == 1:
            return values
        padded = np.concatenate([np.zeros((self.smoothing - 1, *values.shape[1:])), values])
        sums = sliding_window_view(padded, self.smoothing, axis=0).sum(axis=-1)
        counts = np.minimum(np.arange(1, len(values) + 1), self.smoothing)
        return sums / counts.reshape(-1, *(1,) * (values.ndim - 1))

    def _explain(self, X: NDArray) -> NDArray[np.float64]:
        """Share the score by squared residual; rows sum to it."""
        squares = self._parts(X) ** 2
        total = squares.sum(axis=1, keepdims=True)
        return self._smoothed(squares / np.where(total > 0, total, 1.0) * np.sqrt(total / X.shape[1]))

    @property
    def reach(self) -> int:
        """The lags of the oldest residual that is averaged."""
        return self.lags + self.smoothing - 1

    def reset(self) -> Self:
        """Forget the steps seen by :meth:`update`."""
        self.recent_, self.seen_ = np.empty((0, len(self.location_))), 0
        self.recent_scores_ = np.empty(0)
        return self

    def update_many(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the scores of the next steps, ``X`` of shape (n, c): what ``update`` would say to each in turn."""
        X = self._check_X(X, reset=False)
        filled = forward_filled(X, self.recent_[-1] if len(self.recent_) else self.feature_medians_)
        past = self.recent_ if len(self.recent_) else np.repeat(filled[:1], self.lags, axis=0)
        joined = np.concatenate([past, filled])
        self.recent_ = joined[-self.lags :].copy()
        r = _bent(np.abs(self._residuals(self._standardised(joined))[self.lags :]))
        young = max(0, self.lags - self.seen_)
        r[:young] = np.minimum(r[:young], 1.0)
        self.seen_ = min(self.seen_ + len(X), self.lags)
        r[np.isnan(X)] = 0.0
        known, scores = self.recent_scores_, np.sqrt(np.mean(r**2, axis=1))
        self.recent_scores_ = np.concatenate([known, scores])[-self.smoothing :]
        return self._smoothed(np.concatenate([known, scores]))[len(known) :]

    def update(self, x: ArrayLike) -> float:
        """Return the score of the next step ``x`` of shape (c,)."""
        return self._update(self._check_step(x))

    def _update(self, x: NDArray[np.float64]) -> float:
        filled = forward_filled(x, self.recent_[-1] if len(self.recent_) else self.feature_medians_)
        past = self.recent_ if len(self.recent_) else np.repeat(filled, self.lags, axis=0)
        recent = np.concatenate([past, filled])
        z = self._standardised(recent)
        own, last, offset = self.coef_[:, : self.lags], self.coef_[:, self.lags : -1], self.coef_[:, -1]
        forecast = np.einsum("ij,ji->i", own, z[-2::-1]) + last @ z[-2] + offset
        r = _bent(np.abs(z[-1] - forecast) / self.usual_)
        if self.seen_ < self.lags:
            r, self.seen_ = np.minimum(r, 1.0), self.seen_ + 1
        self.recent_ = recent[1:]
        r[np.isnan(x[0])] = 0.0
        score = math.sqrt(float(r @ r) / len(r))
        if self.smoothing == 1:
            return score
        self.recent_scores_ = np.append(self.recent_scores_, score)[-self.smoothing :]
        return float(self.recent_scores_.mean())


def _bent(r: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return residuals of which only the logarithm counts beyond ``LARGE``."""
    return np.minimum(r, LARGE) + np.log1p(np.maximum(r - LARGE, 0.0))
