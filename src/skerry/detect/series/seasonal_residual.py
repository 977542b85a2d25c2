"""SeasonalResidual: what remains of a series when its level and its cycles are taken away, by medians throughout.

The decomposition is the additive one of STL (Cleveland et al., Journal of Official Statistics 1990) and MSTL
(Bandara, Hyndman and Bergmeir, 2021) with medians in the place of local regressions: no outlier bends a median.
"""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft, next_fast_len, rfft
from sklearn.utils._param_validation import Interval, StrOptions

from skerry.core.errors import ParameterError
from skerry.core.series_detector import interpolated
from skerry.detect.series.per_channel import PerChannel

__all__ = ["SeasonalResidual", "find_periods"]

LEAST_CORRELATION = 0.2  # of a series with itself one period later
LEAST_CYCLES = 3
LARGE = 20.0  # residual, in usual ones, up to which it counts in full; beyond it only its logarithm does


def find_periods(x: NDArray[np.float64], most: int = 2) -> list[int]:
    """Return the periods of a series (T,), most marked first, by the peaks of its autocorrelation.

    A period is a peak over 0.2 between two troughs, seen at least three times; multiples of one already found count
    only if what it leaves still has them.

    >>> t = np.arange(2_000)
    >>> find_periods(np.sin(2 * np.pi * t / 24) + 0.5 * np.sin(2 * np.pi * t / 168))
    [24, 168]
    """
    found: list[int] = []
    rest = np.asarray(x, dtype=np.float64) - np.median(x)
    for _ in range(most):
        period = _strongest(rest)
        if period is None or period in found:
            break
        found.append(period)
        rest = rest - _cycle(rest, period)
    return found


def _strongest(x: NDArray[np.float64]) -> int | None:
    n = len(x)
    longest = n // LEAST_CYCLES
    if longest < 4:
        return None
    # beyond four usual deviations a value says nothing about the cycle
    spread = 1.4826 * np.median(np.abs(x))
    bounded = np.clip(x, -4 * spread, 4 * spread) if spread > 0 else x
    bounded = bounded - bounded.mean()
    power = np.abs(rfft(bounded, next_fast_len(2 * n))) ** 2
    r = irfft(power, next_fast_len(2 * n))[: longest + 2]
    if not r[0] > 0:
        return None
    r = r / r[0] * n / (n - np.arange(len(r)))
    below = np.flatnonzero(r < 0.0)  # a level that wanders never comes back below 0 within a period
    if not below.size:
        return None
    start = max(int(below[0]), 2)
    middle = r[start : longest + 1]
    peaks = np.flatnonzero((middle >= r[start - 1 : longest]) & (middle >= r[start + 1 : longest + 2])) + start
    peaks = peaks[r[peaks] > LEAST_CORRELATION]
    if not peaks.size:
        return None
    # the shortest that is nearly as high as the highest: its multiples are as high but for chance
    period = int(peaks[r[peaks] >= 0.8 * r[peaks].max()][0])
    # a later multiple that is as high places it better than its own blunt peak
    for k in range(2, (longest - 2) // (period + 1) + 1):
        reach = min(k, max(1, period // 4))
        near = np.arange(k * period - reach, min(k * period + reach + 1, len(r)))  # the period may have grown
        if near.size and r[near].max() >= 0.95 * r[period]:
            period = round(int(near[r[near].argmax()]) / k)
    return period


def _cycle(x: NDArray[np.float64], period: int) -> NDArray[np.float64]:
    """Return the median of each phase at every step."""
    n = len(x)
    wide = np.full(-(-n // period) * period, np.nan)
    wide[:n] = x
    phases = np.nanmedian(wide.reshape(-1, period), axis=0)
    return np.tile(phases, len(wide) // period)[:n]


class SeasonalResidual(PerChannel):
    """Residual of each channel from a moving median and up to two median cycles.

    Parameters
    ----------
    periods : "auto" or sequence of int, default "auto"
        Cycle lengths in steps, at most half of the series; "auto" finds them in each channel of the series that is
        scored (:func:`find_periods`).
    trend_window : int or "auto", default "auto"
        Steps of the moving median; "auto" takes twice the longest period and one, or a tenth of the series where
        there is no period.
    channel_reduce : {"max", "mean"}, default "max"
    threshold : str, float or Threshold, default "auto"

    Notes
    -----
    Offline. The score of a channel is its residual over 1.4826 times the median absolute one, beyond 20 its
    logarithm. A missing value scores 0.

    Examples
    --------
    >>> x = np.sin(2 * np.pi * np.arange(960) / 48)
    >>> x[700:712] = 0.0
    >>> s = SeasonalResidual().fit_score(x + 1e-3 * np.cos(np.arange(960) ** 2))
    >>> bool(700 <= s.argmax() < 712)
    True
    """

    _parameter_constraints = PerChannel._parameter_constraints | {
        "periods": [StrOptions({"auto"}), "array-like"],
        "trend_window": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        periods: str | Iterable[int] = "auto",
        trend_window: int | str = "auto",
        channel_reduce: str = "max",
        threshold: Any = "auto",
    ) -> None:
        self.periods = periods
        self.trend_window = trend_window
        self.channel_reduce = channel_reduce
        self.threshold = threshold

    def _fit(self, X: NDArray) -> None:
        """Nothing is learned but the medians of the channels."""
        if not isinstance(self.periods, str):
            for period in self.periods:
                if not isinstance(period, Integral) or isinstance(period, bool) or period < 2:
                    raise ParameterError(f"periods must be whole numbers of at least 2, got {period!r}")

    def residual(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what level and cycles leave of one channel (T,), without missing values."""
        import polars as pl

        n = len(x)
        periods = find_periods(x) if isinstance(self.periods, str) else [int(p) for p in self.periods if 2 * p <= n]
        window = self.trend_window
        if isinstance(window, str):
            window = 2 * max(periods) + 1 if periods else max(n // 10, 25) | 1
        window = min(int(window), n)
        rest = x
        for _ in range(2):  # the second time the level is taken from what has no cycles
            level = pl.Series(rest).rolling_median(window, min_samples=1, center=True).to_numpy()
            flat = x - level
            cycles = np.zeros(n)
            for period in sorted(periods):
                cycles += _cycle(flat - cycles, period)
            rest = x - cycles
        return x - level - cycles

    def _channels(self, X: NDArray) -> NDArray[np.float64]:
        filled = interpolated(X, self.feature_medians_)
        out = np.zeros(filled.shape)
        for j in range(filled.shape[1]):
            x = filled[:, j]
            reach = np.abs(x).max()
            if len(x) < 4 or np.ptp(x) <= 1e-12 * reach:
                continue
            r = np.abs(self.residual(x / reach))
            usual = 1.4826 * np.median(r)
            rms = float(np.sqrt(np.mean(r**2)))
            r /= max(usual if usual > 1e-3 * rms else rms, 1e-12)
            out[:, j] = np.where(r > LARGE, LARGE + np.log1p(np.maximum(r - LARGE, 0.0)), r)
        return np.where(np.isnan(X), 0.0, out)
