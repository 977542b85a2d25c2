"""The one contract of everything that scores.

A method implements ``_fit(X)`` and ``_score(X)`` (and ``_explain(X)`` if it can) on finite C-ordered float
arrays. The base does parameters, validation, feature names, thresholds, p-values and scikit-learn's own view.
"""

from __future__ import annotations

import warnings
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from skerry.core.errors import DataError, ParameterError, SkerryWarning
from skerry.core.threshold import Conformal, Threshold, conformal_p_value, parse_threshold

__all__ = ["Detector"]

HUGE = 1e100  # larger magnitudes overflow when squared and summed; they are clipped to it, with a warning
MEDIAN_COLUMNS = 32
REFERENCE_ROWS = 65_536  # thresholds are set on at most this many training rows, drawn uniformly


def _column_medians(X: NDArray) -> NDArray[np.float64]:
    """Return the median of every column; some columns at a time are laid side by side, down which numpy is slow."""
    out = np.empty(X.shape[1])
    for j in range(0, X.shape[1], MEDIAN_COLUMNS):
        columns = np.array(X[:, j : j + MEDIAN_COLUMNS].T, order="C")
        out[j : j + MEDIAN_COLUMNS] = np.median(columns, axis=1, overwrite_input=True)
    return out


def _distinct_rows(rng: np.random.RandomState, n: int, k: int) -> NDArray[np.int64]:
    """Return ``k`` of ``n`` row numbers, ascending, every choice as likely; a long table is not shuffled for them."""
    if n < 4 * k:
        return np.sort(rng.permutation(n)[:k])
    found = np.empty(0, dtype=np.int64)
    while len(found) < k:
        found = np.unique(np.concatenate([found, rng.randint(0, n, size=k)]))
    dropped = rng.permutation(len(found))[k:]
    return np.delete(found, dropped)


