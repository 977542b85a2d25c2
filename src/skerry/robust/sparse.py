"""Sparse regression that does not shrink large effects: SCAD, MCP and lasso paths for three losses.

Paper: K. Yang, M. Asgharian, S. Bhatnagar, "Accelerated gradient methods for sparse statistical learning with
nonconvex penalties", Stat. Comput. 34(1), 2024 (arXiv 2009.10629). The Huber loss is ours.
"""

from __future__ import annotations

import warnings
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils._param_validation import Interval, InvalidParameterError, StrOptions
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import check_is_fitted, validate_data

from skerry.core.errors import ParameterError
from skerry.robust.composite import HUBER
from skerry.robust.sparse_path import SparsePath, centre, cross_validation_errors, ebic, one_standard_error

__all__ = ["SparseLogistic", "SparseRegression"]


_CONSTRAINTS: dict[str, list[Any]] = {
    "penalty": [StrOptions({"l1", "scad", "mcp"})],
    "alpha": [Interval(Real, 0, None, closed="left"), StrOptions({"auto", "cv", "ebic"})],
    "a": [Interval(Real, 2, None, closed="neither")],
    "gamma": [Interval(Real, 1, None, closed="neither")],
    "solver": [StrOptions({"accelerated", "ista", "cg"})],
    "line_search": [StrOptions({"root", "backtracking", "wolfe"})],
    "n_alphas": [Interval(Integral, 2, None, closed="left")],
    "alpha_min_ratio": [Interval(Real, 0, 1, closed="neither")],
    "cv": [Interval(Integral, 2, None, closed="left")],
    "screening": ["boolean"],
    "tol": [Interval(Real, 0, None, closed="neither")],
    "max_iter": [Interval(Integral, 1, None, closed="left")],
    "random_state": ["random_state"],
}


class _Sparse(BaseEstimator):
    """What the two estimators share: the path and the choice of alpha."""

    def _checked(self, X, y, **how):
        try:
            self._validate_params()
        except InvalidParameterError as error:
            raise ParameterError(str(error)) from None
        return validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2, **how)

    def _fit_path(self, X, y, loss, scale=1.0):
        params = self.get_params(deep=False) | {"loss": loss}
        n, p = X.shape
        path = SparsePath(X, y, params, scale)
        top = path.largest_alpha()
        given = not isinstance(self.alpha, str)
        rule = self.alpha if not given else None
        if rule == "auto":
            rule = "ebic" if p > n else "cv"
        top = max(top, 1e-10)
        alphas = np.geomspace(top, self.alpha_min_ratio * top, self.n_alphas)
        if given:
            alphas = np.r_[alphas[alphas > self.alpha], self.alpha]
        solutions, converged, steps = path.run(alphas, self.screening)
        if not converged:
            warnings.warn(
                f"{type(self).__name__}: {self.max_iter} steps did not reach tol={self.tol} everywhere on the path",
                ConvergenceWarning,
                stacklevel=3,
            )
        if given:
            best = len(alphas) - 1
        elif rule == "ebic":
            self.criterion_ = ebic(path, solutions)
            best = int(np.argmin(self.criterion_))
        else:
            errors = cross_validation_errors(X, y, params, alphas, scale)
            best = len(alphas) - 1
            if errors is not None:
                self.criterion_ = errors.mean(axis=0)
                best = one_standard_error(errors)
        self.alphas_ = alphas
        self.alpha_ = float(alphas[best])
        self.coef_path_, self.intercept_path_ = path.original(solutions)
        self.n_iter_ = max(1, steps)
        return best


