"""The rounds against a general optimiser, and what each step promises."""

import numpy as np
import pytest
from scipy.optimize import minimize

from skerry.robust.cluster_covariance import ClusterCovariance
from skerry.robust.clustered_em import ClusteredProblem, State


def _problem(df=None, correlation=None, p=3, seed=0):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 7, size=30)
    n = int(sizes.sum())
    A = np.column_stack([np.ones(n), rng.normal(size=(n, p))])
    code = np.repeat(np.arange(30), sizes)
    y = A[:, 1] - 0.5 * A[:, 2] + 0.6 * rng.normal(size=30)[code] + 0.5 * rng.standard_t(4, size=n)
    y[code < 3] += 6.0
    Z = np.zeros((n, 0)) if correlation else np.ones((n, 1))
    covariance = ClusterCovariance(sizes, Z, correlation)
    return ClusteredProblem(A, y, covariance, "scad", 3.7, 2.0, df, 1e-10, 500)


@pytest.mark.parametrize("correlation", [None, "ar1", "compound_symmetry"])
@pytest.mark.parametrize("df", [None, 3.0, np.inf])
def test_no_general_optimiser_finds_a_better_likelihood(df, correlation):
    problem = _problem(df=df, correlation=correlation)
    state, history, done = problem.run(problem.first(), 0.0)
    assert done

    def value(v):
        free = float(np.exp(v[6])) if df is None else df
        return problem.negative_log_likelihood(State(v[:4], float(np.exp(v[4])), v[5:6], free))

    bounds = [(None, None)] * 4 + [(-3, 3), problem.covariance.bounds[0]] + [(np.log(0.5), np.log(200))] * (df is None)
    rng = np.random.default_rng(1)
    for _ in range(3):
        start = np.r_[rng.normal(size=4), 0.0, 0.1, 1.0][: len(bounds)]
        found = minimize(value, start, method="L-BFGS-B", bounds=bounds, options={"maxiter": 500})
        assert history[-1] <= found.fun + 1e-6


def test_the_weights_are_the_em_weights():
    problem = _problem(df=2.5)
    state = problem.run(problem.first(), 0.1)[0]
    distance = problem.covariance.distances(state.theta, problem.y - problem.A @ state.b)[0] / state.scale**2
    assert problem.weights(state) == pytest.approx((2.5 + problem.sizes) / (2.5 + distance))
    # at the end the scale is the weighted one, corrected by the penalty of effects not yet beyond a * alpha
    free = problem.run(problem.first(), 0.0)[0]
    r = problem.y - problem.A @ free.b
    by_hand = problem.weights(free) @ problem.covariance.distances(free.theta, r)[0] / problem.n
    assert free.scale**2 == pytest.approx(by_hand, rel=1e-4)


def test_effects_beyond_the_penalty_are_not_shrunk():
    problem = _problem(df=np.inf)
    penalised, free = problem.run(problem.first(), 0.1)[0], problem.run(problem.first(), 0.0)[0]
    assert abs(penalised.b[1]) / penalised.scale > 3.7 * 0.1
    assert penalised.b[1] == pytest.approx(free.b[1], abs=0.03)
    assert penalised.b[3] == 0.0 != free.b[3]
