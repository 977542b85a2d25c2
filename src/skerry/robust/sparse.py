"""Sparse regression that does not shrink large effects: SCAD, MCP and lasso paths for three losses.

Paper: K. Yang, M. Asgharian, S. Bhatnagar, "Accelerated gradient methods for sparse statistical learning with
nonconvex penalties", Stat. Comput. 34(1), 2024 (arXiv 2009.10629). The Huber loss is ours. Not copied from the
published code: its strong rule (it never removes a column) and its extra 1/2 in the logistic gradient.
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
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.utils._param_validation import Interval, InvalidParameterError, StrOptions
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import check_is_fitted, validate_data

from skerry.core.errors import ParameterError
from skerry.robust.conjugate_gradient import proximal_cg
from skerry.robust.penalties import concave_gradient, curvature, penalty_value, soft

__all__ = ["SparseLogistic", "SparseRegression", "solve"]

_HUBER = 1.345


class _Problem:
    """Loss of a design ``A`` (its first column the intercept, if any) with the concave part of the penalty."""

    def __init__(self, A, y, loss, penalty, a, gamma, free, scale=1.0):
        self.A, self.y, self.loss, self.scale = A, y, loss, scale
        self.penalty, self.a, self.gamma = penalty, a, gamma
        self.weight = np.ones(A.shape[1])
        self.weight[:free] = 0.0
        self.n = A.shape[0]
        top = _largest(A) / self.n * (0.25 if loss == "logistic" else 1.0)
        self.lipschitz = max(top, curvature(penalty, a, gamma), 1e-12)

    def restrict(self, columns):
        part = object.__new__(_Problem)
        part.__dict__.update(self.__dict__)
        part.A, part.weight = np.ascontiguousarray(self.A[:, columns]), self.weight[columns]
        return part

    def slope(self, eta):
        """Derivative of the loss of each row in its linear predictor."""
        if self.loss == "logistic":
            return expit(eta) - self.y
        r = eta - self.y
        return np.clip(r, -_HUBER * self.scale, _HUBER * self.scale) if self.loss == "huber" else r

    def loss_value(self, eta):
        if self.loss == "logistic":
            return float(np.mean(np.logaddexp(0.0, eta) - self.y * eta))
        r = np.abs(eta - self.y)
        if self.loss == "huber":
            k = _HUBER * self.scale
            return float(np.mean(np.where(r <= k, 0.5 * r**2, k * (r - 0.5 * k))))
        return 0.5 * float(np.mean(r**2))

    def loss_grad(self, b):
        return self.A.T @ self.slope(self.A @ b) / self.n

    def concave(self, b, alpha):
        return self.weight * concave_gradient(b, alpha, self.penalty, self.a, self.gamma)

    def objective(self, b, alpha):
        w = penalty_value(b, alpha, self.penalty, self.a, self.gamma)
        return self.loss_value(self.A @ b) + float(self.weight @ w)


def _largest(A: NDArray) -> float:
    """Largest eigenvalue of A'A by the power method, a little above; the smaller Gram where that is cheap."""
    n, p = A.shape
    if min(n, p) <= 400:
        return 1.0001 * float(np.linalg.eigvalsh(A @ A.T if n < p else A.T @ A)[-1])
    v = np.random.RandomState(0).normal(size=p)
    top = 0.0
    for _ in range(200):
        u = A.T @ (A @ v)
        new = float(np.linalg.norm(u) / np.linalg.norm(v))
        v = u / np.linalg.norm(u)
        if abs(new - top) <= 1e-4 * new:
            break
        top = new
    return 1.01 * new


