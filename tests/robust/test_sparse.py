"""Penalties, the three solvers and the paths."""

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Lasso
from sklearn.utils.estimator_checks import check_estimator

from skerry.core.errors import ParameterError
from skerry.robust.composite import SparseProblem, solve
from skerry.robust.penalties import soft, threshold
from skerry.robust.sparse import SparseLogistic, SparseRegression

SOLVERS = ["accelerated", "ista", "cg"]


def _data(n=80, p=30, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, p))
    X = (X - X.mean(0)) / X.std(0)
    return X, X[:, :3] @ [3.0, -2.0, 1.0] + rng.normal(size=n)


@pytest.mark.parametrize("shape", [{"penalty": "scad", "a": 1e7}, {"penalty": "mcp", "gamma": 1e7}, {"penalty": "l1"}])
def test_large_shapes_give_the_lasso(shape):
    X, y = _data()
    lasso = Lasso(alpha=0.2, tol=1e-10).fit(X, y)
    assert SparseRegression(alpha=0.2, **shape).fit(X, y).coef_ == pytest.approx(lasso.coef_, abs=1e-4)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("penalty", ["scad", "mcp"])
def test_orthonormal_design_has_the_closed_form(solver, penalty):
    Q = np.linalg.qr(np.random.default_rng(0).normal(size=(40, 6)))[0] * np.sqrt(40)
    y = Q @ [5.0, -2.0, 1.4, 0.7, 0.0, -0.2]
    problem = SparseProblem(Q, y, "squared", penalty, 3.7, 2.0, 0)
    b, _, done = solve(problem, 0.5, np.zeros(6), solver, tol=1e-9)
    assert done
    assert b == pytest.approx(threshold(Q.T @ y / 40, 0.5, penalty), abs=1e-6)


@pytest.mark.parametrize("loss", ["squared", "logistic", "huber"])
def test_solvers_agree_and_are_stationary(loss):
    X, y = _data()
    y = (y > 0).astype(float) if loss == "logistic" else y
    # a flat logistic loss leaves SCAD several basins: there the convex penalty is compared
    problem = SparseProblem(X, y, loss, "l1" if loss == "logistic" else "scad", 3.7, 2.0, 0)
    alpha = 0.1
    values = []
    for solver in SOLVERS:
        b, _, done = solve(problem, alpha, np.zeros(30), solver, tol=1e-7, max_iter=20000)
        rho = 0.95 / problem.lipschitz
        gradient = problem.loss_grad(b) + problem.concave(b, alpha)
        assert done and np.abs(b - soft(b - rho * gradient, rho * alpha)).max() / rho < 1e-6
        values.append(problem.objective(b, alpha))
    assert values == pytest.approx([values[0]] * 3, abs=1e-6)


@pytest.mark.parametrize("loss", ["squared", "huber"])
@pytest.mark.parametrize("penalty", ["l1", "scad", "mcp"])
def test_screening_does_not_change_the_path(penalty, loss):
    X, y = _data()
    common = {"penalty": penalty, "loss": loss, "alpha": "ebic", "tol": 1e-8, "n_alphas": 20}
    with_rule = SparseRegression(**common).fit(X, y)
    without = SparseRegression(screening=False, **common).fit(X, y)
    assert with_rule.coef_path_ == pytest.approx(without.coef_path_, abs=1e-5)
    assert set(np.flatnonzero(with_rule.coef_)) == {0, 1, 2}


@pytest.mark.parametrize("search", ["root", "backtracking", "wolfe"])
def test_the_estimators_line_search_reaches_the_path_of_the_accelerated_gradient(search):
    X, y = _data()
    common = {"alpha": "ebic", "n_alphas": 10, "alpha_min_ratio": 0.1, "tol": 1e-7}
    expected = SparseRegression(**common).fit(X, y)
    ours = SparseRegression(solver="cg", line_search=search, **common).fit(X, y)
    assert ours.coef_path_ == pytest.approx(expected.coef_path_, abs=1e-4)
    steps = SparseRegression(solver="cg", line_search=search, **common, max_iter=1)
    with pytest.warns(ConvergenceWarning, match="1 steps did not reach"):
        steps.fit(X, y)


def test_line_searches_take_different_roads():
    X, y = _data()
    used = {s: SparseRegression(alpha=0.3, solver="cg", line_search=s).fit(X, y).n_iter_ for s in ("root", "wolfe")}
    assert used["root"] != used["wolfe"]
    with pytest.raises(ParameterError, match="line_search"):
        SparseRegression(line_search="exact").fit(X, y)


