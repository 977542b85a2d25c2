"""For detectors on series that score each channel by itself: how many scores become one, and who is to blame."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.utils._param_validation import StrOptions

from skerry.core.series_detector import SeriesDetector

__all__ = ["PerChannel"]


class PerChannel(SeriesDetector):
    """Base of a detector whose score of a step is the largest or the mean of its channels' scores.

    A method implements ``_channels(X)``, which returns (T, c), and takes the parameter ``channel_reduce``, "max" or
    "mean"; ``_parameter_constraints`` of this class goes into its own.

    Examples
    --------
    >>> class Size(PerChannel):
    ...     def __init__(self, channel_reduce="max"):
    ...         self.channel_reduce = channel_reduce
    ...     def _fit(self, X):
    ...         pass
    ...     def _channels(self, X):
    ...         return np.abs(X)
    >>> Size("mean").fit_score(np.array([[1.0, -3.0], [0.0, 0.5]]))
    array([2.  , 0.25])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {"channel_reduce": [StrOptions({"max", "mean"})]}

    @abstractmethod
    def _channels(self, X: NDArray) -> NDArray[np.float64]:
        """Return the score of each step in each channel, (T, c)."""

    def _score(self, X: NDArray) -> NDArray[np.float64]:
        parts = self._channels(X)
        return parts.max(axis=1) if self.channel_reduce == "max" else parts.mean(axis=1)

    def _explain(self, X: NDArray) -> NDArray[np.float64]:
        """Return the score of each channel alone."""
        return self._channels(X)
