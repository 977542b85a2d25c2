"""One sparse regression problem, smooth loss plus separable penalty, and the three solvers that minimise it.

Paper: K. Yang, M. Asgharian, S. Bhatnagar, "Accelerated gradient methods for sparse statistical learning with
nonconvex penalties", Stat. Comput. 34(1), 2024 (arXiv 2009.10629): the accelerated gradient with its restart rule,
here beside plain proximal gradient ("ista") and the proximal conjugate gradient of
:mod:`skerry.robust.conjugate_gradient`. Not copied from the published code: its extra 1/2 in the logistic gradient,
and its returning the middle sequence, which is not sparse.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from skerry.robust.conjugate_gradient import proximal_cg
from skerry.robust.penalties import concave_gradient, curvature, penalty_value, soft

__all__ = ["HUBER", "SparseProblem", "solve"]

HUBER = 1.345  # bound of Huber's loss in residual scales: 95 % efficiency under normal errors


class SparseProblem:
    """Mean loss of a design with the penalty of its coefficients.

    Parameters
    ----------
    A : ndarray of shape (n, p), float64
        Its first ``free`` columns (the intercept, if any) go unpenalised.
    y : ndarray of shape (n,), float64
        Logistic: 0 and 1.
    loss : {"squared", "huber", "logistic"}
    penalty : {"l1", "scad", "mcp"}
    a, gamma : float
        Shapes of SCAD and MCP.
    free : int
    scale : float, default=1.0
        Residual scale of Huber's loss.

    Attributes
    ----------
    lipschitz : float
        Of the gradient of the loss plus the concave part of the penalty: the larger of the two curvatures, since
        they have opposite signs.
    """

    def __init__(self, A, y, loss, penalty, a, gamma, free, scale=1.0):
        self.A, self.y, self.loss, self.scale = A, y, loss, scale
        self.penalty, self.a, self.gamma = penalty, a, gamma
        self.weight = np.ones(A.shape[1])
        self.weight[:free] = 0.0
        self.n = A.shape[0]
        top = _largest(A) / self.n * (0.25 if loss == "logistic" else 1.0)
        self.lipschitz = max(top, curvature(penalty, a, gamma), 1e-12)

    def restrict(self, columns):
        """Return the problem on some columns, with the same step size."""
        part = object.__new__(SparseProblem)
        part.__dict__.update(self.__dict__)
        part.A, part.weight = np.ascontiguousarray(self.A[:, columns]), self.weight[columns]
        return part

    def slope(self, eta):
        """Derivative of the loss of each row in its linear predictor."""
        if self.loss == "logistic":
            return expit(eta) - self.y
        r = eta - self.y
        return np.clip(r, -HUBER * self.scale, HUBER * self.scale) if self.loss == "huber" else r

    def loss_value(self, eta):
        """Return the mean loss at linear predictors ``eta``."""
        if self.loss == "logistic":
            return float(np.mean(np.logaddexp(0.0, eta) - self.y * eta))
        r = np.abs(eta - self.y)
        if self.loss == "huber":
            k = HUBER * self.scale
            return float(np.mean(np.where(r <= k, 0.5 * r**2, k * (r - 0.5 * k))))
        return 0.5 * float(np.mean(r**2))

    def loss_grad(self, b):
        """Return the gradient of the mean loss."""
        return self.A.T @ self.slope(self.A @ b) / self.n

    def concave(self, b, alpha):
        """Return the gradient of the smooth concave part of the penalty."""
        return self.weight * concave_gradient(b, alpha, self.penalty, self.a, self.gamma)

    def objective(self, b, alpha):
        """Return loss plus penalty."""
        w = penalty_value(b, alpha, self.penalty, self.a, self.gamma)
        return self.loss_value(self.A @ b) + float(self.weight @ w)


def _largest(A: NDArray) -> float:
    """Largest eigenvalue of A'A by the power method, a little above; the smaller Gram where that is cheap."""
    n, p = A.shape
    if min(n, p) <= 400:
        return 1.0001 * float(np.linalg.eigvalsh(A @ A.T if n < p else A.T @ A)[-1])
    v = np.random.RandomState(0).normal(size=p)
    top = 0.0
    for _ in range(200):
        u = A.T @ (A @ v)
        new = float(np.linalg.norm(u) / np.linalg.norm(v))
        v = u / np.linalg.norm(u)
        if abs(new - top) <= 1e-4 * new:
            break
        top = new
    return 1.01 * new


