"""Penalised regression for grouped observations under a heavy-tailed q-Gaussian (multivariate Student) law.

Paper: K. Yang, "Maximum Tsallis entropy distributions ..." (thesis, McGill, 2025) for ``likelihood="joint"``, where
the whole vector is one draw: there the coefficients do not depend on q, and the profile likelihood tends to the
Gaussian limit, so it is **not robust**. The default, ``"clustered"``, is ours: independent clusters with common
degrees of freedom, fitted by an EM whose weights say which clusters were set aside.
"""

from __future__ import annotations

from numbers import Real
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import gammaln
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils._param_validation import Interval, InvalidParameterError, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

from skerry.core.errors import DataError, ParameterError
from skerry.robust.composite import SparseProblem, solve
from skerry.robust.penalties import penalty_value

__all__ = ["QGaussianMixedModel", "q_gaussian_logpdf"]

_LOW, _HIGH = 0.5, 200.0  # range of the estimated degrees of freedom


def q_gaussian_logpdf(distance: ArrayLike, log_det: ArrayLike, dimension: ArrayLike, df: float) -> NDArray[np.float64]:
    """Log-density of the q-Gaussian with ``df = 2 / (q - 1) - dimension`` degrees of freedom.

    Parameters
    ----------
    distance : array-like
        Squared Mahalanobis distances ``x' Sigma^-1 x``.
    log_det : array-like
        ``ln det Sigma`` of the scale matrix.
    dimension : array-like
    df : float
        Positive; ``inf`` is the Gaussian.

    Examples
    --------
    >>> q_gaussian_logpdf(0.0, 0.0, 1, 1.0).round(4)  # Cauchy at 0: -ln(pi)
    np.float64(-1.1447)
    """
    distance, d = np.asarray(distance, dtype=np.float64), np.asarray(dimension, dtype=np.float64)
    if df > 1e8:  # the difference of the gamma terms has no digits left there
        return -0.5 * (d * np.log(2 * np.pi) + log_det + distance)
    half = 0.5 * (df + d)
    return gammaln(half) - gammaln(0.5 * df) - 0.5 * (d * np.log(df * np.pi) + log_det) - half * np.log1p(distance / df)


