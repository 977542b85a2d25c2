"""From scores to decisions.

A threshold is a small frozen value. ``fit(scores)`` turns it into a :class:`Cutoff`, which holds one number: a
score strictly above it is an outlier. Rules can be swapped after fitting without refitting the detector.

* :class:`Auto` - the upper fence of the adjusted boxplot (Hubert and Vandervieren, 2008), which allows for
  skewed scores and is not moved by up to a quarter of outliers.
* :class:`Contamination` - a fixed share of the reference scores.
* :class:`ExtremeValue` - peaks over threshold: a generalised Pareto tail (Siffer et al., 2017), Grimshaw fit.
* :class:`Conformal` - split-conformal p-values with Benjamini-Hochberg (Bates et al., 2023).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skerry.core.errors import DataError, ParameterError

__all__ = [
    "Auto",
    "Conformal",
    "Contamination",
    "ExtremeValue",
    "Threshold",
    "benjamini_hochberg",
    "conformal_p_value",
    "parse_threshold",
]


def _clean(scores: ArrayLike) -> NDArray[np.float64]:
    s = np.asarray(scores, dtype=np.float64).ravel()
    if s.size == 0:
        raise DataError("a threshold needs at least one score, got none")
    if not np.isfinite(s).all():
        raise DataError("a threshold needs finite scores: some are NaN or infinite")
    return s


def conformal_p_value(reference: ArrayLike, scores: ArrayLike) -> NDArray[np.float64]:
    """Return conformal p-values ``(1 + #{reference >= s}) / (1 + m)``.

    Parameters
    ----------
    reference : array of shape (m,)
        Scores of rows that were not used to fit the detector.
    scores : array of shape (n,)
        Scores to judge; higher is more anomalous.

    Returns
    -------
    ndarray of shape (n,), float64
        Super-uniform under exchangeability with the reference.

    Examples
    --------
    >>> conformal_p_value([1.0, 2.0, 3.0], [0.0, 2.0, 9.0])
    array([1.  , 0.75, 0.25])
    """
    ref = np.sort(_clean(reference))
    at_least = ref.size - np.searchsorted(ref, np.asarray(scores, dtype=np.float64), side="left")
    return np.asarray((1.0 + at_least) / (1.0 + ref.size), dtype=np.float64)


def benjamini_hochberg(p_values: ArrayLike, alpha: float) -> NDArray[np.bool_]:
    """Reject with false discovery rate at most ``alpha`` (Benjamini and Hochberg, 1995).

    Examples
    --------
    >>> benjamini_hochberg([0.001, 0.02, 0.9], 0.05)
    array([ True,  True, False])
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.size == 0:
        return np.zeros(0, dtype=bool)
    ordered = np.sort(p)
    below = np.flatnonzero(ordered <= alpha * np.arange(1, p.size + 1) / p.size)
    return np.zeros(p.size, dtype=bool) if below.size == 0 else p <= ordered[below[-1]]


class Threshold:
    """Base of the rules. A subclass is a frozen dataclass with ``cutoff(scores)`` and ``__str__``."""

    def cutoff(self, scores: ArrayLike) -> float:
        """Return the number above which (strictly) a score is an outlier."""
        raise NotImplementedError

    def flag(self, scores: ArrayLike, cutoff: float, p_values: NDArray | None) -> NDArray[np.bool_]:
        """Decide on a batch; only :class:`Conformal` looks at the whole batch."""
        return np.asarray(scores) > cutoff


@dataclass(frozen=True)
class Auto(Threshold):
    """The adjusted boxplot's upper fence, the default.

    ``Q3 + 1.5 exp(3 MC) IQR`` with the medcouple MC, or ``exp(4 MC)`` where MC < 0, but at most one IQR above the
    largest score: two regimes, which the medcouple reads as skewness, would put it where no score can come.
    Where a quarter or more of the scores are equal (IQR 0), the fence is the 99 % quantile.

    Examples
    --------
    >>> scores = np.r_[np.linspace(0, 1, 99), 9.0]
    >>> bool(1 < Auto().cutoff(scores) < 9)
    True
    """

    def cutoff(self, scores: ArrayLike) -> float:
        """Return the fence for ``scores`` of shape (n,)."""
        s = _clean(scores)
        q1, q3 = np.quantile(s, [0.25, 0.75])
        iqr = q3 - q1
        if iqr <= 0:
            return float(np.quantile(s, 0.99))
        mc = medcouple(s)
        return float(min(q3 + 1.5 * math.exp((3.0 if mc >= 0 else 4.0) * mc) * iqr, s.max() + iqr))

    def __str__(self) -> str:
        return "auto"


def medcouple(values: ArrayLike, max_points: int = 1001) -> float:
    """Return the medcouple, a robust skewness in [-1, 1] (Brys, Hubert and Struyf, 2004).

    Above ``max_points`` values the statistic is taken over that many equally spaced quantiles, which bounds the
    quadratic kernel matrix.

    Examples
    --------
    >>> medcouple([1, 2, 3, 4, 5])
    0.0
    """
    x = np.sort(np.asarray(values, dtype=np.float64))
    if x.size > max_points:
        x = np.quantile(x, np.linspace(0.0, 1.0, max_points))
    median = np.median(x)
    upper, lower = x[x > median] - median, x[x < median] - median
    ties = int((x == median).sum())
    if upper.size + lower.size == 0:
        return 0.0
    up, lo = np.r_[upper, np.zeros(ties)], np.r_[lower, np.zeros(ties)]
    spread = up[:, None] - lo[None, :]
    with np.errstate(invalid="ignore", divide="ignore"):
        kernel = (up[:, None] + lo[None, :]) / spread
    if ties:
        i, j = np.mgrid[:ties, :ties]
        kernel[upper.size :, lower.size :] = np.sign(ties - 1 - i - j)
    return float(np.median(kernel))


@dataclass(frozen=True)
class Contamination(Threshold):
    """Flag a fixed share of the reference scores.

    Parameters
    ----------
    fraction : float in [0, 0.5]
        Expected share of outliers. 0 flags only what is above every reference score (novelty).

    Examples
    --------
    >>> scores = np.array([1, 2, 3, 4, 5])
    >>> scores[scores > Contamination(0.2).cutoff(scores)]
    array([5])
    """

    fraction: float = 0.1

    def __post_init__(self) -> None:
        if not 0.0 <= self.fraction <= 0.5:
            raise ParameterError(f"contamination must lie in [0, 0.5], got {self.fraction!r}")

    def cutoff(self, scores: ArrayLike) -> float:
        """Return a hair above the (1 - fraction) empirical quantile of ``scores``; ties at it stay inliers.

        The hair is a millionth of the way to the next score, at least 8 units in the last place: the last bits of a
        row's score may depend on how many rows are scored with it, and must not decide.
        """
        s = _clean(scores)
        n_flag = int(np.floor(self.fraction * s.size + 1e-9))
        k = s.size - 1 - n_flag
        ordered = np.partition(s, (k, min(k + 1, s.size - 1)))
        quantile = ordered[k]
        part = 2.0**-20
        hair = part * ordered[k + 1] - part * quantile if n_flag else 0.0
        return float(quantile + max(hair, 8 * np.spacing(abs(quantile))))

    def __str__(self) -> str:
        return f"contamination:{self.fraction:g}"


@dataclass(frozen=True)
class ExtremeValue(Threshold):
    """Peaks over threshold: flag what a generalised Pareto tail exceeds with probability below ``risk``.

    Parameters
    ----------
    risk : float in (0, 0.1], default 1e-3
        Chance that an ordinary score lies above the threshold.
    tail : float in (0, 0.5], default 0.05
        Share of the scores that the tail is fitted to. Fewer than 10 peaks fall back to the largest scores.

    Notes
    -----
    Peaks ``y = s - t`` above the (1 - tail) quantile ``t`` follow a generalised Pareto law; the cut is
    ``t + (sigma / xi) ((risk n / n_peaks)^-xi - 1)`` (Siffer et al., 2017, eq. 1). Shape and scale come from
    probability-weighted moments, which always exist in closed form; the shape is held in [-0.5, 0.9].

    Examples
    --------
    >>> scores = np.random.default_rng(0).exponential(size=100_000)
    >>> bool(abs(ExtremeValue(1e-3).cutoff(scores) - np.log(1000)) < 0.3)
    True
    """

    risk: float = 1e-3
    tail: float = 0.05

    def __post_init__(self) -> None:
        if not 0.0 < self.risk <= 0.1:
            raise ParameterError(f"risk must lie in (0, 0.1], got {self.risk!r}")
        if not 0.0 < self.tail <= 0.5:
            raise ParameterError(f"tail must lie in (0, 0.5], got {self.tail!r}")

    def cutoff(self, scores: ArrayLike) -> float:
        """Return the quantile of order 1 - ``risk`` of the fitted tail."""
        s = np.sort(_clean(scores))
        n_peaks = min(max(int(self.tail * s.size), 10), s.size - 1)
        if n_peaks < 2:
            return float(s[-1])
        t = s[-n_peaks - 1]
        peaks = s[-n_peaks:] - t
        b0 = peaks.mean()
        if b0 <= 0:
            return float(s[-1])
        weight = np.arange(n_peaks - 1, -1, -1) / (n_peaks - 1)
        b1 = float((weight * peaks).mean())
        xi = float(np.clip(2.0 - b0 / (b0 - 2.0 * b1), -0.5, 0.9)) if b0 > 2.0 * b1 else 0.9
        sigma = b0 * (1.0 - xi)
        ratio = self.risk * s.size / n_peaks
        if ratio >= 1.0:
            return float(np.quantile(s, 1.0 - self.risk))
        tail = -math.log(ratio) if abs(xi) < 1e-9 else (ratio**-xi - 1.0) / xi
        return float(t + sigma * tail)

    def __str__(self) -> str:
        return f"extreme:{self.risk:g}"


@dataclass(frozen=True)
class Conformal(Threshold):
    """Split-conformal p-values; in a batch, Benjamini-Hochberg holds the false discovery rate at ``alpha``.

    Parameters
    ----------
    alpha : float in (0, 0.5), default 0.05
        Share of false alarms among the flagged rows of a batch, and the false-alarm rate of a single row.
    holdout : float in (0, 1), default 0.5
        Share of the fitting rows kept out of ``_fit`` and used as the reference.

    Notes
    -----
    The promise holds for rows exchangeable with the rows that ``fit`` saw (or with the rows given to
    ``calibrate``). Where these themselves contain outliers, p-values are too large: the promise holds still, and
    power is lost. Give a clean reference to get it back.

    Examples
    --------
    >>> float(Conformal(0.25).cutoff([1, 2, 3]))
    3.0
    """

    alpha: float = 0.05
    holdout: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 < self.alpha < 0.5:
            raise ParameterError(f"alpha must lie in (0, 0.5), got {self.alpha!r}")
        if not 0.0 < self.holdout < 1.0:
            raise ParameterError(f"holdout must lie in (0, 1), got {self.holdout!r}")

    def cutoff(self, scores: ArrayLike) -> float:
        """Return the score above which a single row's p-value is at most ``alpha`` (infinite if none can be)."""
        s = np.sort(_clean(scores))
        allowed = int(np.floor(self.alpha * (s.size + 1) + 1e-9)) - 1  # reference scores at or above
        return math.inf if allowed < 0 else float(s[s.size - 1 - allowed])

    def flag(self, scores: ArrayLike, cutoff: float, p_values: NDArray | None) -> NDArray[np.bool_]:
        """Apply Benjamini-Hochberg at ``alpha`` to the batch's p-values."""
        if p_values is None:
            raise DataError("conformal decisions need p-values: fit with threshold=Conformal(...)")
        return benjamini_hochberg(p_values, self.alpha)

    def __str__(self) -> str:
        return f"conformal:{self.alpha:g}"


_RULES: dict[str, Any] = {"contamination": Contamination, "extreme": ExtremeValue, "conformal": Conformal}


def parse_threshold(rule: str | float | Threshold) -> Threshold:
    """Return the rule for ``"auto"``, ``"contamination:0.01"``, ``"extreme:1e-3"``, ``"conformal:0.05"``.

    Parameters
    ----------
    rule : str, float or Threshold
        A number is read as a contamination.

    Raises
    ------
    ParameterError
        For an unknown rule or a number out of range.

    Examples
    --------
    >>> parse_threshold("extreme:1e-4")
    ExtremeValue(risk=0.0001, tail=0.05)
    """
    if isinstance(rule, Threshold):
        return rule
    if isinstance(rule, (int, float)) and not isinstance(rule, bool):
        return Contamination(float(rule))
    name, _, value = str(rule).partition(":")
    if name == "auto" and not value:
        return Auto()
    if name not in _RULES:
        raise ParameterError(
            f"unknown threshold {rule!r}: use auto, contamination:0.01, extreme:1e-3 or conformal:0.05"
        )
    if not value:
        return _RULES[name]()
    try:
        number = float(value)
    except ValueError:
        raise ParameterError(f"threshold {rule!r}: {value!r} is not a number") from None
    return _RULES[name](number)
