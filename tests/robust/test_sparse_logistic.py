"""Logistic paths against a plain reference, warm-started along the same strengths."""

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from skerry.robust.composite import solve
from skerry.robust.penalties import soft
from skerry.robust.sparse import SparseLogistic
from skerry.robust.sparse_path import SparsePath

BASE = {"loss": "logistic", "a": 3.7, "gamma": 2.0, "tol": 1e-8, "max_iter": 20000, "line_search": "root"}


def _data(n=200, p=25, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, p))
    return X, (rng.random(n) < expit(X[:, :4] @ [2.0, -2.0, 1.5, -1.0])).astype(float)


def _slope_of_concave_part(b, alpha, penalty):
    size = abs(b)
    if penalty == "l1":
        return 0.0
    if penalty == "mcp":
        return -np.sign(b) * min(size / 2.0, alpha)
    return -np.sign(b) * (0.0 if size <= alpha else min((size - alpha) / 2.7, alpha))


def _reference(A, y, alphas, penalty):
    """Majorise, then coordinate descent, row by row of the textbook: the concave part by its tangent (an upper bound),
    the loss by its curvature bound of 1/4; one strength after the other."""
    n, p = A.shape
    b, path = np.zeros(p), []
    for alpha in alphas:
        for _ in range(4000):
            before = b.copy()
            tangent = [0.0] + [_slope_of_concave_part(v, alpha, penalty) for v in b[1:]]
            eta = A @ b
            for j in range(p):
                curve = 0.25 * (A[:, j] @ A[:, j]) / n
                slope = A[:, j] @ (expit(eta) - y) / n + tangent[j]
                move = b[j] - slope / curve
                new = move if j == 0 else float(soft(move, alpha / curve))
                eta += (new - b[j]) * A[:, j]
                b[j] = new
            if np.abs(b - before).max() < 1e-9:
                break
        path.append(b.copy())
    return np.array(path)


@pytest.mark.parametrize("penalty", ["scad", "mcp", "l1"])
def test_warm_started_path_is_the_references(penalty):
    X, y = _data()
    path = SparsePath(X, y, BASE | {"penalty": penalty, "solver": "accelerated"}, 1.0)
    alphas = np.geomspace(path.largest_alpha(), 0.1 * path.largest_alpha(), 10)
    ours, converged, _ = path.run(alphas)
    expected = _reference(path.problem.A, y, alphas, penalty)
    assert converged
    assert ours == pytest.approx(expected, abs=1e-5)
    # invariant 4: the other solvers in the same basins (conjugate gradient takes longer steps and may leave a shallow
    # one, so it starts near the end; a multiple keeps the zeros)
    for solver in ("ista", "cg"):
        for alpha, b in zip(alphas, ours, strict=True):
            other, _, done = solve(path.problem, alpha, 1.001 * b, solver, tol=1e-8, max_iter=20000)
            assert done
            assert path.problem.objective(other, alpha) == pytest.approx(path.problem.objective(b, alpha), abs=1e-6)


def test_l1_is_scikit_learns():
    X, y = _data()
    Z = (X - X.mean(0)) / X.std(0)
    ours = SparseLogistic(penalty="l1", alpha=0.03, tol=1e-8).fit(Z, y)
    theirs = LogisticRegression(l1_ratio=1.0, C=1 / (200 * 0.03), solver="saga", tol=1e-8, max_iter=20000).fit(Z, y)
    assert ours.coef_ == pytest.approx(theirs.coef_, abs=1e-4)
    assert ours.intercept_ == pytest.approx(theirs.intercept_, abs=1e-4)