class QGaussianMixedModel(RegressorMixin, BaseEstimator):
    """Sparse fixed effects and a random intercept per cluster, with clusters down-weighted by how odd they are.

    y_i ~ qG(X_i b, scale^2 (I + ratio 1 1')), one draw per cluster i, all with ``df`` degrees of freedom.

    Parameters
    ----------
    likelihood : {"clustered", "joint"}, default="clustered"
        "joint" is the manuscript's model and not robust, see the module's text.
    random : {"intercept", None}, default="intercept"
        None: no correlation within a cluster beyond the shared tail.
    penalty : {"scad", "mcp", "l1"}, default="scad"
    alpha : float, default=0.1
        Strength, for standardised columns and y in units of its own robust spread; 0 for no penalty.
    a, gamma : float, default=3.7, 2.0
    df : float or None, default=None
        Degrees of freedom; None estimates them in [0.5, 200] ("clustered"); inf is the Gaussian model.
    max_iter : int, default=200
        EM rounds.
    tol : float, default=1e-8
        Stop when a round lowers the objective by less, per observation.

    Attributes
    ----------
    coef_ : ndarray of shape (p,)
    intercept_, scale_, df_ : float
        ``scale_**2 * df_ / (df_ - 2)`` is a variance only if ``df_ > 2``.
    ratio_ : float
        Variance of the random intercept relative to the noise.
    q_ : ndarray of shape (g,)
        1 + 2 / (df_ + n_i): the entropic index depends on the dimension.
    groups_ : ndarray of shape (g,)
    cluster_weights_ : ndarray of shape (g,)
    weights_ : ndarray of shape (n,)
        The weight of each row's cluster; far below 1 is set aside.
    random_effects_ : ndarray of shape (g,)
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
    >>> QGaussianMixedModel().fit(X, y, groups=g).coef_.round(1) + 0.0
    array([2., 0., 0.])
    """

    _parameter_constraints: dict[str, list[Any]] = {
        "likelihood": [StrOptions({"clustered", "joint"})],
        "random": [StrOptions({"intercept"}), None],
        "penalty": [StrOptions({"l1", "scad", "mcp"})],
        "alpha": [Interval(Real, 0, None, closed="left")],
        "a": [Interval(Real, 2, None, closed="neither")],
        "gamma": [Interval(Real, 1, None, closed="neither")],
        "df": [Interval(Real, 0, None, closed="right"), None],
        "max_iter": [Interval(Real, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="neither")],
    }

    def __init__(
        self,
        *,
        likelihood="clustered",
        random="intercept",
        penalty="scad",
        alpha=0.1,
        a=3.7,
        gamma=2.0,
        df=None,
        max_iter=200,
        tol=1e-8,
    ):
        self.likelihood = likelihood
        self.random = random
        self.penalty = penalty
        self.alpha = alpha
        self.a = a
        self.gamma = gamma
        self.df = df
        self.max_iter = max_iter
        self.tol = tol

    def fit(self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None) -> Self:
        """Fit on ``X`` (n, p), ``y`` (n,) and labels ``groups`` (n,); without them every row is a cluster."""
        try:
            self._validate_params()
        except InvalidParameterError as error:
            raise ParameterError(str(error)) from None
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=2)
        y = y.astype(np.float64)
        labels = np.arange(len(y)) if groups is None else np.asarray(groups)
        if labels.shape != y.shape:
            raise DataError(f"groups of shape {labels.shape} do not match y of shape {y.shape}")
        self.groups_, code = np.unique(labels, return_inverse=True)
        sizes = np.bincount(code)
        mean, spread = X.mean(axis=0), X.std(axis=0)
        flat = spread <= 1e-10 * np.maximum(np.abs(mean), 1e-300)
        spread = np.where(flat, 1.0, spread)
        A = np.column_stack([np.ones(len(y)), np.where(flat, 0.0, (X - mean) / spread)])
        middle = float(np.median(y))
        unit = 1.4826 * float(np.median(np.abs(y - middle))) or float(y.std()) or 1.0
        state = self._em(A, (y - middle) / unit, code, sizes)
        b, scale2, self.ratio_, self.df_, weights, history = state
        self.coef_ = b[1:] / spread * unit
        self.intercept_ = float(b[0] * unit + middle - self.coef_ @ mean)
        self.scale_ = float(np.sqrt(scale2) * unit)
        self.q_ = 1.0 + 2.0 / (self.df_ + (len(y) if self.likelihood == "joint" else sizes))
        self.cluster_weights_, self.weights_ = weights, weights[code]
        r = y - X @ self.coef_ - self.intercept_
        self.random_effects_ = self.ratio_ * np.bincount(code, r) / (1.0 + self.ratio_ * sizes)
        self.objective_ = np.array(history)
        penalty = penalty_value(b[1:], self.alpha, self.penalty, self.a, self.gamma).sum()
        self.log_likelihood_ = float(-len(y) * (history[-1] - penalty + np.log(unit)))
        self.n_iter_ = len(history)
        return self

    # ---- the rounds -------------------------------------------------------------------------------------------
    def _em(self, A, y, code, sizes):
        n, joint = len(y), self.likelihood == "joint"
        grouped = self.random is not None and sizes.max() > 1
        b, scale2, ratio = np.zeros(A.shape[1]), 1.0, 0.0
        df = np.inf if joint else (float(self.df) if self.df is not None else 5.0)
        b[0] = 0.0

        def distances(b, ratio):
            r = y - A @ b
            return np.bincount(code, r * r) - ratio / (1 + ratio * sizes) * np.bincount(code, r) ** 2

        def objective(b, scale2, ratio, df):
            log_det = sizes * np.log(scale2) + np.log1p(ratio * sizes)
            fit = q_gaussian_logpdf(distances(b, ratio) / scale2, log_det, sizes, df).sum()
            return -fit / n + penalty_value(b[1:], self.alpha, self.penalty, self.a, self.gamma).sum()

        def weigh(b, scale2, ratio, df):
            if np.isinf(df):
                return np.ones(len(sizes))
            return (df + sizes) / (df + distances(b, ratio) / scale2)

        def better(new, old):
            return new if objective(*new) <= objective(*old) else old

        now = (b, scale2, ratio, df)
        history = []
        for _ in range(int(self.max_iter)):
            b, scale2, ratio, df = now
            w = weigh(*now)
            now = better((self._effects(A, y, code, sizes, b, scale2, ratio, w), scale2, ratio, df), now)
            b = now[0]
            w = weigh(*now)
            scale2 = max(float(w @ distances(b, ratio)) / n, 1e-12)
            now = better((b, scale2, ratio, df), now)
            if grouped:
                now = better(_line(lambda v, k=now: (k[0], k[1], np.exp(v), k[3]), objective, -12.0, 8.0), now)
                if now[2] < 1e-4:
                    now = better((now[0], now[1], 0.0, now[3]), now)
            if not joint and self.df is None:
                span = np.log([_LOW, _HIGH])
                now = better(_line(lambda v, k=now: (k[0], k[1], k[2], float(np.exp(v))), objective, *span), now)
            history.append(objective(*now))
            if len(history) > 1 and history[-2] - history[-1] < self.tol:
                break
        return *now, weigh(*now), history

    def _effects(self, A, y, code, sizes, start, scale2, ratio, w):
        """Penalised least squares on rows whitened by the random intercept and weighted by cluster."""
        # (I + ratio 11')^-1/2 = I - shrink 11'/n_i
        shrink = (1.0 - 1.0 / np.sqrt(1.0 + ratio * sizes)) / sizes
        joined = np.column_stack([A, y])
        if ratio > 0:
            order = np.argsort(code, kind="stable")
            sums = np.add.reduceat(joined[order], np.r_[0, np.cumsum(sizes)[:-1]], axis=0)
            joined = joined - (shrink[:, None] * sums)[code]
        joined = joined * np.sqrt(w / scale2)[code][:, None]
        problem = SparseProblem(joined[:, :-1], joined[:, -1], "squared", self.penalty, self.a, self.gamma, 1)
        return solve(problem, self.alpha, start, tol=1e-8 * max(1.0, problem.lipschitz), max_iter=2000)[0]

    def predict(self, X: ArrayLike, groups: ArrayLike | None = None) -> NDArray[np.float64]:
        """Return fixed effects, plus the random intercept of the groups seen in ``fit``, shape (n,)."""
        check_is_fitted(self)
        out = validate_data(self, X, reset=False, dtype=np.float64) @ self.coef_ + self.intercept_
        if groups is not None:
            labels = np.asarray(groups)
            place = np.minimum(np.searchsorted(self.groups_, labels), len(self.groups_) - 1)
            out = out + np.where(self.groups_[place] == labels, self.random_effects_[place], 0.0)
        return out


def _line(build, objective, low, high):
    """Best state along one parameter."""
    found = minimize_scalar(lambda v: objective(*build(v)), bounds=(low, high), method="bounded")
    return build(found.x)
