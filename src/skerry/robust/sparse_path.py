"""Solutions of a sparse regression along decreasing strengths, and the rules that choose one of them.

Paper: K. Yang, M. Asgharian, S. Bhatnagar, Stat. Comput. 34(1), 2024 (arXiv 2009.10629). Sequential strong rule:
R. Tibshirani et al., J. R. Stat. Soc. B 74, 2012. EBIC: J. Chen, Z. Chen, Biometrika 95, 2008. Not copied from the
published code: its strong rule, which divides twice by n and never removes a column.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import KFold, StratifiedKFold

from skerry.robust.composite import SparseProblem, solve

__all__ = ["SparsePath", "centre", "cross_validation_errors", "ebic", "one_standard_error"]


class SparsePath:
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
        self.y_mean, self.unit = (0.0, 1.0) if loss == "logistic" else centre(y, loss)
        A = np.concatenate([np.ones((len(y), 1)), Z], axis=1)
        self.problem = SparseProblem(
            A, (y - self.y_mean) / self.unit, loss, params["penalty"], params["a"], params["gamma"], 1, scale
        )

    def null(self):
        """Return the solution with every penalised coefficient at 0, shape (p + 1,)."""
        start = np.zeros(self.problem.A.shape[1])
        flat = self.problem.restrict(np.array([0]))
        start[:1] = solve(flat, 0.0, start[:1], tol=1e-10)[0]
        return start

    def largest_alpha(self):
        """Return the least strength at which that solution is stationary, in units of y."""
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
                    params["line_search"],
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
        """Return coefficients (k, p) and intercepts (k,) for the columns and the y that came in."""
        coef = path[:, 1:] / self.spread * self.unit
        return coef, path[:, 0] * self.unit + self.y_mean - coef @ self.mean


def centre(y: NDArray[np.float64], loss: str) -> tuple[float, float]:
    """Return the centre and spread of ``y``: mean and deviation, for Huber's loss median and scaled MAD.

    >>> centre(np.array([1.0, 2.0, 3.0, 100.0, 2.0]), "huber")
    (2.0, 1.4826)
    """
    middle = np.median(y) if loss == "huber" else y.mean()
    unit = 1.4826 * np.median(np.abs(y - middle)) if loss == "huber" else y.std()
    unit = unit if unit > 0 else y.std()
    return float(middle), float(unit if unit > 0 else 1.0)


def ebic(path: SparsePath, solutions: NDArray[np.float64], gamma: float = 0.5) -> NDArray[np.float64]:
    """Return the extended Bayes criterion of each solution (k, p + 1) of ``path``, lower is better.

    -2 log-likelihood + df (ln n + 2 gamma ln p); infinite where more than half the rows are spent on coefficients,
    since an interpolating fit has no likelihood worth comparing.
    """
    problem = path.problem
    n, p = problem.n, problem.A.shape[1] - 1
    values = []
    for b in solutions:
        level = problem.loss_value(problem.A @ b)
        if problem.loss == "squared":
            fit = n * np.log(max(2 * level, 1e-300))
        else:  # Huber's loss is a likelihood at its known scale
            fit = 2 * n * level / problem.scale**2
        df = int(np.count_nonzero(b[1:]))
        values.append(np.inf if df > n // 2 else fit + df * (np.log(n) + 2 * gamma * np.log(p)))
    return np.array(values)


def cross_validation_errors(X, y, params, alphas, scale) -> NDArray[np.float64] | None:
    """Return the mean loss of each fold at each strength, (folds, k); None if a class has a single row."""
    folds = min(params["cv"], len(y))
    logistic = params["loss"] == "logistic"
    if logistic:
        folds = min(folds, int(np.bincount(y.astype(int)).min()))
        if folds < 2:
            return None
    splitter = (StratifiedKFold if logistic else KFold)(folds, shuffle=True, random_state=params["random_state"])
    errors = []
    for train, test in splitter.split(X, y.astype(int) if logistic else y):
        part = SparsePath(X[train], y[train], params, scale)  # standardised by the training rows alone
        coef, intercept = part.original(part.run(alphas, params["screening"])[0])
        eta = X[test] @ coef.T + intercept
        unit = part.unit
        judge = part.problem.restrict(np.array([0]))
        judge.y = (y[test] - part.y_mean) / unit
        errors.append([judge.loss_value((e - part.y_mean) / unit) * unit**2 for e in eta.T])
    return np.array(errors)


def one_standard_error(errors: NDArray[np.float64]) -> int:
    """Return the first column (the sparsest) whose mean is within one standard error of the least mean.

    >>> one_standard_error(np.array([[3.0, 1.2, 1.0], [3.0, 1.0, 1.1]]))
    1
    """
    mean = errors.mean(axis=0)
    low = int(np.argmin(mean))
    bound = mean[low] + errors[:, low].std(ddof=1) / np.sqrt(len(errors))
    return int(np.argmax(mean <= bound))