class SparseRegression(RegressorMixin, _Sparse):
    """Linear regression with a lasso, SCAD or MCP penalty; squared or Huber loss.

    Minimises ``mean loss + sum_j penalty(b_j)`` on standardised columns; the intercept is free. ``loss="squared"``
    is ``r^2 / 2``. With ``loss="huber"`` rows with large residuals have bounded pull; ``weights_`` names them.

    Parameters
    ----------
    penalty : {"scad", "mcp", "l1"}, default="scad"
    loss : {"squared", "huber"}, default="squared"
    alpha : float or {"auto", "cv", "ebic"}, default="auto"
        Strength in the units of y. "cv": cross-validation with the one-standard-error rule; "ebic": extended
        Bayes criterion with gamma 0.5; "auto": "ebic" if p > n, else "cv".
    a, gamma : float, default=3.7, 2.0
        Shapes of SCAD and MCP.
    solver : {"accelerated", "ista", "cg"}, default="accelerated"
    line_search : {"root", "backtracking", "wolfe"}, default="root"
        Of the conjugate gradient; the other solvers take fixed steps.
    n_alphas : int, default=50
    alpha_min_ratio : float, default=0.01
    cv : int, default=5
    screening : bool, default=True
        Sequential strong rule with a check of the conditions it may break; the answer does not depend on it.
    tol : float, default=1e-6
        Bound on the proximal gradient map in standardised units.
    max_iter : int, default=5000
        Steps per alpha.
    random_state : int, RandomState or None, default=0
        Shuffles the folds.

    Attributes
    ----------
    coef_ : ndarray of shape (p,)
    intercept_, alpha_ : float
    coef_path_ : ndarray of shape (k, p)
    alphas_, intercept_path_ : ndarray of shape (k,)
    criterion_ : ndarray of shape (k,), with "cv" or "ebic"
    weights_ : ndarray of shape (n,)
        1 for rows within Huber's bound, bound / |residual| beyond; all 1 for the squared loss.
    scale_ : float
        Robust (Huber) or plain residual scale.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(80, 6))
    >>> SparseRegression(alpha=0.2).fit(X, 3 * X[:, 1]).coef_.round(3) + 0.0
    array([0., 3., 0., 0., 0., 0.])
    """

    _parameter_constraints = _CONSTRAINTS | {"loss": [StrOptions({"squared", "huber"})]}

    def __init__(
        self,
        *,
        penalty="scad",
        loss="squared",
        alpha="auto",
        a=3.7,
        gamma=2.0,
        solver="accelerated",
        line_search="root",
        n_alphas=50,
        alpha_min_ratio=0.01,
        cv=5,
        screening=True,
        tol=1e-6,
        max_iter=5000,
        random_state=0,
    ):
        self.penalty = penalty
        self.loss = loss
        self.alpha = alpha
        self.a = a
        self.gamma = gamma
        self.solver = solver
        self.line_search = line_search
        self.n_alphas = n_alphas
        self.alpha_min_ratio = alpha_min_ratio
        self.cv = cv
        self.screening = screening
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit on ``X`` of shape (n, p) and ``y`` of shape (n,)."""
        X, y = self._checked(X, y, y_numeric=True)
        y = y.astype(np.float64)
        scale = 1.0
        # Huber needs the residuals' scale: first from y alone, then once from the residuals of that fit
        for _ in range(2 if self.loss == "huber" else 1):
            best = self._fit_path(X, y, self.loss, scale)
            self.coef_ = self.coef_path_[best]
            self.intercept_ = float(self.intercept_path_[best])
            r = y - X @ self.coef_ - self.intercept_
            if self.loss == "huber":
                self.scale_ = 1.4826 * float(np.median(np.abs(r - np.median(r))))
                scale = max(self.scale_ / centre(y, "huber")[1], 1e-3)
            else:
                self.scale_ = float(r.std())
        self.weights_ = np.ones(len(y))
        if self.loss == "huber":
            bound = HUBER * scale * centre(y, "huber")[1]
            self.weights_ = bound / np.maximum(np.abs(r), bound)
        return self

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return predictions of shape (n,)."""
        check_is_fitted(self)
        return validate_data(self, X, reset=False, dtype=np.float64) @ self.coef_ + self.intercept_


class SparseLogistic(ClassifierMixin, _Sparse):
    """Two-class logistic regression with a lasso, SCAD or MCP penalty.

    Parameters and attributes as in :class:`SparseRegression` (no ``loss``); ``coef_`` has shape (1, p) and
    ``intercept_`` (1,), ``classes_`` holds the two labels, and ``weights_`` is absent: no row is set aside.

    Examples
    --------
    >>> import numpy as np
    >>> X, noise = np.random.default_rng(0).normal(size=(200, 5)), np.random.default_rng(1).normal(size=200)
    >>> model = SparseLogistic(alpha=0.1).fit(X, X[:, 2] + noise > 0)
    >>> np.flatnonzero(model.coef_[0])
    array([2])
    """

    _parameter_constraints = _CONSTRAINTS

    def __init__(
        self,
        *,
        penalty="scad",
        alpha="auto",
        a=3.7,
        gamma=2.0,
        solver="accelerated",
        line_search="root",
        n_alphas=50,
        alpha_min_ratio=0.01,
        cv=5,
        screening=True,
        tol=1e-6,
        max_iter=5000,
        random_state=0,
    ):
        self.penalty = penalty
        self.alpha = alpha
        self.a = a
        self.gamma = gamma
        self.solver = solver
        self.line_search = line_search
        self.n_alphas = n_alphas
        self.alpha_min_ratio = alpha_min_ratio
        self.cv = cv
        self.screening = screening
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit on ``X`` of shape (n, p) and two labels ``y`` of shape (n,)."""
        X, y = self._checked(X, y)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) > 2:
            kind = type_of_target(y)
            raise ValueError(f"Only binary classification is supported. The type of the target is {kind}.")
        if len(self.classes_) < 2:
            raise ValueError("SparseLogistic needs 2 classes in y, but the data contains only 1 class")
        best = self._fit_path(X, codes.astype(np.float64), "logistic")
        self.coef_ = self.coef_path_[best : best + 1]
        self.intercept_ = self.intercept_path_[best : best + 1]
        return self

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return log-odds of the second class, shape (n,)."""
        check_is_fitted(self)
        return validate_data(self, X, reset=False, dtype=np.float64) @ self.coef_[0] + self.intercept_[0]

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return probabilities of shape (n, 2)."""
        one = expit(self.decision_function(X))
        return np.column_stack([1.0 - one, one])

    def predict(self, X: ArrayLike) -> NDArray:
        """Return labels of shape (n,)."""
        positive = self.decision_function(X) > 0
        return self.classes_[positive.astype(int)]

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags
