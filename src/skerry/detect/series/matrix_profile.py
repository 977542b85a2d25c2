"""MatrixProfile: a moment is odd if no other stretch of the series has its shape.

Yeh et al., "Matrix profile I", ICDM 2016 (discords); the compiled join is :mod:`skerry.kernels.matrix_profile`.
"""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils._param_validation import Interval, StrOptions

from skerry.core.series_detector import interpolated
from skerry.detect.series.per_channel import PerChannel
from skerry.kernels.matrix_profile import join_profile, self_profile

__all__ = ["MatrixProfile"]


class MatrixProfile(PerChannel):
    """Distance of each window, its level and scale removed, to the most similar other window.

    Parameters
    ----------
    window : int, default 64
        Steps in a window; about one cycle, or the length of the events looked for.
    exclude : float, default 0.5
        Windows nearer than this share of ``window`` are the same moment and no witnesses.
    reference : {"self", "training"}, default "self"
        Where to look for the similar window: in the series that is scored, or in that of ``fit``. The series of
        ``fit`` itself is always compared with itself.
    channel_reduce : {"max", "mean"}, default "max"
        How the channels' scores become one.
    threshold : str, float or Threshold, default "auto"

    Attributes
    ----------
    window_ : int
        ``window``, or half of the training series where that is shorter.
    training_ : ndarray of shape (T, c)
        The series of ``fit``, gaps filled.

    Notes
    -----
    A window's score is ``sqrt(2 (1 - r))`` with r its best correlation: the z-normalised distance of the paper over
    ``sqrt(window)``, in [0, 1.41]. A step takes the mean of the windows that contain it. Constant windows resemble
    each other and nothing else. Windows with a missing value are compared after it was interpolated, and count no
    more than an ordinary one. Offline: cost is of order T^2 per channel, memory of order T.

    Examples
    --------
    >>> x = np.sin(np.arange(600) / 5)
    >>> x[400:410] = 0.5
    >>> s = MatrixProfile(window=30).fit_score(x)
    >>> bool(385 < s.argmax() < 425)
    True
    """

    _parameter_constraints = PerChannel._parameter_constraints | {
        "window": [Interval(Integral, 2, None, closed="left")],
        "exclude": [Interval(Real, 0, None, closed="left")],
        "reference": [StrOptions({"self", "training"})],
    }

    def __init__(
        self,
        window: int = 64,
        exclude: float = 0.5,
        reference: str = "self",
        channel_reduce: str = "max",
        threshold: Any = "auto",
    ) -> None:
        self.window = window
        self.exclude = exclude
        self.reference = reference
        self.channel_reduce = channel_reduce
        self.threshold = threshold

    def _fit(self, X: NDArray) -> None:
        self.window_ = max(1, min(self.window, len(X) // 2))
        self.training_ = interpolated(X, self.feature_medians_)

    def _channels(self, X: NDArray) -> NDArray[np.float64]:
        """Return the score of each step in each channel, (T, c)."""
        filled = interpolated(X, self.feature_medians_)
        out = np.zeros(filled.shape)
        m = self.window_
        if len(X) < max(m, 2) or m < 2:
            return out
        itself = self.reference == "self" or np.array_equal(filled, self.training_)
        for j in range(filled.shape[1]):
            reach = np.abs(filled[:, j]).max()
            x = filled[:, j] / reach if reach > 0 else filled[:, j]
            if itself:
                r, _ = self_profile(x, m, int(self.exclude * m))
            else:
                r, _ = join_profile(x, self.training_[:, j] / (reach if reach > 0 else 1.0), m)
            distance = np.sqrt(2.0 * np.maximum(1.0 - r, 0.0))
            gap = np.isnan(X[:, j])
            if gap.any() and not gap.all():
                holes = np.concatenate([[0], np.cumsum(gap)])
                broken = holes[m:] > holes[:-m]
                if not broken.all():
                    distance[broken] = np.minimum(distance[broken], np.median(distance[~broken]))
            out[:, j] = _spread(distance, m, len(X))
        return out


def _spread(window_scores: NDArray[np.float64], window: int, n: int) -> NDArray[np.float64]:
    """Return the mean of the scores of the windows that contain each of ``n`` steps."""
    total = np.concatenate([[0.0], np.cumsum(window_scores)])
    last = np.minimum(np.arange(n), n - window)
    first = np.maximum(np.arange(n) - window + 1, 0)
    return np.maximum(total[last + 1] - total[first], 0.0) / (last - first + 1)
