"""Streaming peaks over threshold: the tail of the scores is fitted, and refitted with every new peak.

Siffer, Fouque, Termier and Largouet, "Anomaly detection in streams with extreme value theory", KDD 2017: SPOT is their
algorithm 1 and 2, DSPOT, for scores whose level drifts, their algorithm 3.
"""

from __future__ import annotations

import math
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skerry.core.errors import DataError
from skerry.core.stream_threshold import StreamThreshold, check_whole, ordered_scores
from skerry.core.threshold import ExtremeValue

__all__ = ["DSPOT", "SPOT"]

PRIOR_PEAKS = 50  # of an exponential tail: what the shape is drawn to as long as peaks are few
WAKE = 64  # scores after a flag that belong to it: a detector that looks back still sees the anomaly
SLACK = 3.0  # deviations of a Poisson count by which ordinary flags may outnumber those expected


class SPOT(StreamThreshold):
    """Streaming peaks over threshold: flag what ordinary scores exceed with probability below ``risk``.

    Parameters
    ----------
    risk : float in (0, 0.1], default 1e-3
        Chance that an ordinary score is flagged.
    tail : float in (0, 0.5], default 0.05
        Share of the first scores that are peaks; what lies above their lowest is a peak later on.
    warmup : int >= 20, default 1000
        Scores that are gathered before the first decision where ``fit`` was not called.
    max_peaks : int >= 20, default 1000
        The tail is fitted to the latest so many peaks, which bounds memory.

    Attributes
    ----------
    threshold_ : float
    peak_level_ : float
        Scores above it are peaks.
    n_scores_, n_peaks_ : int
        Ordinary scores and peaks seen since the start.

    Notes
    -----
    The cut is ``t + (sigma / xi) ((risk n / n_peaks)^-xi - 1)`` (eq. 1 of the paper), fitted as in
    :class:`~skerry.core.threshold.ExtremeValue` but for the shape ``xi``, which is multiplied by
    ``k / (k + 50)`` with ``k`` peaks: a few of them say little about a tail, and a far quantile of a shape guessed too
    heavy is beyond every anomaly. Further rules are ours:

    * The paper learns from no flagged score. That cuts the tail short, the cut sinks, and the share of flags among
      ordinary scores settles at five to six times ``risk`` (measured on five laws). So the first of the flags within
      64 steps is learned too, as if it lay at the cut, while no more than ``m = risk n`` have been: as many as
      ordinary scores would give. First flags beyond those expected, up to ``m + 3 sqrt(m) + 3``, lower the risk that
      the cut is set for, by ``(1 + m) / (1 + flags)``: a first cut that is too low by chance recovers. From 250 or
      1,000 scores on, at risk 2e-4, the share of flags is then 0.8 to 1.9 times ``risk`` on four laws. No number of
      outliers raises the cut at will.
    * The 64 scores after such a first flag teach nothing while flags are that few: detectors that look back still
      see the anomaly.
    * So that a lasting change of level does not alarm for ever, the rule starts anew from the latest ``warmup``
      scores once more than half of them were flagged.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> rule = SPOT(risk=1e-3).fit(rng.exponential(size=5000))
    >>> rule.update(1.0), rule.update(30.0)
    (False, True)
    """

    n_recent_: int
    n_recent_flags_: int

    def __init__(self, risk: float = 1e-3, tail: float = 0.05, warmup: int = 1000, max_peaks: int = 1000) -> None:
        self.risk = risk
        self.tail = tail
        self.warmup = warmup
        self.max_peaks = max_peaks

    def update(self, score: float) -> bool:
        """Decide on the next score, then learn from it; a missing one (NaN) is neither flagged nor learned."""
        if not hasattr(self, "threshold_"):
            self._start()
        score = float(score)
        if not math.isfinite(score):  # an infinite one is flagged, but teaches nothing
            return score > self.threshold_
        flag = score > self.threshold_
        i = self.n_recent_ % self.warmup
        self.n_recent_flags_ += int(flag) - int(self.recent_flags_[i])
        self.recent_[i], self.recent_flags_[i] = score, flag
        self.n_recent_ += 1
        if not self.n_scores_:  # still warming up
            if self.n_recent_ == self.warmup:
                self._calibrate(self.recent_)
        elif flag and 2 * self.n_recent_flags_ > self.warmup:
            self._calibrate(np.roll(self.recent_, -(self.n_recent_ % self.warmup)))
            self.recent_flags_[:] = False
            self.n_recent_flags_ = 0
        else:
            self._absorb(score, flag)
        return flag

    def _start(self) -> None:
        ExtremeValue(self.risk, self.tail)  # checks both
        check_whole("warmup", self.warmup, 20)
        check_whole("max_peaks", self.max_peaks, 20)
        self.threshold_ = self.cut_ = self.peak_level_ = math.inf
        self.n_scores_, self.n_peaks_ = 0, 0
        self.n_learned_flags_ = self.n_first_flags_ = 0.0
        self.n_since_first_ = WAKE
        self.peaks_ = np.zeros(0)
        self.recent_ = np.zeros(self.warmup)
        self.recent_flags_ = np.zeros(self.warmup, dtype=bool)
        self.n_recent_ = self.n_recent_flags_ = 0

    def _learn(self, s: NDArray[np.float64]) -> None:
        last = s[-self.warmup :]
        self.recent_[: last.size] = last
        self.n_recent_ = last.size
        self._calibrate(s)

    def _calibrate(self, s: NDArray[np.float64]) -> None:
        """Take the tail from scores in order of time."""
        ordered = np.sort(s)
        n_peaks = min(max(int(self.tail * s.size), 10), s.size - 1)
        self.peak_level_ = float(ordered[-n_peaks - 1])
        self.n_scores_, self.n_peaks_ = s.size, n_peaks
        latest = ordered[-n_peaks:] if n_peaks <= self.max_peaks else s[s > self.peak_level_][-self.max_peaks :]
        self.peaks_ = latest - self.peak_level_
        self.n_learned_flags_ = self.n_first_flags_ = self.risk * s.size  # those among the scores themselves
        self._set_cut(float(ordered[-1]))
        self.threshold_ = self.cut_

    def _set_cut(self, highest: float) -> None:
        """Set the cut for the present peaks; ``highest`` where they have no spread."""
        expected = self.risk * self.n_scores_
        risk = self.risk * (1.0 + expected) / (1.0 + max(self.n_first_flags_, expected))
        excess = _pareto_excess(self.peaks_, risk * self.n_scores_ / self.n_peaks_)
        self.cut_ = highest if math.isnan(excess) else self.peak_level_ + excess

    def _absorb(self, score: float, flag: bool) -> None:
        self._learn_tail(score, flag)
        self.threshold_ = self.cut_

    def _learn_tail(self, score: float, flag: bool) -> None:
        expected = self.risk * self.n_scores_
        self.n_since_first_ += 1
        plausible = self.n_first_flags_ < expected + SLACK * (math.sqrt(expected) + 1.0)
        if flag:
            if self.n_since_first_ <= WAKE:
                return
            self.n_since_first_ = 0
            if plausible:
                self.n_first_flags_ += 1
                self._set_cut(self.cut_)
            if self.n_learned_flags_ >= expected:
                return
            self.n_learned_flags_ += 1
            score = min(score, self.cut_)
        elif self.n_since_first_ <= WAKE and plausible:
            return
        self.n_scores_ += 1
        if score > self.peak_level_:
            if self.peaks_.size < self.max_peaks:
                self.peaks_ = np.append(self.peaks_, score - self.peak_level_)
            else:
                self.peaks_[self.n_peaks_ % self.max_peaks] = score - self.peak_level_
            self.n_peaks_ += 1
            self._set_cut(self.cut_)


