"""A proximal nonlinear conjugate gradient for composite problems, smooth + simple nonsmooth.

Method: the Hager-Zhang direction on the proximal gradient map ``G(x) = (x - P(x)) / rho`` with
``P(x) = prox(x - rho grad(x), rho)``. After K. Yang, "Maximum Tsallis entropy distributions ..." (thesis, McGill,
2025); W. Hager, H. Zhang, SIAM J. Optim. 16, 2005.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq

from skerry.core.errors import ParameterError

__all__ = ["ProximalResult", "proximal_cg"]

Vector = NDArray[np.float64]
_ETA = 0.01
_DECREASE, _CURVATURE = 1e-4, 0.1  # of the Wolfe search
_FLAT = 1e-10  # relative changes of the envelope below this are rounding: the slopes decide there


@dataclass(frozen=True)
class ProximalResult:
    """Where the iteration ended.

    Attributes
    ----------
    x : ndarray
        ``P`` of the last iterate, so exactly sparse where the proximal map is.
    n_iter : int
        Directions used.
    residual : float
        ``max |G|`` at the last iterate.
    converged : bool
    history : tuple of ndarray
        ``P(x_k)`` of every step, only with ``keep_history=True``.
    """

    x: Vector
    n_iter: int
    residual: float
    converged: bool
    history: tuple[Vector, ...] = field(default=(), repr=False)


def proximal_cg(
    grad: Callable[[Vector], Vector],
    prox: Callable[[Vector, float], Vector],
    x0: ArrayLike,
    *,
    lipschitz: float,
    line_search: str = "root",
    tol: float = 1e-6,
    max_iter: int = 1000,
    along: Callable[[Vector, Vector], Callable[[float], Vector]] | None = None,
    value: Callable[[Vector], float] | None = None,
    nonsmooth: Callable[[Vector], float] | None = None,
    keep_history: bool = False,
) -> ProximalResult:
    """Minimise ``g(x) + h(x)``.

    Parameters
    ----------
    grad : callable
        Gradient of the smooth ``g``.
    prox : callable (v, step) -> vector
        Proximal map of ``step * h``.
    x0 : array-like of shape (p,)
    lipschitz : float
        A Lipschitz constant of ``grad``; the proximal step is 0.95 / lipschitz.
    line_search : {"root", "backtracking", "wolfe"}, default="root"
        ``root``: bracket and Brent for ``<G(x + t d), d> = 0``. ``backtracking``: largest step of a geometric
        sequence with enough slope left. ``wolfe``: on the forward-backward envelope; needs ``value`` and
        ``nonsmooth``.
    tol : float, default=1e-6
        Stop when ``max |G| < tol``.
    max_iter : int, default=1000
    along : callable (x, d) -> (t -> grad(x + t d)), optional
        A cheaper gradient on a ray: for a quadratic, two products serve all its evaluations.
    value, nonsmooth : callable -> float
        ``g`` and ``h``.
    keep_history : bool, default=False

    Returns
    -------
    ProximalResult

    Raises
    ------
    ParameterError
        For an unknown search, or "wolfe" without ``value`` and ``nonsmooth``.

    Examples
    --------
    >>> import numpy as np
    >>> A, b = np.diag([1.0, 2.0, 5.0]), np.array([1.0, 4.0, 0.1])
    >>> shrink = lambda v, t: v - np.clip(v, -0.5 * t, 0.5 * t)
    >>> proximal_cg(lambda x: A @ x - b, shrink, np.zeros(3), lipschitz=5.0).x.round(4)
    array([0.5 , 1.75, 0.  ])
    """
    if line_search not in ("root", "backtracking", "wolfe"):
        raise ParameterError(f"line_search={line_search!r}: use 'root', 'backtracking' or 'wolfe'")
    if line_search == "wolfe" and (value is None or nonsmooth is None):
        raise ParameterError("line_search='wolfe' needs value= and nonsmooth=")
    if not lipschitz > 0:
        raise ParameterError(f"lipschitz={lipschitz!r}: it must be positive")
    rho = 0.95 / lipschitz
    x = np.array(x0, dtype=np.float64)

    def forward_backward(point: Vector, gradient: Vector) -> Vector:
        return prox(point - rho * gradient, rho)

    def residual(point: Vector, gradient: Vector) -> Vector:
        return (point - forward_backward(point, gradient)) / rho

    # P(x) itself is kept: x - rho G(x) equals it only up to rounding, and its zeros would come out as 1e-26
    shrunk = forward_backward(x, grad(x))
    s = (x - shrunk) / rho
    d = -s
    step, k, history = rho, 0, []
    while np.abs(s).max(initial=0.0) >= tol and k < max_iter:
        k += 1
        if d @ s > 0:
            d = -s
        ray = along(x, d) if along is not None else (lambda t, x=x, d=d: grad(x + t * d))

        def slope(t: float, x=x, d=d, ray=ray) -> float:
            return float(residual(x + t * d, ray(t)) @ d)

        if line_search == "root":
            step = _root(slope, float(s @ d), step)
        elif line_search == "backtracking":
            step = _backtracking(slope, float(d @ d), step, rho)
        else:
            step = _wolfe(x, d, ray, forward_backward, value, nonsmooth, rho, step)
        restart = step <= 0.0
        if restart:  # no way along d: one plain proximal step, and begin anew
            x, step = shrunk, rho
        else:
            x = x + step * d
        # the ray's gradient drifts in the last digits; near the end only a fresh one is exact
        shrunk = forward_backward(x, grad(x))
        new = (x - shrunk) / rho
        if keep_history:
            history.append(shrunk)
        y = new - s
        along_y = float(d @ y)
        length = float(np.linalg.norm(d))
        if restart or length == 0.0 or abs(along_y) < 1e-300:
            d = -new
        else:
            beta = float((y - 2.0 * d * (y @ y) / along_y) @ new) / along_y
            floor = -1.0 / (length * min(_ETA, float(np.linalg.norm(s))))
            d = -new + max(beta, floor) * d
        s = new
    worst = float(np.abs(s).max(initial=0.0))
    return ProximalResult(shrunk, k, worst, worst < tol, tuple(history))


def _root(slope: Callable[[float], float], at_zero: float, guess: float) -> float:
    """Zero of the slope by bracketing and Brent; 0.0 if there is none."""
    low, high = 0.0, max(guess, 1e-12)
    for _ in range(60):
        if slope(high) >= 0.0:
            break
        low, high = high, 2.0 * high
    else:
        return 0.0
    if low == 0.0 and at_zero >= 0.0:
        return 0.0
    return float(brentq(slope, low, high, xtol=1e-14 * high, rtol=1e-14, maxiter=100))


def _backtracking(slope: Callable[[float], float], squared: float, guess: float, rho: float) -> float:
    """Largest step of the sequence at which the slope is still at most -1e-4 t |d|^2 (not past the root)."""
    t = max(4.0 * guess, rho)
    for _ in range(60):
        if -slope(t) >= 1e-4 * t * squared:
            return t
        t *= 0.5
    return 0.0


def _wolfe(x, d, ray, forward_backward, value, nonsmooth, rho, guess) -> float:
    """Weak Wolfe conditions on the forward-backward envelope, approximate ones once its values are flat.

    Near the end a decrease is smaller than the rounding of the envelope: there Hager and Zhang's test on the slopes
    takes the place of the test on the values (SIAM J. Optim. 16, 2005, eq. 4.1).
    """
    length = float(np.linalg.norm(d))
    if length == 0.0:
        return 0.0
    small = 1e-6 * (1.0 + float(np.abs(x).max(initial=0.0))) / length  # a step that moves x by about 1e-6

    def envelope(t: float) -> tuple[float, float]:
        point, gradient = x + t * d, ray(t)
        shrunk = forward_backward(point, gradient)
        move = shrunk - point
        level = value(point) + float(gradient @ move) + float(move @ move) / (2 * rho) + nonsmooth(shrunk)
        bend = (ray(t + small) - gradient) / small  # Hessian times d
        return level, float(-move @ (d - rho * bend)) / rho

    start, slope = envelope(0.0)
    if slope >= 0.0:
        return 0.0
    low, high, at_low, at_high, t = 0.0, np.inf, slope, np.inf, guess
    for _ in range(60):
        level, now = envelope(t)
        flat = level <= start + _FLAT * abs(start)
        enough = level <= start + _DECREASE * t * slope or (flat and now <= (2 * _DECREASE - 1) * slope)
        if not enough:
            high, at_high = t, now
        elif now < _CURVATURE * slope:
            low, at_low = t, now
        else:
            return t
        if np.isinf(high):
            t = 2.0 * t
        else:  # the secant's zero, kept off the ends
            share = at_low / (at_low - at_high) if at_high > 0.0 else 0.5
            t = low + min(max(share, 0.1), 0.9) * (high - low)
    return low
