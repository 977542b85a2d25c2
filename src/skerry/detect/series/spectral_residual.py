"""SpectralResidual: what is left of a series when the smooth part of its log spectrum is taken away.

Ren et al., "Time-series anomaly detection service at Microsoft", KDD 2019, section 3.1; after Hou and Zhang (2007).
"""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.fft import fft, ifft, next_fast_len
from scipy.ndimage import uniform_filter1d
from sklearn.utils._param_validation import Interval

from skerry.core.series_detector import interpolated
from skerry.detect.series.per_channel import PerChannel

__all__ = ["SpectralResidual"]

TINY = 1e-8
EXTENSION = 5  # estimated points behind the end, and the gradients they follow


class SpectralResidual(PerChannel):
    """Saliency map of each channel, relative to its own moving mean.

    Parameters
    ----------
    spectrum_window : int, default 3
        Frequencies that the log amplitude is averaged over (q of the paper).
    score_window : int, default 21
        Steps before a point that its saliency is compared with (z of the paper).
    channel_reduce : {"max", "mean"}, default "max"
    threshold : str, float or Threshold, default "auto"

    Notes
    -----
    A = amplitude of the spectrum, L = log A, R = L - mean of L over q frequencies; saliency S is the amplitude of the
    inverse transform of ``exp(R + i phase)``; the score is ``(S - mean of S before) / mean of S before``. As in the
    paper the series is continued by five estimated points, because the end of a transform is poor. The series is
    also mirrored at its ends, or the jump from the last to the first step would be the most salient. Sharp spikes
    and steps are found; slow changes of shape are not. Offline, of order T log T.

    Examples
    --------
    >>> x = np.sin(np.arange(600) / 5)
    >>> x[400] = 3.0
    >>> int(SpectralResidual().fit_score(x).argmax())
    400
    """

    _parameter_constraints = PerChannel._parameter_constraints | {
        "spectrum_window": [Interval(Integral, 1, None, closed="left")],
        "score_window": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        spectrum_window: int = 3,
        score_window: int = 21,
        channel_reduce: str = "max",
        threshold: Any = "auto",
    ) -> None:
        self.spectrum_window = spectrum_window
        self.score_window = score_window
        self.channel_reduce = channel_reduce
        self.threshold = threshold

    def _fit(self, X: NDArray) -> None:
        """Nothing is learned but the medians of the channels."""

    def _saliency(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        n = len(x)
        m = min(EXTENSION, n - 1)
        last = x[-1]
        gradients = (last - x[-m - 1 : -1]) / np.arange(m, 0, -1)
        behind = np.full(EXTENSION, x[-m] + gradients.mean() * m)
        known = np.concatenate([x, behind])
        length = next_fast_len(2 * n + 2 * len(known))
        wide = np.pad(known, (n - 1, length - (n - 1) - len(known)), mode="reflect")
        spectrum = fft(wide - wide.mean())
        amplitude = np.abs(spectrum)
        floor = TINY * max(amplitude.max(), 1e-300)
        log = np.log(np.maximum(amplitude, floor))
        residual = np.exp(log - uniform_filter1d(log, self.spectrum_window, mode="wrap"))
        return np.abs(ifft(spectrum / np.maximum(amplitude, floor) * residual))[n - 1 : 2 * n - 1]

    def _channels(self, X: NDArray) -> NDArray[np.float64]:
        filled = interpolated(X, self.feature_medians_)
        out = np.zeros(filled.shape)
        for j in range(filled.shape[1]):
            x = filled[:, j]
            reach = np.abs(x).max()
            if len(x) < 3 or np.ptp(x) <= 1e-12 * reach:
                continue
            s = self._saliency(x / reach)
            sums = np.concatenate([[0.0], np.cumsum(s)])
            first = np.maximum(np.arange(len(s)) - self.score_window, 0)
            count = np.maximum(np.arange(len(s)) - first, 1)
            before = np.where(np.arange(len(s)) > 0, (sums[:-1] - sums[first]) / count, s[0])
            usual = np.maximum(before, 0.1 * s.mean())
            out[:, j] = np.maximum((s - before) / usual, 0.0)
        return out