class Detector(OutlierMixin, BaseEstimator):
    """Base of every detector on tables: ``X`` of shape (n, d), higher score = more anomalous.

    A subclass stores its arguments in ``__init__`` (among them ``threshold="auto"`` and, where it draws,
    ``random_state=None``), declares ``_parameter_constraints`` in scikit-learn's form, and writes ``_fit`` and
    ``_score``.

    Attributes
    ----------
    n_features_in_ : int
    feature_names_in_ : ndarray of str, only when fitted on a frame
    reference_scores_ : ndarray of shape (m,), float64, sorted
        Training scores (a uniform sample of at most 65,536; the held-out rows for ``Conformal``).
    threshold_ : float
        A score strictly above it is an outlier.
    offset_ : float
        ``-threshold_``, scikit-learn's name.
    feature_medians_ : ndarray of shape (d,), float64
        Medians of the same sample, the neutral values of the default ``explain``.
    """

    _parameter_constraints: dict[str, list[Any]] = {}
    _common_constraints: dict[str, list[Any]] = {
        "threshold": [str, float, int, Threshold],
        "random_state": ["random_state"],
    }

    # ---- what a method writes -------------------------------------------------------------------------------
    def _fit(self, X: NDArray) -> None:
        raise NotImplementedError

    def _score(self, X: NDArray) -> NDArray[np.float64]:
        raise NotImplementedError

    def _explain(self, X: NDArray) -> NDArray[np.float64]:
        """Fall-back: how far the score drops when one feature is set to its training median."""
        base = self._score(X)
        out = np.empty(X.shape, dtype=np.float64)
        work = np.array(X, dtype=np.float64, order="C")
        for j in range(X.shape[1]):
            kept = work[:, j].copy()
            work[:, j] = self.feature_medians_[j]
            out[:, j] = base - self._score(work)
            work[:, j] = kept
        return out

    # ---- what everybody calls -------------------------------------------------------------------------------
    def fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Learn from ``X`` of shape (n, d); ``y`` is ignored.

        Raises
        ------
        DataError
            If X has NaN, infinities, no row or no column; the message names the place.
        ParameterError
            If an argument is out of range.
        """
        self._fit_table(X)
        return self

    def fit_score(self, X: ArrayLike, y: Any = None) -> NDArray[np.float64]:
        """Fit to ``X`` and return its scores of shape (n,): ``fit(X).anomaly_score(X)``, but every row is scored once.

        >>> from skerry.detect import HBOS
        >>> bool(HBOS().fit_score([[0.0], [0.1], [0.2], [9.0]]).argmax() == 3)
        True
        """
        scores = self._fit_table(X)
        return self.anomaly_score(X) if scores is None else scores

    def anomaly_score(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return scores of shape (n,), float64, finite; higher is more anomalous."""
        check_is_fitted(self)
        return self._checked_scores(self._check_X(X, reset=False))

    def is_outlier(self, X: ArrayLike) -> NDArray[np.bool_]:
        """Return ``anomaly_score(X) > threshold_`` of shape (n,)."""
        return self.anomaly_score(X) > self.threshold_

    def p_value(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return conformal p-values of shape (n,) against ``reference_scores_``.

        They are exact for rows exchangeable with the reference when the detector was fitted with
        ``threshold=Conformal(...)`` or calibrated with :meth:`calibrate`; otherwise the reference is the training
        table itself and they are ranks within it.
        """
        check_is_fitted(self)
        return conformal_p_value(self.reference_scores_, self.anomaly_score(X))

    def explain(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the contribution of each feature to each score, shape (n, d)."""
        check_is_fitted(self)
        return np.asarray(self._explain(self._check_X(X, reset=False)), dtype=np.float64)

    def calibrate(self, X: ArrayLike, threshold: str | float | Threshold | None = None) -> Self:
        """Set reference scores and threshold anew from rows that ``fit`` did not see; nothing is refitted."""
        scores = self.anomaly_score(X)
        self._set_reference(scores, parse_threshold(self.threshold_rule_ if threshold is None else threshold))
        return self

    def set_threshold(self, threshold: str | float | Threshold) -> Self:
        """Swap the rule, keeping the model and its reference scores."""
        check_is_fitted(self)
        self._set_reference(self.reference_scores_, parse_threshold(threshold))
        return self

    def score_samples(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return ``-anomaly_score(X)`` (scikit-learn's sign)."""
        return -self.anomaly_score(X)

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return ``score_samples(X) - offset_``; negative is an outlier."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: ArrayLike) -> NDArray[np.int64]:
        """Return -1 for outliers and +1 for inliers, shape (n,)."""
        return np.where(self.is_outlier(X), -1, 1)

    @property
    def offset_(self) -> float:
        """``-threshold_``."""
        return -self.threshold_

    # ---- shared machinery -----------------------------------------------------------------------------------
    def _fit_table(self, X: ArrayLike) -> NDArray[np.float64] | None:
        """Fit and set the threshold; return the scores of all training rows where that took them."""
        self._check_parameters()
        X = self._check_X(X, reset=True)
        rule = parse_threshold(getattr(self, "threshold", "auto"))
        rng = check_random_state(0)  # which rows set the threshold must not disturb the method's own draws
        n = X.shape[0]
        if isinstance(rule, Conformal):
            order = rng.permutation(n)
            n_held = min(max(1, round(rule.holdout * n)), n - 1)
            if n_held < 1:
                raise DataError("threshold='conformal' needs at least 2 rows to hold some out, got 1")
            held, kept = np.sort(order[:n_held]), np.sort(order[n_held:])
            self._fit(np.ascontiguousarray(X[kept]))
            reference, scores, known = X[held], self._checked_scores(X[held]), None
        else:
            rows = np.arange(n) if n <= REFERENCE_ROWS else _distinct_rows(rng, n, REFERENCE_ROWS)
            reference = X if n <= REFERENCE_ROWS else X[rows]
            scores = self._finite(self._fit_and_score(X, rows))
            known = scores if n <= REFERENCE_ROWS else None
        self.feature_medians_ = _column_medians(reference)
        self._set_reference(scores, rule)
        return known

    def _fit_and_score(self, X: NDArray, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Fit to ``X`` and score ``rows`` of it; methods whose fit scores rows anyway override this."""
        self._fit(X)
        return self._score_training(X, rows)

    def _score_training(self, X: NDArray, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Score rows of the training table; methods that know them better (neighbours) override this."""
        return self._score(X if rows.size == X.shape[0] else np.ascontiguousarray(X[rows]))

    def _set_reference(self, scores: NDArray[np.float64], rule: Threshold) -> None:
        self.reference_scores_ = np.sort(scores)
        self.threshold_rule_ = rule
        self.threshold_ = rule.cutoff(self.reference_scores_)

    def _check_parameters(self) -> None:
        from sklearn.utils._param_validation import InvalidParameterError, validate_parameter_constraints

        params = self.get_params(deep=False)
        constraints = {k: v for k, v in self._common_constraints.items() if k in params}
        constraints |= {k: v for k, v in self._parameter_constraints.items() if k in params}
        try:
            validate_parameter_constraints(constraints, params, caller_name=type(self).__name__)
        except InvalidParameterError as error:
            raise ParameterError(str(error)) from None

    def _check_X(self, X: Any, reset: bool) -> NDArray:
        name = type(self).__name__
        try:
            X = validate_data(self, X, reset=reset, dtype=(np.float64, np.float32), order="C", ensure_all_finite=False)
        except DataError:
            raise
        except ValueError as error:
            raise DataError(str(error)) from None
        low, high = float(X.min()), float(X.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            row, column = np.argwhere(~np.isfinite(X))[0]
            kind = "NaN" if np.isnan(X[row, column]) else "infinity"
            names = getattr(self, "feature_names_in_", None)
            label = f"column {column}" if names is None else f"column {names[column]!r}"
            raise DataError(
                f"{name}: X has {kind} (NaN or infinity are not accepted), first at row {row}, {label}; "
                "impute or drop it, or let skerry.data.TableEncoder do so"
            )
        if max(-low, high) > HUGE:
            warnings.warn(f"{name}: values beyond ±{HUGE:g} were clipped to it", SkerryWarning, stacklevel=3)
            X = np.clip(X, -HUGE, HUGE)
        return X

    def _checked_scores(self, X: NDArray) -> NDArray[np.float64]:
        return self._finite(self._score(X))

    def _finite(self, scores: NDArray) -> NDArray[np.float64]:
        scores = np.asarray(scores, dtype=np.float64)
        if not np.isfinite(scores).all():
            raise DataError(
                f"{type(self).__name__} produced a score that is not finite; scale the columns (TableEncoder does)"
            )
        return scores
