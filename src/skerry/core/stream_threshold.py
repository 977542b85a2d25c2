"""Thresholds for scores that come one after another and depend on each other.

A rule of :mod:`skerry.core.threshold` is set once, for scores that are exchangeable. Here are rules for streams:

* :class:`~skerry.core.spot.SPOT` - peaks over threshold, refitted with every new peak (Siffer et al., KDD
  2017, algorithm 1 and 2);
* :class:`~skerry.core.spot.DSPOT` - the same on scores less their moving mean, for scores whose level drifts
  (algorithm 3);
* :class:`AdaptiveConformal` - holds the share of flags over time at ``alpha`` for any sequence whatever, by moving
  its own level after each step (Gibbs and Candes, NeurIPS 2021);
* :class:`~skerry.core.block_conformal.BlockConformal` - a fixed cut such that a whole block of ordinary steps has no
  flag with probability ``1 - alpha``: blocks keep the dependence inside them.

The first three take one score at a time with ``update``, in memory that does not grow, and decide on a score
before they learn from it: no decision looks into the future. They are estimators, so ``skerry.core.persistence``
saves and resumes them in mid-stream.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator

from skerry.core.errors import DataError, ParameterError
from skerry.core.threshold import Conformal

__all__ = ["AdaptiveConformal", "StreamThreshold", "check_whole", "ordered_scores"]


def ordered_scores(scores: ArrayLike, what: str) -> NDArray[np.float64]:
    """Return the scores in order of time without the missing ones (NaN)."""
    s = np.asarray(scores, dtype=np.float64)
    if s.ndim != 1:
        raise DataError(f"{what} must have shape (T,), got {s.shape}")
    infinite = np.flatnonzero(np.isinf(s))
    if infinite.size:
        raise DataError(f"{what}: the score at row {infinite[0]} is infinite")
    return s[~np.isnan(s)]


def check_whole(name: str, value: object, least: int) -> None:
    """Raise ParameterError unless ``value`` is a whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ParameterError(f"{name} must be a whole number of at least {least}, got {value!r}")


class StreamThreshold(BaseEstimator):
    """Base of the rules that learn as they decide: ``fit`` on a past (or not at all), then ``update``.

    Attributes
    ----------
    threshold_ : float
        The cut in force: the next score strictly above it is flagged. Infinite while nothing can be flagged yet.
    """

    threshold_: float

    def fit(self, scores: ArrayLike) -> Self:
        """Forget everything and start from ``scores`` of shape (T,), in order of time; NaN is skipped."""
        self._start()
        s = ordered_scores(scores, type(self).__name__)
        if s.size < 2:
            raise DataError(f"{type(self).__name__}: needs at least 2 scores to start from, got {s.size}")
        self._learn(s)
        return self

    def update(self, score: float) -> bool:
        """Decide on the next score, then learn from it; a missing one (NaN) is neither flagged nor learned."""
        raise NotImplementedError

    def run(self, scores: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """Return what ``update`` would say to each score, and the threshold each was held against.

        Parameters
        ----------
        scores : array of shape (T,)
            The next T scores.

        Returns
        -------
        flags : ndarray of shape (T,), bool
        thresholds : ndarray of shape (T,), float64
        """
        if not hasattr(self, "threshold_"):
            self._start()
        s = np.asarray(scores, dtype=np.float64)
        flags, thresholds = np.zeros(s.size, dtype=bool), np.empty(s.size)
        for i, score in enumerate(s.tolist()):  # each decision changes the next threshold: no way around the loop
            thresholds[i] = self.threshold_
            flags[i] = self.update(score)
        return flags, thresholds

    def _start(self) -> None:
        raise NotImplementedError

    def _learn(self, s: NDArray[np.float64]) -> None:
        raise NotImplementedError


class AdaptiveConformal(StreamThreshold):
    """Adaptive conformal inference: over time, a share ``alpha`` of the steps is flagged, whatever the sequence.

    Each score is held against the conformal quantile, at the level in force, of the last ``window`` scores. A flag
    lowers the level by ``gamma (1 - alpha)``, no flag raises it by ``gamma alpha``.

    Parameters
    ----------
    alpha : float in (0, 0.5), default 0.01
        Share of flags aimed at; without anomalies it is the share of false alarms.
    gamma : float in (0, 1), default 0.005
        Step of the level; larger follows a change faster and wavers more.
    window : int >= 2, default 1000
        Scores remembered.

    Attributes
    ----------
    threshold_ : float
    level_ : float
        The level in force, ``alpha`` at the start. Below ``1 / (window + 1)`` nothing is flagged.

    Notes
    -----
    Gibbs and Candes (2021), eq. 2. For every sequence of T scores (their proposition 4.1)
    ``|share of flags - alpha| <= (max(alpha, 1 - alpha) + gamma) / (gamma T)``. A share is controlled, not a
    moment: anomalies use up the same allowance, and after a burst of flags the rule stays silent for a while.

    Examples
    --------
    >>> rule = AdaptiveConformal(alpha=0.05, gamma=0.05)
    >>> flags, _ = rule.run(np.cumsum(np.random.default_rng(0).normal(size=5000)))  # a random walk
    >>> bool(abs(flags.mean() - 0.05) < 0.01)
    True
    """

    def __init__(self, alpha: float = 0.01, gamma: float = 0.005, window: int = 1000) -> None:
        self.alpha = alpha
        self.gamma = gamma
        self.window = window

    def update(self, score: float) -> bool:
        """Decide on the next score, then learn from it; a missing one (NaN) is neither flagged nor learned."""
        if not hasattr(self, "threshold_"):
            self._start()
        score = float(score)
        if score != score:
            return False
        flag = score > self.threshold_ or self.threshold_ == -math.inf
        self.level_ += self.gamma * (self.alpha - flag)
        self._remember(score)
        self._set_cut()
        return flag

    def _start(self) -> None:
        Conformal(self.alpha)  # checks it
        if not 0.0 < self.gamma < 1.0:
            raise ParameterError(f"gamma must lie in (0, 1), got {self.gamma!r}")
        check_whole("window", self.window, 2)
        self.level_ = self.alpha
        self.threshold_ = math.inf
        self.recent_: list[float] = []  # in order of time, a ring once it is full
        self.sorted_: list[float] = []
        self.n_recent_ = 0

    def _learn(self, s: NDArray[np.float64]) -> None:
        self.recent_ = s[-self.window :].tolist()
        self.sorted_ = sorted(self.recent_)
        self.n_recent_ = len(self.recent_)
        self._set_cut()

    def _remember(self, score: float) -> None:
        if len(self.recent_) < self.window:
            self.recent_.append(score)
        else:
            i = self.n_recent_ % self.window
            del self.sorted_[bisect_left(self.sorted_, self.recent_[i])]
            self.recent_[i] = score
        insort(self.sorted_, score)
        self.n_recent_ += 1

    def _set_cut(self) -> None:
        m = len(self.sorted_)
        allowed = math.floor(self.level_ * (m + 1) + 1e-9) - 1  # remembered scores at or above a flagged one
        if allowed < 0:
            self.threshold_ = math.inf
        else:
            self.threshold_ = self.sorted_[m - 1 - allowed] if allowed < m else -math.inf