def test_rules_choose_the_signals_and_their_criteria_are_as_defined():
    X, y = _data()
    by_ebic = SparseRegression(alpha="ebic").fit(X, y)
    best = int(np.argmin(by_ebic.criterion_))
    r = y - X @ by_ebic.coef_path_[best] - by_ebic.intercept_path_[best]
    k = np.count_nonzero(by_ebic.coef_path_[best])
    unit = y.std()
    by_hand = 80 * np.log(np.mean((r / unit) ** 2)) + k * (np.log(80) + np.log(30))
    assert by_ebic.criterion_[best] == pytest.approx(by_hand, rel=1e-9)
    assert by_ebic.alpha_ == by_ebic.alphas_[best]
    crossed = SparseRegression(alpha="cv").fit(X, y)
    least = int(np.argmin(crossed.criterion_))
    assert crossed.alpha_ >= crossed.alphas_[least]  # one standard error: at least as sparse as the least error
    for model in (by_ebic, crossed):
        assert set(np.flatnonzero(model.coef_)) == {0, 1, 2}
    np.testing.assert_array_equal(SparseRegression().fit(X, y).coef_, crossed.coef_)  # p <= n: "auto" is "cv"
    wide = SparseRegression().fit(X[:20], y[:20])
    np.testing.assert_array_equal(wide.coef_, SparseRegression(alpha="ebic").fit(X[:20], y[:20]).coef_)


def test_huber_sets_outliers_aside_and_the_answer_scales_with_y():
    X, y = _data()
    y[:6] += 60.0
    model = SparseRegression(loss="huber", alpha="ebic").fit(X, y)
    plain = SparseRegression(alpha="ebic").fit(X, y)
    truth = np.r_[3.0, -2.0, 1.0, np.zeros(27)]
    assert model.weights_[:6].max() < 0.2
    assert np.linalg.norm(model.coef_ - truth) < 0.5 * np.linalg.norm(plain.coef_ - truth)
    scaled = SparseRegression(loss="huber", alpha="ebic").fit(X, 1e5 * y)
    assert scaled.coef_ == pytest.approx(1e5 * model.coef_, rel=1e-6)


@pytest.mark.parametrize("loss", ["squared", "huber"])
@pytest.mark.parametrize("penalty", ["l1", "scad", "mcp"])
def test_intercept_is_free_and_strength_does_not_grow_with_rows_or_units(penalty, loss):
    X, y = _data()
    common = {"alpha": 0.3, "penalty": penalty, "loss": loss, "tol": 1e-8}
    base = SparseRegression(**common).fit(X, y)
    shifted = SparseRegression(**common).fit(X + 7.0, y + 1e4)
    assert shifted.coef_ == pytest.approx(base.coef_, abs=1e-4)
    twice = SparseRegression(**common).fit(np.r_[X, X], np.r_[y, y])
    assert twice.coef_ == pytest.approx(base.coef_, abs=1e-4)
    units = np.geomspace(1e-3, 1e3, 30)
    scaled = SparseRegression(**common).fit(X * units, y)
    assert scaled.coef_ * units == pytest.approx(base.coef_, abs=1e-4)


def test_start_at_the_least_norm_fit_is_a_trap():
    # with more columns than rows, equations solved exactly by effects beyond a * alpha are stationary: start at 0
    rng = np.random.default_rng(0)
    X = rng.normal(size=(10, 12))
    b = 50.0 * np.sign(rng.normal(size=12))
    problem = SparseProblem(X, X @ b, "squared", "scad", 3.7, 2.0, 0)
    stuck, steps, done = solve(problem, 0.5, b, tol=1e-8)
    assert done and steps <= 3 and stuck == pytest.approx(b)
    path = SparseRegression(alpha=0.5).fit(X, X @ b)
    assert not np.allclose(path.coef_, b)


def test_errors_say_what_is_allowed():
    with pytest.raises(ParameterError, match="penalty"):
        SparseRegression(penalty="ridge").fit(*_data())


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    "model",
    [
        SparseRegression(alpha=0.1),
        SparseRegression(loss="huber", alpha=0.1),
        SparseLogistic(alpha=0.05, max_iter=500),
    ],
)
def test_scikit_learn_contract(model):
    check_estimator(model)
