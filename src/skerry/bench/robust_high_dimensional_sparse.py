"""Part two of the robust high-dimensional study: nonconvex sparse regression, its solvers and what it recovers.

beta = (2, -2, 8, -8, 0, ...), columns of correlation 0.6^|i-j|, signal-to-noise ratio 5, SCAD with a = 3.7.
"""

from __future__ import annotations

import time
import warnings

import numpy as np
from scipy.special import expit
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LassoCV

from skerry.robust.composite import SparseProblem, solve
from skerry.robust.sparse import SparseRegression

__all__ = ["SPOILT", "descent", "judge", "logistic_descent", "mean_row", "recovery"]

LONGEST = 3000  # steps of a solver
STEPS = (25, 50, 100, 200, 400)
SOLVERS = {
    "proximal gradient": ("ista", "root"),
    "accelerated gradient": ("accelerated", "root"),
    "proximal CG": ("cg", "root"),
    "proximal CG, backtracking": ("cg", "backtracking"),
    "proximal CG, Wolfe": ("cg", "wolfe"),
}
SPOILT = "5 % of y shifted by 20"


def _design(n, p, seed):
    """Rows of a stationary process of correlation 0.6, and y; also the true coefficients."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, p))
    for j in range(1, p):
        X[:, j] = 0.6 * X[:, j - 1] + 0.8 * X[:, j]
    beta = np.zeros(p)
    beta[:4] = 2.0, -2.0, 8.0, -8.0
    signal = X @ beta
    return X, signal + rng.normal(size=n) * signal.std() / np.sqrt(5.0), beta, rng


def descent(n, p, seed, progress):
    """Return a row per solver: the objective of the squared loss with SCAD of strength 0.5 by step."""
    X, y, _, _ = _design(n, p, seed)
    Z = (X - X.mean(axis=0)) / X.std(axis=0)
    return _trace(SparseProblem(Z, y - y.mean(), "squared", "scad", 3.7, 2.0, 0), 0.5, progress, "optimiser")


def logistic_descent(n, p, seed, progress):
    """Return a row per solver for the logistic loss, with SCAD of a fifth of the strength that keeps all out."""
    X, _, beta, rng = _design(n, p, seed)
    Z = (X - X.mean(axis=0)) / X.std(axis=0)
    y = (rng.random(n) < expit(X @ beta / 4.0)).astype(float)
    A = np.column_stack([np.ones(n), Z])
    problem = SparseProblem(A, y, "logistic", "scad", 3.7, 2.0, 1)
    alpha = 0.2 * float(np.abs(Z.T @ (y - y.mean())).max()) / n
    return _trace(problem, alpha, progress, "logistic optimiser")


def _trace(problem, alpha, progress, name):
    free = int((problem.weight == 0).sum())
    found = {}
    for method, (solver, search) in SOLVERS.items():
        progress(f"{name}: {method}")
        trace: list[float] = []
        start = np.zeros(problem.A.shape[1])
        b, _, done = solve(problem, alpha, start, solver, 1e-7, LONGEST, search, trace=trace)
        clock = time.perf_counter()
        solve(problem, alpha, start, solver, 1e-7, LONGEST, search)
        found[method] = (b[free:], done, np.array(trace), time.perf_counter() - clock)
    rows = []
    for method, (b, done, trace, seconds) in found.items():
        near = np.flatnonzero(trace <= trace[-1] + 1e-3 * max(1.0, abs(trace[-1])))
        rows.append(
            {
                "solver": method,
                **{f"after {k}": float(trace[min(k, trace.size) - 1]) for k in STEPS},
                "at the end": float(trace[-1]),
                "steps to 1e-3": int(near[0]) + 1,
                "steps": trace.size,
                "converged": "yes" if done else "no",
                "seconds": seconds,
                "signals found": int(np.count_nonzero(b[:4])),
                "false positives": int(np.count_nonzero(b[4:])),
            }
        )
    return rows


def recovery(n, p, seeds, seed, progress):
    """Return a row per method and kind of y: L2 error, false positives, missed signals."""
    common = {"n_alphas": 25, "alpha_min_ratio": 0.05}
    methods = {
        "skerry SCAD, squared": lambda: SparseRegression(alpha="ebic", **common),
        "skerry MCP, squared": lambda: SparseRegression(alpha="ebic", penalty="mcp", **common),
        "skerry SCAD, Huber": lambda: SparseRegression(alpha="ebic", loss="huber", **common),
        "scikit-learn LassoCV": lambda: LassoCV(cv=5, random_state=0),
    }
    cells: dict[tuple[str, str], list] = {}
    for k in range(seeds):
        progress(f"recovery: draw {k + 1} of {seeds}")
        X, y, beta, rng = _design(n, p, seed + k)
        spoilt = y.copy()
        spoilt[rng.choice(n, max(1, n // 20), replace=False)] += 20.0
        for kind, target in (("clean", y), (SPOILT, spoilt)):
            for name, make in methods.items():
                started = time.perf_counter()
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ConvergenceWarning)
                    coef = make().fit(X, target).coef_
                cells.setdefault((kind, name), []).append((*judge(coef, beta), time.perf_counter() - started))
    return [mean_row({"method": name, "data": kind}, values) for (kind, name), values in cells.items()]


def judge(coef, beta):
    """Return (L2 error, false positives, missed)."""
    chosen = coef != 0
    return (
        float(np.linalg.norm(coef - beta)),
        float(np.sum(chosen & (beta == 0))),
        float(np.sum(~chosen & (beta != 0))),
    )


def mean_row(row, values):
    """Return ``row`` with the means of (L2 error, false positives, missed, seconds) over draws."""
    values = np.array([v[:4] for v in values])
    error = values[:, 0]
    spread = error.std(ddof=1) / np.sqrt(error.size) if error.size > 1 else float("nan")
    names = ("L2 error", "false positives", "missed", "seconds")
    means = {key: float(v) for key, v in zip(names, values.mean(axis=0), strict=True)}
    return row | means | {"standard error of L2": float(spread), "draws": len(values)}
