"""The rounds that fit a penalised q-Gaussian model to clusters: one state, its objective, and steps that lower it.

Objective per row, with coefficients in units of the noise scale ``s`` (as N. Städler, P. Bühlmann, S. van de Geer,
TEST 19, 2010, do for the lasso):

    -1/N sum_i ln qG(y_i; A_i b, s^2 Psi_i(theta), df) + sum_j penalty(b_j / s)

The three penalties obey ``penalty(b / s; alpha) = penalty(b; alpha s) / s^2``, so at a given scale the effects are a
weighted penalised least-squares fit of strength ``alpha s``, with weights ``w_i = (df + n_i) / (df + distance_i)``:
an EM step, since the log-density is concave in the squared distance. The other steps maximise the exact likelihood.
A step that does not lower the objective is undone, so it never rises.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar

from skerry.robust.cluster_covariance import ClusterCovariance
from skerry.robust.composite import SparseProblem, solve
from skerry.robust.penalties import penalty_value
from skerry.robust.q_gaussian import q_gaussian_logpdf

__all__ = ["DF_RANGE", "ClusteredProblem", "State"]

DF_RANGE = (0.5, 200.0)  # of estimated degrees of freedom
_SCALE_FLOOR = 1e-7  # of the spread of y: below it the fit is exact for every practical purpose
_LOOSE, _TIGHT = 30, 2000  # steps of the inner solver


@dataclass(frozen=True)
class State:
    """Where the rounds stand: intercept and effects ``b``, noise ``scale``, covariance ``theta``, ``df``."""

    b: NDArray[np.float64]
    scale: float
    theta: NDArray[np.float64]
    df: float


class ClusteredProblem:
    """Rows ``A`` (first column the intercept) and ``y``, sorted by cluster and prepared by ``covariance``.

    Parameters
    ----------
    A : ndarray of shape (n, p + 1)
    y : ndarray of shape (n,)
        In units of its own spread.
    covariance : ClusterCovariance
    penalty : {"l1", "scad", "mcp"}
    a, gamma : float
    df : float or None
        None: estimated in [0.5, 200]; infinite for a single cluster, whose likelihood only grows with it.
    tol : float
        Stop when a round lowers the objective by less.
    max_iter : int
    """

    def __init__(self, A, y, covariance: ClusterCovariance, penalty, a, gamma, df, tol, max_iter):
        self.A, self.y, self.covariance = A, y, covariance
        self.shape = (penalty, a, gamma)
        # one cluster is one draw: its likelihood only grows with df, see the joint model
        df = np.inf if df is None and len(covariance.sizes) == 1 else df
        self.df, self.tol, self.max_iter = df, tol, int(max_iter)
        self.sizes, self.n = covariance.sizes, len(y)

    def first(self) -> State:
        """Return a state without effects, of noise as wide as y."""
        df = 5.0 if self.df is None else float(self.df)
        return State(np.zeros(self.A.shape[1]), 1.0, self.covariance.start(), df)

    def negative_log_likelihood(self, state: State) -> float:
        """Return it per row."""
        distance, log_det = self.covariance.distances(state.theta, self.y - self.A @ state.b)
        return self._likelihood(distance, log_det, state.scale, state.df)

    def _likelihood(self, distance, log_det, scale, df):
        log_det = log_det + 2.0 * self.sizes * np.log(scale)
        return -float(q_gaussian_logpdf(distance / scale**2, log_det, self.sizes, df).sum()) / self.n

    def _penalty(self, b, scale, alpha):
        return float(penalty_value(b[1:] / scale, alpha, *self.shape).sum())

    def objective(self, state: State, alpha: float) -> float:
        """Return the penalised negative log-likelihood per row."""
        return self.negative_log_likelihood(state) + self._penalty(state.b, state.scale, alpha)

    def weights(self, state: State) -> NDArray[np.float64]:
        """Return the weight of each cluster, shape (g,)."""
        if np.isinf(state.df):
            return np.ones(len(self.sizes))
        distance = self.covariance.distances(state.theta, self.y - self.A @ state.b)[0]
        return (state.df + self.sizes) / (state.df + distance / state.scale**2)

    def strength(self, state: State) -> float:
        """Return the least ``alpha`` that keeps every effect at 0, given a state without effects."""
        white = self._whitened(state)
        r = white[:, -1] - white[:, :-1] @ state.b
        return float(np.abs(white[:, 1:-1].T @ r).max(initial=0.0)) / (self.n * state.scale)

    def _whitened(self, state):
        white = self.covariance.whiten(state.theta, np.column_stack([self.A, self.y]))
        return white * np.sqrt(self.weights(state))[self.covariance.code][:, None]

    def run(self, state: State, alpha: float, only_intercept: bool = False) -> tuple[State, list[float], bool]:
        """Lower the objective from ``state``; return (state, objective after every round, converged)."""
        columns = np.array([0]) if only_intercept else np.arange(self.A.shape[1])
        history, steps = [self.objective(state, alpha)], _LOOSE
        for _ in range(self.max_iter):
            for move in (self._effects, self._scale, self._covariance, self._df):
                state = self._keep(move(state, alpha, columns, steps), state, alpha)
            history.append(self.objective(state, alpha))
            gain = history[-2] - history[-1]
            if gain < self.tol and steps == _TIGHT:
                return state, history[1:], True
            steps = _TIGHT if gain < 1e3 * self.tol else _LOOSE
        return state, history[1:], False

    def _keep(self, new, old, alpha):
        if new is old:
            return old
        return new if self.objective(new, alpha) <= self.objective(old, alpha) else old

    def _effects(self, state, alpha, columns, steps):
        white = self._whitened(state)
        problem = SparseProblem(white[:, columns], white[:, -1] / state.scale, "squared", *self.shape, 1)
        tol = 1e-7 * max(1.0, problem.lipschitz)
        b = state.b.copy()
        b[columns] = state.scale * solve(problem, alpha, b[columns] / state.scale, tol=tol, max_iter=steps)[0]
        return replace(state, b=b)

    def _scale(self, state, alpha, columns, steps):
        distance, log_det = self.covariance.distances(state.theta, self.y - self.A @ state.b)

        def value(v):
            scale = float(np.exp(v))
            return self._likelihood(distance, log_det, scale, state.df) + self._penalty(state.b, scale, alpha)

        now = np.log(state.scale)
        low = max(now - 2.0, np.log(_SCALE_FLOOR))
        found = minimize_scalar(value, bounds=(low, max(now, low) + 2.0), method="bounded", options={"xatol": 1e-7})
        return replace(state, scale=float(np.exp(found.x)))

    def _covariance(self, state, alpha, columns, steps):
        bounds = self.covariance.bounds
        if not bounds:
            return state
        r = self.y - self.A @ state.b

        def value(theta, scale=state.scale):
            return self._likelihood(*self.covariance.distances(theta, r), scale, state.df)

        if len(bounds) == 1:  # one parameter: a search over its whole range, not only downhill
            found = minimize_scalar(lambda v: value(np.array([v])), bounds=bounds[0], method="bounded")
            tried = [(np.array([found.x]), state.scale)]
        else:
            tried = [self._downhill(start, state, alpha, value) for start in self._starts(state.theta, bounds, steps)]
        if self.covariance.q:
            tried += [(self.covariance.without_effects(theta), scale) for theta, scale in tried[:1]]
        tried.append((state.theta, state.scale))
        theta, scale = min(tried, key=lambda pair: value(*pair) + self._penalty(state.b, pair[1], alpha))
        return replace(state, theta=theta, scale=scale)

    def _starts(self, theta, bounds, steps):
        low, high = np.array(bounds).T
        begun = np.clip(theta, low, high)
        small = np.zeros(len(begun), dtype=bool)
        small[len(begun) - len(self.covariance.rows) :] = self.covariance.rows == self.covariance.columns
        small &= begun < -4.0
        if steps == _LOOSE and small.any():
            # an effect near 0 has no slope left to grow by: begin also from a moderate one
            return [begun, np.where(small, self.covariance.start(), begun)]
        return [begun]

    def _downhill(self, theta, state, alpha, value):
        """Lower the covariance and the scale together: alone each would wait for the other."""
        now = np.log(state.scale)
        bounds = [*self.covariance.bounds, (max(now - 2.0, np.log(_SCALE_FLOOR)), now + 2.0)]
        found = minimize(
            lambda v: value(v[:-1], float(np.exp(v[-1]))) + self._penalty(state.b, float(np.exp(v[-1])), alpha),
            np.r_[theta, max(now, np.log(_SCALE_FLOOR))],
            method="L-BFGS-B",
            bounds=bounds,
            options={"maxiter": 15},
        )
        return found.x[:-1], float(np.exp(found.x[-1]))

    def _df(self, state, alpha, columns, steps):
        if self.df is not None:
            return state
        distance, log_det = self.covariance.distances(state.theta, self.y - self.A @ state.b)
        found = minimize_scalar(
            lambda v: self._likelihood(distance, log_det, state.scale, float(np.exp(v))),
            bounds=tuple(np.log(DF_RANGE)),
            method="bounded",
        )
        return replace(state, df=float(np.exp(found.x)))
