"""Penalised regression for grouped observations under a heavy-tailed q-Gaussian (multivariate Student) law.

Paper: K. Yang, "Maximum Tsallis entropy distributions ..." (thesis, McGill, 2025) for ``likelihood="joint"``, where
the whole vector is one draw: there the coefficients do not depend on q, and the profile likelihood tends to the
Gaussian limit, so it is **not robust** (breakdown point 0). The default, ``"clustered"``, is ours: independent
clusters with common degrees of freedom, fitted by an EM whose weights say which clusters were set aside.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, InvalidParameterError, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

from skerry.core.errors import DataError, ParameterError, nearest
from skerry.robust.cluster_covariance import CORRELATIONS, ClusterCovariance
from skerry.robust.clustered_em import ClusteredProblem, State
from skerry.robust.q_gaussian import lowest_safe_df, q_gaussian_logpdf
from skerry.robust.sparse_path import one_standard_error

__all__ = ["QGaussianMixedModel"]

_ON_THE_WAY = 8  # strengths between none and a given one


class QGaussianMixedModel(RegressorMixin, BaseEstimator):
    """Sparse fixed effects and random effects per cluster, with clusters down-weighted by how odd they are.

    y_i ~ qG(X_i b, scale^2 Psi_i), one draw per cluster i, all with ``df`` degrees of freedom;
    Psi_i = R_i + Z_i D Z_i'.

    Parameters
    ----------
    likelihood : {"clustered", "joint"}, default="clustered"
        "joint" is the manuscript's model and not robust, see the module's text: its coefficients are the Gaussian
        ones whatever ``df``.
    random : str or None, default="intercept"
        Random effects of a cluster: "intercept", or a formula such as "1 + time" or "0 + time" of column names
        (``x0``, ``x1``, ... if X has none). Their covariance D is unstructured. None: none.
    correlation : {"ar1", "compound_symmetry", "kinship"} or None, default=None
        R_i: first-order autoregression in the order of the rows, equal correlation (which may be negative; it
        contains the random intercept), or ``I + h K_i`` with the ``kinship`` given to ``fit``.
    penalty : {"scad", "mcp", "l1"}, default="scad"
    alpha : float or {"auto", "ebic", "cv"}, default="auto"
        Strength for standardised columns, in units of the noise scale: about ``sqrt(2 ln p / n)`` keeps noise out;
        0 for no penalty. "ebic": extended Bayes criterion with gamma 0.5; "cv": likelihood of held-out clusters,
        one-standard-error rule; "auto": "ebic" if there are more columns than clusters, else "cv".
    a, gamma : float, default=3.7, 2.0
        Shapes of SCAD and MCP.
    df : float or None, default=None
        Degrees of freedom; None estimates them in [0.5, 200] ("clustered", two clusters at least); inf is the
        Gaussian model.
    n_alphas : int, default=25
        Length of the path from the strength that keeps all columns out to ``alpha_min_ratio`` of it.
    alpha_min_ratio : float, default=0.05
    cv : int, default=5
        Folds, of whole clusters.
    max_iter : int, default=200
        Rounds per strength.
    tol : float, default=1e-8
        Stop when a round lowers the objective by less, per observation.
    random_state : int, RandomState or None, default=0
        Shuffles the clusters into folds.

    Attributes
    ----------
    coef_ : ndarray of shape (p,)
    intercept_, scale_, df_, alpha_ : float
        ``scale_**2 * df_ / (df_ - 2)`` is a variance only if ``df_ > 2``; below that report the scale.
    random_covariance_ : ndarray of shape (q, q)
        Scale matrix of the random effects, in the units of y and of the columns.
    correlation_ : float
        Of "ar1" and "compound_symmetry"; for "kinship" h, the scale^2 of kinship relative to the noise.
    q_ : ndarray of shape (g,)
        1 + 2 / (df_ + n_i): the entropic index depends on the dimension, ``df_`` does not.
    groups_ : ndarray of shape (g,)
    cluster_weights_ : ndarray of shape (g,)
    weights_ : ndarray of shape (n,)
        The weight of each row's cluster; far below 1 is set aside.
    random_effects_ : ndarray of shape (g, q)
        Predicted random effects, columns in the order of ``random_names_``.
    alphas_, criterion_ : ndarray of shape (k,)
        Path tried, and the criterion if one chose; it ends early where the likelihood has no maximum.
    coef_path_ : ndarray of shape (k, p)
    degenerate_ : bool
        The likelihood has no maximum near this fit: so many effects at such low degrees of freedom can meet
        clusters exactly (Fernandez and Steel 1999). Raised as a warning too.
    objective_ : ndarray
        Penalised negative log-likelihood per observation after every round; never rises.
    log_likelihood_ : float

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X, g = rng.normal(size=(120, 3)), np.repeat(np.arange(30), 4)
    >>> y = 2 * X[:, 0] + 0.3 * rng.normal(size=120)
    >>> y[:8] += 50
    >>> model = QGaussianMixedModel(alpha=0.2).fit(X, y, groups=g)
    >>> model.coef_.round(1) + 0.0
    array([2., 0., 0.])
    >>> np.flatnonzero(model.cluster_weights_ < 0.1)
    array([0, 1])
    """

    _parameter_constraints: dict[str, list[Any]] = {
        "likelihood": [StrOptions({"clustered", "joint"})],
        "random": [str, None],
        "correlation": [StrOptions(set(CORRELATIONS)), None],
        "penalty": [StrOptions({"l1", "scad", "mcp"})],
        "alpha": [Interval(Real, 0, None, closed="left"), StrOptions({"auto", "ebic", "cv"})],
        "a": [Interval(Real, 2, None, closed="neither")],
        "gamma": [Interval(Real, 1, None, closed="neither")],
        "df": [Interval(Real, 0, None, closed="right"), None],
        "n_alphas": [Interval(Integral, 2, None, closed="left")],
        "alpha_min_ratio": [Interval(Real, 0, 1, closed="neither")],
        "cv": [Interval(Integral, 2, None, closed="left")],
        "max_iter": [Interval(Real, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="neither")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        *,
        likelihood="clustered",
        random="intercept",
        correlation=None,
        penalty="scad",
        alpha="auto",
        a=3.7,
        gamma=2.0,
        df=None,
        n_alphas=25,
        alpha_min_ratio=0.05,
        cv=5,
        max_iter=200,
        tol=1e-8,
        random_state=0,
    ):
        self.likelihood = likelihood
        self.random = random
        self.correlation = correlation
        self.penalty = penalty
        self.alpha = alpha
        self.a = a
        self.gamma = gamma
        self.df = df
        self.n_alphas = n_alphas
        self.alpha_min_ratio = alpha_min_ratio
        self.cv = cv
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state

    def fit(
        self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None, kinship: ArrayLike | None = None
    ) -> Self:
        """Fit.

        Parameters
        ----------
        X : array-like of shape (n, p)
        y : array-like of shape (n,)
        groups : array-like of shape (n,), optional
            Labels of the clusters; without them every row is one, with kinship all rows are one.
        kinship : array-like of shape (n, n), optional
            For ``correlation="kinship"``; read within clusters only.

        Raises
        ------
        DataError
            If lengths differ or the kinship is no covariance.
        ParameterError
            For an unknown term of ``random`` or parts that cannot be told apart.
        """
        try:
            self._validate_params()
        except InvalidParameterError as error:
            raise ParameterError(str(error)) from None
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=2)
        y = y.astype(np.float64)
        kinship = self._checked_kinship(kinship, len(y))
        labels = np.arange(len(y)) if groups is None else np.asarray(groups)
        if groups is None and kinship is not None:
            labels = np.zeros(len(y), dtype=np.int64)
        if labels.shape != y.shape:
            raise DataError(f"groups of shape {labels.shape} do not match y of shape {y.shape}")
        self.groups_, code = np.unique(labels, return_inverse=True)
        middle = float(np.median(y))
        self._middle = middle
        self._unit = 1.4826 * float(np.median(np.abs(y - middle))) or float(y.std()) or 1.0
        self._mean, spread = X.mean(axis=0), X.std(axis=0)
        flat = spread <= 1e-10 * np.maximum(np.abs(self._mean), 1e-300)
        self._spread = np.where(flat, 1.0, spread)
        self._flat = flat
        self._terms(np.bincount(code).max() > 1)
        order = np.argsort(code, kind="stable")
        problem = self._problem(X, y, code, order, kinship)
        alphas, states, histories, converged = self._path(problem)
        best = self._choose(alphas, states, problem, X, y, code, kinship)
        if not converged[best]:
            warnings.warn(
                f"{type(self).__name__}: {int(self.max_iter)} rounds did not reach tol={self.tol} at the chosen alpha",
                ConvergenceWarning,
                stacklevel=2,
            )
        self.alphas_, self.alpha_ = alphas[: len(states)], float(alphas[best])
        self.coef_path_ = np.array([s.b[1:] / self._spread * self._unit for s in states])
        self.objective_, self.n_iter_ = np.array(histories[best]), len(histories[best])
        self._keep(problem, states[best], code, order)
        return self

    def _checked_kinship(self, kinship, n):
        if (kinship is None) == (self.correlation == "kinship"):
            raise ParameterError("correlation='kinship' and the argument kinship= of fit go together")
        if kinship is None:
            return None
        kinship = np.asarray(kinship, dtype=np.float64)
        if kinship.shape != (n, n) or not np.isfinite(kinship).all():
            raise DataError(f"kinship must be finite and of shape ({n}, {n}), got shape {kinship.shape}")
        return kinship

    def _terms(self, grouped):
        """Set ``random_names_``, the columns of the random slopes and whether there is a random intercept."""
        names = getattr(self, "feature_names_in_", [f"x{j}" for j in range(self.n_features_in_)])
        known = {str(name): j for j, name in enumerate(names)}
        terms = [] if self.random is None else [t.strip() for t in self.random.split("+")]
        intercept, slopes = bool(terms) and "0" not in terms, []
        for term in terms:
            if term in ("0", "1", "intercept") and term not in known:
                continue
            if term not in known:
                raise ParameterError(f"random={self.random!r}: no column {term!r}; {nearest(term, known)}")
            slopes.append(known[term])
        if not grouped:  # one row a cluster: noise and random effects cannot be told apart
            intercept, slopes = False, []
        if self.correlation == "compound_symmetry" and intercept:
            raise ParameterError("compound symmetry contains the random intercept: use random=None or '0 + ...'")
        self._intercept, self._slopes = intercept, np.array(slopes, dtype=np.int64)
        self.random_names_ = ["intercept"] * intercept + [str(names[j]) for j in slopes]

    def _design(self, X):
        """Return (standardised columns behind one of ones, columns of the random effects)."""
        S = np.where(self._flat, 0.0, (X - self._mean) / self._spread)
        A = np.column_stack([np.ones(len(X)), S])
        if self._intercept:
            return A, A[:, np.r_[0, 1 + self._slopes]]
        return A, X[:, self._slopes] / self._spread[self._slopes]  # without an intercept a shift is not free

    def _problem(self, X, y, code, order, kinship):
        A, Z = self._design(X[order])
        block = None if kinship is None else kinship[np.ix_(order, order)]
        covariance = ClusterCovariance(np.bincount(code), Z, self.correlation, block)
        target = covariance.prepare((y[order] - self._middle) / self._unit)
        df = np.inf if self.likelihood == "joint" else self.df
        shape = (self.penalty, self.a, self.gamma)
        return ClusteredProblem(covariance.prepare(A), target, covariance, *shape, df, self.tol, self.max_iter)

    def _path(self, problem, alphas=None):
        """Return (strengths, states, objectives of the rounds, converged), ending before a degenerate fit."""
        state = problem.run(problem.first(), 0.0, only_intercept=True)[0]
        if alphas is None:
            top = max(problem.strength(state), 1e-10)
            if isinstance(self.alpha, str):
                alphas = np.geomspace(top, self.alpha_min_ratio * top, self.n_alphas)
            elif 0 < self.alpha < top:
                alphas = np.geomspace(top, self.alpha, _ON_THE_WAY)
            else:
                alphas = np.array([float(self.alpha)])
        states, histories, converged = [], [], []
        for alpha in alphas:
            state, history, done = problem.run(state, alpha)
            if isinstance(self.alpha, str) and states and self._degenerate(state, problem):
                break  # weaker ones only add effects: the likelihood goes on growing without a maximum
            states.append(state)
            histories.append(history)
            converged.append(done)
        return alphas, states, histories, converged

    @staticmethod
    def _degenerate(state: State, problem) -> bool:
        effects = int(np.count_nonzero(state.b))
        return effects > problem.n // 2 or state.df <= lowest_safe_df(effects, problem.n, len(problem.sizes))

    def _choose(self, alphas, states, problem, X, y, code, kinship):
        if not isinstance(self.alpha, str):
            return len(states) - 1
        n, p = X.shape
        rule = self.alpha
        if rule == "auto":
            rule = "ebic" if p > len(self.groups_) else "cv"
        if rule == "ebic" or len(self.groups_) < 2 * self.cv:
            effects = np.array([np.count_nonzero(s.b[1:]) for s in states])
            fit = np.array([2 * n * problem.negative_log_likelihood(s) for s in states])
            self.criterion_ = fit + effects * (np.log(n) + 2 * 0.5 * np.log(max(p, 1)))
            return int(np.argmin(self.criterion_))
        errors = self._cross_validate(alphas[: len(states)], X, y, code, kinship)
        self.criterion_ = errors.mean(axis=0)
        return one_standard_error(errors)

    def _cross_validate(self, alphas, X, y, code, kinship):
        """Return the negative log-likelihood per row of the held-out clusters, (folds, k); inf past a path's end."""
        fold_of = check_random_state(self.random_state).permutation(len(self.groups_)) % self.cv
        errors = np.full((self.cv, len(alphas)), np.inf)
        for fold in range(self.cv):
            parts = []
            for rows in (np.flatnonzero(fold_of[code] != fold), np.flatnonzero(fold_of[code] == fold)):
                own = np.unique(code[rows], return_inverse=True)[1]
                block = None if kinship is None else kinship[np.ix_(rows, rows)]
                parts.append(self._problem(X[rows], y[rows], own, np.argsort(own, kind="stable"), block))
            train, test = parts
            for k, state in enumerate(self._path(train, alphas)[1]):
                errors[fold, k] = test.negative_log_likelihood(state)
        return errors

    def _keep(self, problem, state, code, order):
        """Set what was learned, in the units that came in."""
        covariance = problem.covariance
        self.coef_ = state.b[1:] / self._spread * self._unit
        self.intercept_ = float(state.b[0] * self._unit + self._middle - self.coef_ @ self._mean)
        self.scale_ = state.scale * self._unit
        joint = self.likelihood == "joint"
        if joint and self.df is not None:  # one draw of n dimensions: the coefficients are the same for any df
            state = replace(state, df=float(self.df))
        self.df_ = state.df
        self.q_ = 1.0 + 2.0 / (self.df_ + (np.array([problem.n]) if joint else problem.sizes))
        self.cluster_weights_ = problem.weights(replace(state, df=np.inf) if joint else state)
        self.weights_ = self.cluster_weights_[code]
        r = problem.y - problem.A @ state.b
        # effects on standardised columns to effects on the columns themselves: Z_standard = Z T
        T = np.eye(covariance.q)
        slopes = np.arange(int(self._intercept), covariance.q)
        T[slopes, slopes] = 1.0 / self._spread[self._slopes]
        if self._intercept:
            T[0, slopes] = -self._mean[self._slopes] / self._spread[self._slopes]
        self.random_effects_ = self._unit * covariance.effects(state.theta, r) @ T.T
        L = T @ covariance.factor(state.theta)
        self.random_covariance_ = self.scale_**2 * L @ L.T
        self.correlation_ = covariance.correlation_value(state.theta)
        distance, log_det = covariance.distances(state.theta, r)
        log_det = log_det + 2 * problem.sizes * np.log(self.scale_)
        square = distance / state.scale**2
        if joint:
            square, log_det, sizes = square.sum(), log_det.sum(), problem.n
        else:
            sizes = problem.sizes
        self.log_likelihood_ = float(np.sum(q_gaussian_logpdf(square, log_det, sizes, self.df_)))
        self.degenerate_ = bool(not joint and self._degenerate(state, problem))
        if self.degenerate_:
            warnings.warn(
                f"{type(self).__name__}: {np.count_nonzero(state.b)} effects at df={state.df:.2g} can meet clusters "
                "exactly, where the likelihood has no maximum: raise alpha or fix a larger df",
                ConvergenceWarning,
                stacklevel=3,
            )

    def predict(self, X: ArrayLike, groups: ArrayLike | None = None) -> NDArray[np.float64]:
        """Return fixed effects, plus the random effects of the groups seen in ``fit``, shape (n,)."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64)
        out = X @ self.coef_ + self.intercept_
        if groups is not None:
            labels = np.asarray(groups)
            if labels.shape != (len(X),):
                raise DataError(f"groups of shape {labels.shape} do not match X of {len(X)} rows")
            place = np.minimum(np.searchsorted(self.groups_, labels), len(self.groups_) - 1)
            Z = np.column_stack([np.ones((len(X), int(self._intercept))), X[:, self._slopes]])
            known = self.groups_[place] == labels
            out = out + np.where(known, (Z * self.random_effects_[place]).sum(axis=1), 0.0)
        return out
