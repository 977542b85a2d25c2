"""The default detector of series: two views of the steps just passed, averaged on one scale, and one of switches.

* windows of each channel under its own principal components: a shape that this channel does not have;
* windows of all channels among a random reference set: a state far from all usual ones, whatever its direction;
* channels of at most two values are neither's business: there a value that is rare or new counts.

All are causal, so the ensemble follows a stream. The members were chosen on one half of the development series and
checked on the other (``benchmarks/series.md``); nothing is tuned on the series at hand.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.utils import check_random_state

from skerry.core.errors import ParameterError
from skerry.core.series_detector import SeriesDetector
from skerry.detect.series.channel_components import ChannelComponents
from skerry.detect.series.switch_surprise import SwitchSurprise, is_switch
from skerry.detect.series.windowed import Windowed

__all__ = ["Ensemble"]

CLIP = 20.0  # interquartile ranges up to which a member counts in full; beyond it only the logarithm of the excess
SWITCH = 3.0  # what a value that a switch never had adds to the mean


class Ensemble(SeriesDetector):
    """Mean of the clipped robust z-scores of several series detectors, and what the switches add to it.

    Parameters
    ----------
    detectors : list of SeriesDetector or None, default None
        None takes ``ChannelComponents()`` and ``Windowed(ReferenceNeighbours())``.
    switches_apart : bool, default True
        Keep channels of at most two values in the training series from the detectors, unless all are such: their
        score by :class:`~skerry.detect.series.switch_surprise.SwitchSurprise`, in [0, 1], is added three times.
    random_state : int, RandomState or None, default None
    threshold : str, float or Threshold, default "auto"

    Attributes
    ----------
    detectors_ : list of fitted SeriesDetector
    switch_ : ndarray of shape (c,), bool
        The channels that the detectors do not see.
    switches_ : fitted SwitchSurprise or None
    location_, scale_ : ndarray of shape (number of detectors,)
        Median and interquartile range of each member's training scores.
    causal : bool
        Whether all members are.

    Examples
    --------
    >>> x = np.sin(np.arange(900) / 5)
    >>> x[700:710] += 2.0
    >>> s = Ensemble(random_state=0).fit_score(x)
    >>> bool(700 <= s.argmax() < 745)
    True
    """

    _parameter_constraints = {"detectors": [list, tuple, None], "switches_apart": ["boolean"]}

    def __init__(
        self,
        detectors: Any = None,
        switches_apart: bool = True,
        random_state: Any = None,
        threshold: Any = "auto",
    ) -> None:
        self.detectors = detectors
        self.switches_apart = switches_apart
        self.random_state = random_state
        self.threshold = threshold

    @property
    def causal(self) -> bool:  # type: ignore[override]
        """Whether all members are causal."""
        members = getattr(self, "detectors_", None) or self.detectors
        return members is None or all(m.causal for m in members)

    def _members(self) -> list[SeriesDetector]:
        if self.detectors is None:
            from skerry.detect.tabular.reference_neighbours import ReferenceNeighbours

            return [ChannelComponents(), Windowed(ReferenceNeighbours())]
        if not self.detectors or not all(isinstance(m, SeriesDetector) for m in self.detectors):
            raise ParameterError("Ensemble: detectors must be a non-empty list of series detectors")
        return [clone(m) for m in self.detectors]

    def _fit(self, X: NDArray) -> None:
        self._fit_and_score(X, np.arange(len(X)))

    def _fit_and_score(self, X: NDArray, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        rng = check_random_state(self.random_state)
        self.switch_ = is_switch(X) if self.switches_apart else np.zeros(X.shape[1], dtype=bool)
        if self.switch_.all():
            self.switch_ = ~self.switch_
        shapes, switches = self._split(X)
        self.switches_ = SwitchSurprise().fit(switches) if self.switch_.any() else None
        self.detectors_ = self._members()
        raw = np.empty((len(self.detectors_), len(X)))
        for i, detector in enumerate(self.detectors_):
            if "random_state" in detector.get_params(deep=False) and detector.random_state is None:
                detector.set_params(random_state=int(rng.randint(2**31 - 1)))
            raw[i] = detector.fit_score(shapes)
        q1, median, q3 = np.quantile(raw, [0.25, 0.5, 0.75], axis=1)
        spread = np.where(q3 > q1, q3 - q1, raw.std(axis=1))
        self.location_, self.scale_ = median, np.maximum(spread, 1e-9 * np.maximum(1.0, np.abs(median)))
        self.reset()
        return (self._standardised(raw).mean(axis=0) + self._switched(switches))[rows]

    def _split(self, X: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the channels that have a shape, and the switches."""
        if not self.switch_.any():
            return X, X[:, :0]
        return np.ascontiguousarray(X[:, ~self.switch_]), np.ascontiguousarray(X[:, self.switch_])

    def _switched(self, switches: NDArray) -> NDArray[np.float64]:
        return SWITCH * self.switches_._score(switches) if self.switches_ is not None else np.zeros(len(switches))

    def _standardised(self, raw: NDArray[np.float64]) -> NDArray[np.float64]:
        z = (raw - self.location_[:, None]) / self.scale_[:, None]
        excess = np.maximum(np.abs(z) - CLIP, 0.0)
        return np.minimum(np.maximum(z, -CLIP), CLIP) + np.sign(z) * 1e-3 * np.log1p(excess)

    def _score(self, X: NDArray) -> NDArray[np.float64]:
        shapes, switches = self._split(X)
        raw = np.array([d.anomaly_score(shapes) for d in self.detectors_])
        return self._standardised(raw).mean(axis=0) + self._switched(switches)

    def _explain(self, X: NDArray) -> NDArray[np.float64]:
        """Share each member's score among the channels by its own explanation; rows sum to at most the score."""
        shapes, switches = self._split(X)
        weights = np.maximum(self._standardised(np.array([d.anomaly_score(shapes) for d in self.detectors_])), 0.0)
        inside = np.zeros(shapes.shape)
        for weight, detector in zip(weights / len(weights), self.detectors_, strict=True):
            parts = np.maximum(detector.explain(shapes), 0.0)
            total = parts.sum(axis=1, keepdims=True)
            inside += parts / np.where(total > 0.0, total, 1.0) * weight[:, None]
        out = np.zeros(X.shape)
        out[:, ~self.switch_] = inside
        if self.switches_ is not None:
            out[:, self.switch_] = SWITCH * self.switches_._explain(switches)
        return out

    def reset(self) -> Self:
        """Forget the steps seen by :meth:`update`."""
        for detector in self.detectors_:
            if hasattr(detector, "reset"):
                detector.reset()
        return self

    def update(self, x: ArrayLike) -> float:
        """Return the score of the next step ``x`` of shape (c,).

        Raises
        ------
        ParameterError
            If a member follows no stream.
        """
        return self._update(self._check_step(x))

    def _update(self, x: NDArray[np.float64]) -> float:
        self._check_following()
        shapes, switches = self._split(x)
        raw = np.array([[d._update(shapes) if hasattr(d, "_update") else d.update(shapes[0])] for d in self.detectors_])
        return float((self._standardised(raw).mean(axis=0) + self._switched(switches))[0])

    def update_many(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the scores of the next steps, ``X`` of shape (n, c): what ``update`` would say to each in turn.

        Raises
        ------
        ParameterError
            If a member follows no stream.
        """
        self._check_following()
        shapes, switches = self._split(self._check_X(X, reset=False))
        raw = np.array([detector.update_many(shapes) for detector in self.detectors_])
        return self._standardised(raw).mean(axis=0) + self._switched(switches)

    def _check_following(self) -> None:
        for detector in self.detectors_:
            if not hasattr(detector, "update"):
                raise ParameterError(f"{type(detector).__name__} needs the whole series and follows no stream")