def solve(problem, alpha, start, solver="accelerated", tol=1e-6, max_iter=5000, line_search="root", trace=None):
    """Minimise ``problem`` at ``alpha`` from ``start``; return (coefficients, steps, converged).

    ``trace``, a list, receives the objective after every step. Stationary: ``max |G| < tol``, with ``G`` the
    proximal gradient map at step 0.99 / L.

    Examples
    --------
    >>> A = np.sqrt(3) * np.eye(3)
    >>> problem = SparseProblem(A, A @ [4.0, 1.5, 0.2], "squared", "scad", 3.7, 2.0, 0)
    >>> solve(problem, 1.0, np.zeros(3))[0].round(4)
    array([4. , 0.5, 0. ])
    """

    def gradient(b):
        return problem.loss_grad(b) + problem.concave(b, alpha)

    weight = problem.weight
    delta = 0.99 / problem.lipschitz
    if solver == "cg":
        result = proximal_cg(
            gradient,
            lambda v, t: soft(v, t * alpha * weight),
            start,
            lipschitz=problem.lipschitz,
            line_search=line_search,
            tol=tol,
            max_iter=max_iter,
            along=_ray(problem, alpha),
            value=lambda b: problem.objective(b, alpha) - alpha * float(weight @ np.abs(b)),
            nonsmooth=lambda b: alpha * float(weight @ np.abs(b)),
            keep_history=trace is not None,
        )
        if trace is not None:
            trace.extend(problem.objective(b, alpha) for b in result.history)
        return result.x, result.n_iter, result.converged
    ag = np.array(start, dtype=np.float64)
    if solver == "ista":
        for k in range(1, max_iter + 1):
            new = soft(ag - delta * gradient(ag), delta * alpha * weight)
            moved = np.abs(new - ag).max(initial=0.0)
            ag = new
            if trace is not None:
                trace.append(problem.objective(ag, alpha))
            if moved < 0.5 * tol * delta:
                return ag, k, True
        return ag, max_iter, False
    x, md = ag.copy(), ag.copy()
    weight_k, speed, since, wait = 1.0, np.inf, 0, 0
    for k in range(1, max_iter + 1):
        md_old = md
        if k > 1:
            weight_k = 2.0 / (1.0 + np.sqrt(1.0 + 4.0 / weight_k**2))
        md = (1.0 - weight_k) * ag + weight_k * x
        u = gradient(md)
        step = delta / weight_k
        x = soft(x - step * u, step * alpha * weight)
        ag = soft(md - delta * u, delta * alpha * weight)
        if trace is not None:
            trace.append(problem.objective(ag, alpha))
        move = md - md_old
        now = float(np.linalg.norm(move))
        since += 1
        if now < speed and since >= 3:  # slower: the momentum has overshot, begin it anew
            weight_k, since = 1.0, 0
            x = ag.copy()
        speed = now
        wait -= 1
        if k >= 3 and wait <= 0 and np.abs(ag - md).max(initial=0.0) < tol * delta:
            again = soft(ag - delta * gradient(ag), delta * alpha * weight)
            if np.abs(again - ag).max(initial=0.0) < tol * delta:
                return ag, k, True
            wait = 5
    return ag, max_iter, False


def _ray(problem, alpha):
    """Gradient along a line: two products per line serve the squared loss, one per evaluation the others."""

    def along(x, d):
        forward = problem.A @ d
        if problem.loss == "squared":
            base = problem.loss_grad(x)
            change = problem.A.T @ forward / problem.n
            return lambda t: base + t * change + problem.concave(x + t * d, alpha)
        eta = problem.A @ x
        return lambda t: problem.A.T @ problem.slope(eta + t * forward) / problem.n + problem.concave(x + t * d, alpha)

    return along