def solve(problem, alpha, start, solver="accelerated", tol=1e-6, max_iter=5000, line_search="root", trace=None):
    """Minimise ``problem`` at ``alpha`` from ``start``; return (coefficients, steps, converged).

    ``trace``, a list, receives the objective after every step. Stationary: ``max |G| < tol``, with ``G`` the
    proximal gradient map at step 0.99 / L.
    """

    def gradient(b):
        return problem.loss_grad(b) + problem.concave(b, alpha)

    weight = problem.weight
    delta = 0.99 / problem.lipschitz
    if solver == "cg":
        along = _ray(problem, alpha) if problem.loss == "squared" else None
        result = proximal_cg(
            gradient,
            lambda v, t: soft(v, t * alpha * weight),
            start,
            lipschitz=problem.lipschitz,
            line_search=line_search,
            tol=tol,
            max_iter=max_iter,
            along=along,
            value=lambda b: problem.objective(b, alpha) - alpha * float(weight @ np.abs(b)),
            nonsmooth=lambda b: alpha * float(weight @ np.abs(b)),
            keep_history=trace is not None,
        )
        if trace is not None:
            trace.extend(problem.objective(b, alpha) for b in result.history)
        return result.x, result.n_iter, result.converged
    ag = np.array(start, dtype=np.float64)
    if solver == "ista":
        for k in range(1, max_iter + 1):
            new = soft(ag - delta * gradient(ag), delta * alpha * weight)
            moved = np.abs(new - ag).max(initial=0.0)
            ag = new
            if trace is not None:
                trace.append(problem.objective(ag, alpha))
            if moved < 0.5 * tol * delta:
                return ag, k, True
        return ag, max_iter, False
    x, md = ag.copy(), ag.copy()
    weight_k, speed, since, wait = 1.0, np.inf, 0, 0
    for k in range(1, max_iter + 1):
        md_old = md
        if k > 1:
            weight_k = 2.0 / (1.0 + np.sqrt(1.0 + 4.0 / weight_k**2))
        md = (1.0 - weight_k) * ag + weight_k * x
        u = gradient(md)
        step = delta / weight_k
        x = soft(x - step * u, step * alpha * weight)
        ag = soft(md - delta * u, delta * alpha * weight)
        if trace is not None:
            trace.append(problem.objective(ag, alpha))
        move = md - md_old
        now = float(np.linalg.norm(move))
        since += 1
        if now < speed and since >= 3:  # slower: the momentum has overshot, begin it anew
            weight_k, since = 1.0, 0
            x = ag.copy()
        speed = now
        wait -= 1
        if k >= 3 and wait <= 0 and np.abs(ag - md).max(initial=0.0) < tol * delta:
            again = soft(ag - delta * gradient(ag), delta * alpha * weight)
            if np.abs(again - ag).max(initial=0.0) < tol * delta:
                return ag, k, True
            wait = 5
    return ag, max_iter, False


def _ray(problem, alpha):
    """Gradient along a line: two products per line, none per evaluation (squared loss)."""

    def along(x, d):
        base = problem.loss_grad(x)
        change = problem.A.T @ (problem.A @ d) / problem.n
        return lambda t: base + t * change + problem.concave(x + t * d, alpha)

    return along


class _Path:
    """A standardised problem and its solutions along decreasing alphas."""

    def __init__(self, X, y, params, scale):
        self.params = params
        self.mean = X.mean(axis=0)
        spread = X.std(axis=0)
        flat = spread <= 1e-10 * np.maximum(np.abs(self.mean), 1e-300)
        self.spread = np.where(flat, 1.0, spread)
        Z = np.where(flat, 0.0, (X - self.mean) / self.spread)
        loss = params["loss"]
        # the problem is solved in units of y's own spread, so that tolerances mean the same everywhere
        self.y_mean, self.unit = (0.0, 1.0) if loss == "logistic" else _centre(y, loss)
        A = np.concatenate([np.ones((len(y), 1)), Z], axis=1)
        self.problem = _Problem(
            A, (y - self.y_mean) / self.unit, loss, params["penalty"], params["a"], params["gamma"], 1, scale
        )

    def null(self):
        start = np.zeros(self.problem.A.shape[1])
        flat = self.problem.restrict(np.array([0]))
        start[:1] = solve(flat, 0.0, start[:1], tol=1e-10)[0]
        return start

    def largest_alpha(self):
        return float(np.abs(self.problem.loss_grad(self.null())[1:]).max(initial=0.0)) * self.unit

    def run(self, alphas, screen=True):
        """Coefficients (k, p + 1) in standardised units; a converged flag and the steps used."""
        problem, params = self.problem, self.params
        b = self.null()
        gradient = problem.loss_grad(b)
        old = float(np.abs(gradient[1:]).max(initial=0.0))
        out, steps, converged = [], 0, True
        for alpha in np.asarray(alphas) / self.unit:
            active = np.ones(b.size, dtype=bool)
            if screen:
                active = (np.abs(gradient) >= 2.0 * alpha - old) | (b != 0.0) | (problem.weight == 0.0)
            while True:
                columns = np.flatnonzero(active)
                part = problem if active.all() else problem.restrict(columns)
                solution, k, done = solve(
                    part,
                    alpha,
                    b[columns],
                    params["solver"],
                    params["tol"],
                    params["max_iter"],
                    params.get("line_search", "root"),
                )
                b = np.zeros_like(b)
                b[columns] = solution
                steps, converged = steps + k, converged and done
                gradient = problem.loss_grad(b)
                missed = ~active & (np.abs(gradient) > alpha + params["tol"])  # the rule is not safe: check
                if not missed.any():
                    break
                active |= missed
            old = alpha
            out.append(b.copy())
        return np.array(out), converged, steps

    def original(self, path):
        coef = path[:, 1:] / self.spread * self.unit
        return coef, path[:, 0] * self.unit + self.y_mean - coef @ self.mean


