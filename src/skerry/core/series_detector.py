"""The contract of everything that scores the steps of a series.

A method implements ``_fit(X)`` and ``_score(X)`` (and ``_explain(X)`` if it can) on C-ordered float64 arrays of shape
(T, c) in order of time, in which NaN marks a missing value. The base does the rest, as for tables.
"""

from __future__ import annotations

import warnings
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from skerry.core.block_conformal import BlockConformal
from skerry.core.detector import HUGE, REFERENCE_ROWS, Detector
from skerry.core.errors import DataError, ParameterError, SkerryWarning
from skerry.core.series_threshold import Adaptive, in_order, parse_series_threshold
from skerry.core.threshold import Conformal, Threshold

__all__ = ["SeriesDetector", "forward_filled", "interpolated"]


HELD_OUT = 0.5  # share of the training steps that BlockConformal takes its reference scores from


class SeriesDetector(Detector):
    """Base of every detector on series: ``X`` of shape (T, c) or (T,), one score for each step.

    Steps are taken as equally spaced. NaN marks a missing value; infinities are refused. ``fit_score(X)`` is the
    call for one series without a past; ``fit(past)`` and ``anomaly_score(present)`` for one with.

    Attributes
    ----------
    causal : bool
        Of the class or the instance: whether, after ``fit``, the score of a step depends on no later step. Where it
        is false the detector needs the whole series (it is an offline method).
    n_features_in_ : int
        Number of channels c.
    reference_scores_, threshold_, offset_
        As of :class:`~skerry.core.detector.Detector`. ``Conformal`` and ``BlockConformal`` hold out the last steps of
        the training series, not a random draw of them: neighbours in time are no independent witnesses. ``threshold``
        is what :func:`~skerry.core.series_threshold.parse_series_threshold` takes.
    reference_in_time_ : ndarray of shape (m,), float64
        The reference scores in order of time.
    feature_medians_ : ndarray of shape (c,), float64
        Medians of the channels, missing values left out; 0 for a channel without any value.

    Notes
    -----
    A detector that can follow a stream also has ``reset()``, which forgets the steps seen (not what ``fit``
    learned), and ``update(x)``, which takes the next step, of shape (c,), and returns its score: the same number that
    ``anomaly_score`` gives it in one piece. It implements ``_update(step)`` on a checked step of shape (1, c). Where
    ``reach`` is a number, the score of a step is also what ``anomaly_score`` gives it in a piece that begins that many
    steps before it, missing values of the first of them filled: this is how blocks of a stream are scored together.
    """

    causal = False

    @property
    def reach(self) -> int | None:
        """Steps before a step that its score depends on at most; None: all of them, or it is not known.

        A detector made of others (``detectors_``, once fitted) looks back as far as they do.
        """
        furthest = None
        for member in getattr(self, "detectors_", ()):
            if member.reach is None:
                return None
            furthest = max(furthest or 0, member.reach)
        return furthest

    def update_many(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the scores of the next steps, ``X`` of shape (n, c): what ``update`` would say to each in turn.

        Raises
        ------
        ParameterError
            If the detector follows no stream.
        """
        step = getattr(self, "update", None)
        if step is None:
            raise ParameterError(f"{type(self).__name__} needs the whole series and follows no stream")
        return np.array([step(x) for x in self._check_X(X, reset=False)])

    def _score_training(self, X: NDArray, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        return self._score(X)[rows]

    def _fit_table(self, X: ArrayLike) -> NDArray[np.float64] | None:
        self._check_parameters()
        X = self._check_X(X, reset=True)
        rule = parse_series_threshold(getattr(self, "threshold", "auto"))
        n = len(X)
        known = None
        if isinstance(rule, (Conformal, BlockConformal)):
            share = rule.holdout if isinstance(rule, Conformal) else HELD_OUT
            n_held = min(max(1, round(share * n)), n - 1)
            if n_held < 1:
                raise DataError(f"threshold {str(rule)!r} needs at least 2 steps to hold some out, got 1")
            self._set_medians(X[:-n_held])
            self._fit(np.ascontiguousarray(X[:-n_held]))
            scores = self._checked_scores(X)[-n_held:]  # in their place: their past is known
        else:
            self._set_medians(X)
            scores = known = self._finite(self._fit_and_score(X, np.arange(n)))
        self.thinned_ = len(scores) > REFERENCE_ROWS and not in_order(rule)
        if self.thinned_:
            scores = scores[np.sort(check_random_state(0).choice(len(scores), REFERENCE_ROWS, replace=False))]
        self._set_reference(scores[-REFERENCE_ROWS:], rule)
        return known

    def _set_reference(self, scores: NDArray[np.float64], rule: Threshold) -> None:
        self.reference_in_time_ = np.asarray(scores)
        self.reference_scores_ = np.sort(self.reference_in_time_)
        self.threshold_rule_ = rule
        self.threshold_ = rule.cutoff(self.reference_in_time_)

    def set_threshold(self, threshold: str | float | Threshold) -> Self:
        """Swap the rule, keeping the model and its reference scores.

        Raises
        ------
        DataError
            If the rule minds the order of time and only a draw of the reference scores was kept, as of long series.
        """
        check_is_fitted(self)
        rule = parse_series_threshold(threshold)
        if in_order(rule) and self.thinned_:
            raise DataError(f"threshold {str(rule)!r} needs every reference score: fit with it from the start")
        self._set_reference(self.reference_in_time_, rule)
        return self

    def calibrate(self, X: ArrayLike, threshold: str | float | Threshold | None = None) -> Self:
        """Set reference scores and threshold anew from steps that ``fit`` did not see; nothing is refitted."""
        rule = self.threshold_rule_ if threshold is None else parse_series_threshold(threshold)
        self.thinned_ = False
        self._set_reference(self.anomaly_score(X), rule)
        return self

    def decide(self, scores: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """Return the flags of scores in order of time, and the cut that each was held against, both of shape (T,).

        Only ``Adaptive`` moves the cut; it starts without a past, so the first ``1 / alpha`` steps cannot be flagged.
        """
        s = np.asarray(scores, dtype=np.float64)
        if isinstance(self.threshold_rule_, Adaptive):
            return self.threshold_rule_.run(s)
        return s > self.threshold_, np.full(s.shape, self.threshold_)

    def is_outlier(self, X: ArrayLike) -> NDArray[np.bool_]:
        """Return :meth:`decide` of the scores of ``X``, shape (T,)."""
        return self.decide(self.anomaly_score(X))[0]

    def _set_medians(self, X: NDArray) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a channel without any value
            self.feature_medians_ = np.nan_to_num(np.nanmedian(X, axis=0))

    def _check_step(self, x: ArrayLike) -> NDArray[np.float64]:
        """Return the next step of a stream as (1, c); cheap, since it runs once a step."""
        step = np.array(x, dtype=np.float64, ndmin=1)
        if step.shape != (self.n_features_in_,):
            raise DataError(
                f"{type(self).__name__}: a step has shape {step.shape}, fitted on {self.n_features_in_} channels"
            )
        largest = np.fmax.reduce(np.abs(step), initial=0.0)  # two passes where isinf, any and clip take four
        if largest == np.inf:
            raise DataError(f"{type(self).__name__}: infinity in channel {np.flatnonzero(np.isinf(step))[0]}")
        return (np.clip(step, -HUGE, HUGE) if largest > HUGE else step)[None]

    def _check_X(self, X: Any, reset: bool) -> NDArray:
        name = type(self).__name__
        if not hasattr(X, "columns"):
            X = np.asarray(X)
            if X.ndim == 1:
                X = X.reshape(-1, 1)
        try:
            X = validate_data(self, X, reset=reset, dtype=np.float64, order="C", ensure_all_finite=False)
        except DataError:
            raise
        except ValueError as error:
            raise DataError(str(error)) from None
        if np.isinf(X).any():
            step, channel = np.argwhere(np.isinf(X))[0]
            names = getattr(self, "feature_names_in_", None)
            label = f"channel {channel}" if names is None else f"channel {names[channel]!r}"
            raise DataError(f"{name}: infinity at step {step}, {label}; write NaN where a value is missing")
        if not np.isnan(X).all() and np.nanmax(np.abs(X)) > HUGE:
            warnings.warn(f"{name}: values beyond ±{HUGE:g} were clipped to it", SkerryWarning, stacklevel=3)
            X = np.clip(X, -HUGE, HUGE)
        return X


def forward_filled(X: NDArray[np.float64], first: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (T, c) with each NaN replaced by the last value before it, or by ``first`` (c,): causal.

    >>> forward_filled(np.array([[np.nan], [2.0], [np.nan]]), np.array([7.0]))[:, 0]
    array([7., 2., 2.])
    """
    missing = np.isnan(X)
    if not missing.any():
        return X
    last = np.maximum.accumulate(np.where(missing, -1, np.arange(len(X))[:, None]), axis=0)
    filled = np.take_along_axis(X, np.maximum(last, 0), axis=0)
    return np.where(last < 0, first, filled)


def interpolated(X: NDArray[np.float64], empty: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (T, c) with each NaN on the line between its neighbours in time: looks into the future.

    Ends are continued flat; a channel without any value becomes ``empty`` (c,).

    >>> interpolated(np.array([[np.nan], [2.0], [np.nan], [4.0]]), np.zeros(1))[:, 0]
    array([2., 2., 3., 4.])
    """
    missing = np.isnan(X)
    if not missing.any():
        return X
    out, steps = X.copy(), np.arange(len(X))
    for j in np.flatnonzero(missing.any(axis=0)):
        gap = missing[:, j]
        out[gap, j] = empty[j] if gap.all() else np.interp(steps[gap], steps[~gap], X[~gap, j])
    return out
