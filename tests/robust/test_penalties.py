"""Thresholds, penalties and losses against automatic differentiation and brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.core.errors import ParameterError
from skerry.robust.composite import HUBER, SparseProblem
from skerry.robust.penalties import concave_gradient, curvature, penalty_value, soft, threshold

SIZES = st.lists(st.floats(-12, 12, width=32), min_size=1, max_size=20)


def _torch_penalty(torch, b, alpha, penalty, a, gamma):
    """The definition, branch by branch."""
    size = b.abs()
    if penalty == "l1":
        return alpha * size
    if penalty == "scad":
        middle = (2 * a * alpha * size - size**2 - alpha**2) / (2 * (a - 1))
        flat = torch.full_like(size, alpha**2 * (a + 1) / 2)
        return torch.where(size <= alpha, alpha * size, torch.where(size <= a * alpha, middle, flat))
    return torch.where(
        size <= gamma * alpha, alpha * size - size**2 / (2 * gamma), torch.full_like(size, gamma * alpha**2 / 2)
    )


@pytest.mark.parametrize("penalty", ["l1", "scad", "mcp"])
@settings(max_examples=60, deadline=None)
@given(values=SIZES, alpha=st.floats(0.1, 3.0), a=st.floats(2.2, 8.0), gamma=st.floats(1.2, 6.0))
def test_penalty_gradients_match_autograd(penalty, values, alpha, a, gamma):
    torch = pytest.importorskip("torch")
    b = np.array(values, dtype=np.float64)
    kinks = np.array([0.0, alpha, a * alpha, gamma * alpha])
    b = b[np.abs(np.abs(b)[:, None] - kinks).min(axis=1) > 1e-3]
    variable = torch.tensor(b, requires_grad=True)
    total = _torch_penalty(torch, variable, alpha, penalty, a, gamma).sum()
    total.backward()
    ours = alpha * np.sign(b) + concave_gradient(b, alpha, penalty, a, gamma)
    assert ours == pytest.approx(variable.grad.numpy(), abs=1e-6)
    assert penalty_value(b, alpha, penalty, a, gamma).sum() == pytest.approx(total.item(), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(values=SIZES, t=st.floats(0.0, 5.0))
def test_soft_is_the_proximal_map_and_its_derivative_is_autograds(values, t):
    torch = pytest.importorskip("torch")
    z = np.array(values, dtype=np.float64)
    z = z[np.abs(np.abs(z) - t) > 1e-3]
    variable = torch.tensor(z, requires_grad=True)
    shrunk = torch.nn.functional.softshrink(variable, t)
    shrunk.sum().backward()
    assert soft(z, t) == pytest.approx(shrunk.detach().numpy(), abs=1e-12)
    h = 1e-6
    assert (soft(z + h, t) - soft(z - h, t)) / (2 * h) == pytest.approx(variable.grad.numpy(), abs=1e-6)


@pytest.mark.parametrize("loss", ["squared", "huber", "logistic"])
def test_loss_gradients_match_autograd(loss):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    A, b = rng.normal(size=(40, 7)), rng.normal(size=7)
    y = (rng.random(40) < 0.5).astype(float) if loss == "logistic" else 4 * rng.standard_t(2, size=40)
    problem = SparseProblem(A, y, loss, "scad", 3.7, 2.0, 1, scale=0.8)
    variable = torch.tensor(b, requires_grad=True)
    eta, target = torch.tensor(A) @ variable, torch.tensor(y)
    value = {
        "squared": lambda: 0.5 * ((eta - target) ** 2).mean(),
        "huber": lambda: torch.nn.functional.huber_loss(eta, target, delta=HUBER * 0.8),
        "logistic": lambda: torch.nn.functional.binary_cross_entropy_with_logits(eta, target),
    }[loss]()
    value.backward()
    assert problem.loss_grad(b) == pytest.approx(variable.grad.numpy(), abs=1e-9)
    assert problem.loss_value(A @ b) == pytest.approx(value.item(), abs=1e-12)


@pytest.mark.parametrize("penalty", ["l1", "scad", "mcp"])
def test_threshold_is_the_minimiser(penalty):
    grid = np.linspace(-8, 8, 160001)
    for z in (-6.0, -2.5, -1.2, 0.4, 1.7, 3.0, 5.0):
        best = grid[np.argmin(0.5 * (z - grid) ** 2 + penalty_value(grid, 1.0, penalty))]
        assert threshold(z, 1.0, penalty) == pytest.approx(best, abs=2e-4)


@pytest.mark.parametrize("loss", ["squared", "huber", "logistic"])
@pytest.mark.parametrize("penalty", ["l1", "scad", "mcp"])
def test_the_step_never_exceeds_one_over_the_curvature(loss, penalty):
    rng = np.random.default_rng(1)
    A = rng.normal(size=(30, 80))  # more columns than rows: the smaller Gram
    problem = SparseProblem(A, (rng.random(30) < 0.5).astype(float), loss, penalty, 3.7, 2.0, 0)
    top = np.linalg.svd(A, compute_uv=False)[0] ** 2 / 30 * (0.25 if loss == "logistic" else 1.0)
    assert problem.lipschitz >= max(top, curvature(penalty))
    assert problem.lipschitz <= 1.011 * max(top, curvature(penalty))


@pytest.mark.parametrize("penalty", ["scad", "mcp"])
@pytest.mark.parametrize("factor", [0.1, 3.0])
def test_penalties_scale_with_the_square(penalty, factor):
    # the mixed model leans on it: strength and coefficients in units of the noise
    b = np.linspace(-5, 5, 41)
    whole = penalty_value(factor * b, factor * 0.7, penalty)
    assert whole == pytest.approx(factor**2 * penalty_value(b, 0.7, penalty), abs=1e-12)


def test_errors_say_what_is_allowed():
    with pytest.raises(ParameterError, match="SCAD needs a > 2"):
        penalty_value([1.0], 1.0, "scad", a=1.5)
    with pytest.raises(ParameterError, match="MCP needs gamma > 1"):
        curvature("mcp", gamma=1.0)
    with pytest.raises(ParameterError, match="penalty='ridge'"):
        threshold(1.0, 1.0, "ridge")
