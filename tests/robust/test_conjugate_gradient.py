"""The proximal conjugate gradient on its own: quadratics, every line search, exact zeros."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.core.errors import ParameterError
from skerry.robust.composite import SparseProblem, solve
from skerry.robust.conjugate_gradient import proximal_cg
from skerry.robust.penalties import soft

SEARCHES = ["root", "backtracking", "wolfe"]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), rank=st.integers(1, 14))
def test_it_ends_in_rank_steps_on_a_quadratic(seed, rank):
    rng = np.random.default_rng(seed)
    B = rng.normal(size=(rank, 30))
    A, b = B.T @ B, B.T @ rng.normal(size=rank)
    top = np.linalg.eigvalsh(A)[-1]
    # G is the gradient itself without a penalty, known up to rounding of that size
    tol = 1e-7 * max(1.0, float(np.abs(b).max()))
    found = proximal_cg(lambda x: A @ x - b, lambda v, t: v, np.zeros(30), lipschitz=top, tol=tol)
    assert found.converged and found.n_iter <= rank + 5


@pytest.mark.parametrize("search", SEARCHES)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_every_line_search_ends_at_the_lasso(search, seed):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(40, 12))
    y = X[:, 0] - X[:, 1] + 0.3 * rng.normal(size=40)
    problem = SparseProblem(X, y, "squared", "l1", 3.7, 2.0, 0)
    expected = solve(problem, 0.2, np.zeros(12), "accelerated", tol=1e-9, max_iter=20000)[0]
    b, _, done = solve(problem, 0.2, np.zeros(12), "cg", tol=1e-8, max_iter=3000, line_search=search)
    assert done
    assert b == pytest.approx(expected, abs=1e-6)
    np.testing.assert_array_equal(b != 0, expected != 0)


@pytest.mark.parametrize("search", SEARCHES)
def test_the_result_is_a_fixed_point_of_the_proximal_step(search):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 90)), rng.normal(size=60)
    problem = SparseProblem(X, y, "squared", "mcp", 3.7, 2.0, 0)
    b, _, done = solve(problem, 0.25, np.zeros(90), "cg", tol=1e-7, max_iter=5000, line_search=search)
    rho = 0.95 / problem.lipschitz
    gradient = problem.loss_grad(b) + problem.concave(b, 0.25)
    assert done and np.abs(b - soft(b - rho * gradient, rho * 0.25)).max() / rho < 1e-6


@pytest.mark.parametrize("search", SEARCHES)
def test_every_line_search_reaches_the_minimum(search):
    X, y = _data()
    problem = SparseProblem(X, y, "squared", "scad", 3.7, 2.0, 0)
    best = solve(problem, 0.2, np.zeros(30), "ista", tol=1e-8, max_iter=20000)[0]
    b, _, done = solve(problem, 0.2, np.zeros(30), "cg", tol=1e-6, max_iter=3000, line_search=search)
    assert done
    assert problem.objective(b, 0.2) == pytest.approx(problem.objective(best, 0.2), abs=1e-6)


@pytest.mark.parametrize("search", SEARCHES)
def test_conjugate_gradient_returns_exact_zeros(search):
    # P(x) as x - rho G(x) leaves rounding of 1e-26 where the proximal map gave 0
    rng = np.random.default_rng(0)
    X = rng.normal(size=(100, 200))
    for j in range(1, 200):
        X[:, j] = 0.6 * X[:, j - 1] + 0.8 * X[:, j]
    y = X[:, :4] @ [2.0, -2.0, 8.0, -8.0] + rng.normal(size=100)
    problem = SparseProblem(X, y, "squared", "scad", 3.7, 2.0, 0)
    expected = solve(problem, 0.5, np.zeros(200), "accelerated", tol=1e-8)[0]
    b, _, done = solve(problem, 0.5, np.zeros(200), "cg", tol=1e-7, line_search=search)
    assert done
    np.testing.assert_array_equal(b != 0, expected != 0)
    assert b == pytest.approx(expected, abs=1e-5)


def test_errors_say_what_is_needed():
    for options, text in (
        ({"line_search": "x"}, "line_search='x'"),
        ({"line_search": "wolfe"}, "needs value= and nonsmooth="),
        ({"lipschitz": 0.0}, "must be positive"),
    ):
        with pytest.raises(ParameterError, match=text):
            proximal_cg(lambda x: x, lambda v, t: v, [0.0], **{"lipschitz": 1.0, **options})


def _data(n=80, p=30, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, p))
    X = (X - X.mean(0)) / X.std(0)
    return X, X[:, :3] @ [3.0, -2.0, 1.0] + rng.normal(size=n)