def _centre(y, loss):
    middle = np.median(y) if loss == "huber" else y.mean()
    unit = 1.4826 * np.median(np.abs(y - middle)) if loss == "huber" else y.std()
    unit = unit if unit > 0 else y.std()
    return float(middle), float(unit if unit > 0 else 1.0)


_CONSTRAINTS: dict[str, list[Any]] = {
    "penalty": [StrOptions({"l1", "scad", "mcp"})],
    "alpha": [Interval(Real, 0, None, closed="left"), StrOptions({"auto", "cv", "ebic"})],
    "a": [Interval(Real, 2, None, closed="neither")],
    "gamma": [Interval(Real, 1, None, closed="neither")],
    "solver": [StrOptions({"accelerated", "ista", "cg"})],
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
        path = _Path(X, y, params, scale)
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
            best = self._ebic(path, solutions, n, p)
        else:
            best = self._cross_validate(X, y, params, alphas, scale)
        self.alphas_ = alphas
        self.alpha_ = float(alphas[best])
        self.coef_path_, self.intercept_path_ = path.original(solutions)
        self.n_iter_ = max(1, steps)
        return best

    def _ebic(self, path, solutions, n, p):
        problem = path.problem
        values = []
        for b in solutions:
            level = problem.loss_value(problem.A @ b)
            if problem.loss == "squared":
                fit = n * np.log(max(2 * level, 1e-300))
            else:  # Huber's loss is a likelihood at its known scale
                fit = 2 * n * level / problem.scale**2
            k = int(np.count_nonzero(b[1:]))
            # an interpolating fit has no likelihood worth comparing
            values.append(np.inf if k > n // 2 else fit + k * (np.log(n) + 2 * 0.5 * np.log(p)))
        self.criterion_ = np.array(values)
        return int(np.argmin(values))

    def _cross_validate(self, X, y, params, alphas, scale):
        folds = min(self.cv, len(y))
        logistic = params["loss"] == "logistic"
        if logistic:
            folds = min(folds, int(np.bincount(y.astype(int)).min()))
            if folds < 2:
                return len(alphas) - 1
        splitter = (StratifiedKFold if logistic else KFold)(folds, shuffle=True, random_state=self.random_state)
        errors = []
        for train, test in splitter.split(X, y.astype(int) if logistic else y):
            part = _Path(X[train], y[train], params, scale)
            coef, intercept = part.original(part.run(alphas, self.screening)[0])
            eta = X[test] @ coef.T + intercept
            unit = part.unit
            judge = part.problem.restrict(np.array([0]))
            judge.y = (y[test] - part.y_mean) / unit
            errors.append([judge.loss_value((e - part.y_mean) / unit) * unit**2 for e in eta.T])
        errors = np.array(errors)
        mean = errors.mean(axis=0)
        self.criterion_ = mean
        low = int(np.argmin(mean))
        bound = mean[low] + errors[:, low].std(ddof=1) / np.sqrt(folds)
        return int(np.argmax(mean <= bound))  # the sparsest within one standard error


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
                scale = max(self.scale_ / _centre(y, "huber")[1], 1e-3)
            else:
                self.scale_ = float(r.std())
        self.weights_ = np.ones(len(y))
        if self.loss == "huber":
            bound = _HUBER * scale * _centre(y, "huber")[1]
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
    >>> X = np.random.default_rng(0).normal(size=(200, 5))
    >>> model = SparseLogistic(alpha=0.1).fit(X, X[:, 2] > 0)
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