def _pareto_excess(peaks: NDArray[np.float64], ratio: float) -> float:
    """Return the excess that a share ``ratio`` of the peaks goes beyond, NaN where they have no spread.

    A generalised Pareto law by probability-weighted moments, its shape held in [-0.5, 0.9] and drawn to 0.
    """
    y = np.sort(peaks)
    b0 = float(y.mean()) if y.size > 1 else 0.0
    if b0 <= 0.0:
        return math.nan
    if ratio >= 1.0:
        return 0.0
    b1 = float(np.mean(np.arange(y.size - 1, -1, -1) / (y.size - 1) * y))
    xi = min(max(2.0 - b0 / (b0 - 2.0 * b1), -0.5), 0.9) if b0 > 2.0 * b1 else 0.9
    xi *= y.size / (y.size + PRIOR_PEAKS)
    sigma = b0 * (1.0 - xi)
    return sigma * (-math.log(ratio) if abs(xi) < 1e-9 else (ratio**-xi - 1.0) / xi)


class DSPOT(SPOT):
    """SPOT for scores whose level drifts: it judges a score less the mean of the last ``depth`` ordinary ones.

    Parameters
    ----------
    risk, tail, warmup, max_peaks
        As for :class:`SPOT`; ``warmup`` must exceed ``depth`` by at least 20.
    depth : int >= 1, default 50
        Ordinary scores in the moving mean.

    Attributes
    ----------
    threshold_ : float
        The cut in force, in the units of the scores: moving mean plus the tail's cut.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> climbing = rng.normal(size=6000) + np.linspace(0, 30, 6000)
    >>> climbing[5000] += 8
    >>> bool(SPOT().fit(climbing[:1000]).run(climbing[1000:])[0][4000])  # its tail has swallowed the climb
    False
    >>> bool(DSPOT().fit(climbing[:1000]).run(climbing[1000:])[0][4000])
    True
    """

    def __init__(
        self,
        risk: float = 1e-3,
        tail: float = 0.05,
        warmup: int = 1000,
        max_peaks: int = 1000,
        depth: int = 50,
    ) -> None:
        super().__init__(risk, tail, warmup, max_peaks)
        self.depth = depth

    def _start(self) -> None:
        check_whole("depth", self.depth, 1)
        super()._start()
        check_whole("warmup", self.warmup, self.depth + 20)
        self.window_ = np.zeros(self.depth)
        self.window_sum_ = 0.0
        self.n_window_ = 0

    def fit(self, scores: ArrayLike) -> Self:
        """Forget everything and start from ``scores`` of shape (T,), in order of time; NaN is skipped."""
        s = ordered_scores(scores, type(self).__name__)
        if s.size < self.depth + 2:
            raise DataError(f"DSPOT: needs at least depth + 2 = {self.depth + 2} scores to start from, got {s.size}")
        return super().fit(s)

    def _calibrate(self, s: NDArray[np.float64]) -> None:
        means = np.convolve(s, np.full(self.depth, 1.0 / self.depth), mode="valid")[:-1]
        super()._calibrate(s[self.depth :] - means)
        self.window_ = s[-self.depth :].copy()
        self.window_sum_, self.n_window_ = float(self.window_.sum()), 0
        self.threshold_ = self.cut_ + self.window_sum_ / self.depth

    def _absorb(self, score: float, flag: bool) -> None:
        self._learn_tail(score - self.window_sum_ / self.depth, flag)
        if not flag:
            i = self.n_window_ % self.depth
            self.window_sum_ += score - float(self.window_[i])
            self.window_[i] = score
            self.n_window_ += 1
            if i == self.depth - 1:  # rounding must not pile up over an endless stream
                self.window_sum_ = float(self.window_.sum())
        self.threshold_ = self.cut_ + self.window_sum_ / self.depth
