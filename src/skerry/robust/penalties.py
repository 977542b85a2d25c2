"""The lasso, SCAD and MCP penalties: values, the gradient of their concave part, and closed-form thresholds.

Pure arithmetic on arrays. SCAD: J. Fan, R. Li, J. Am. Stat. Assoc. 96, 2001. MCP: C.-H. Zhang, Ann. Stat. 38,
2010. Each is split as ``alpha * |b| + concave(b)`` with a smooth concave part, as in K. Yang et al., "Accelerated
gradient methods for sparse statistical learning with nonconvex penalties", Stat. Comput. 34(1), 2024.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skerry.core.errors import ParameterError

__all__ = ["PENALTIES", "concave_gradient", "curvature", "penalty_value", "soft", "threshold"]

PENALTIES = ("l1", "scad", "mcp")


def _check(penalty: str, a: float, gamma: float) -> None:
    if penalty not in PENALTIES:
        raise ParameterError(f"penalty={penalty!r}: use one of {', '.join(PENALTIES)}")
    if penalty == "scad" and not a > 2:
        raise ParameterError(f"a={a!r}: SCAD needs a > 2")
    if penalty == "mcp" and not gamma > 1:
        raise ParameterError(f"gamma={gamma!r}: MCP needs gamma > 1")


def soft(b: ArrayLike, t: ArrayLike) -> NDArray[np.float64]:
    """Soft threshold ``sign(b) max(|b| - t, 0)``, the proximal map of ``t |b|``.

    >>> soft([-3.0, 0.5, 2.0], 1.0)
    array([-2.,  0.,  1.])
    """
    b = np.asarray(b, dtype=np.float64)
    return b - np.clip(b, -np.asarray(t), t)


def penalty_value(
    b: ArrayLike, alpha: float, penalty: str = "scad", a: float = 3.7, gamma: float = 2.0
) -> NDArray[np.float64]:
    """Return the penalty of each coefficient.

    Parameters
    ----------
    b : array-like
        Coefficients.
    alpha : float
        Strength, the lambda of the papers.
    penalty : {"l1", "scad", "mcp"}, default="scad"
    a : float, default=3.7
        SCAD's shape, > 2; the lasso as it grows.
    gamma : float, default=2.0
        MCP's shape, > 1; the lasso as it grows.

    Returns
    -------
    ndarray shaped like b, float64

    Examples
    --------
    >>> penalty_value([0.5, 2.0, 9.0], 1.0, "scad", a=3.0)
    array([0.5 , 1.75, 2.  ])
    """
    _check(penalty, a, gamma)
    size = np.abs(np.asarray(b, dtype=np.float64))
    if penalty == "l1":
        return alpha * size
    if penalty == "scad":
        middle = (2 * a * alpha * size - size**2 - alpha**2) / (2 * (a - 1))
        return np.where(size <= alpha, alpha * size, np.where(size <= a * alpha, middle, alpha**2 * (a + 1) / 2))
    return np.where(size <= gamma * alpha, alpha * size - size**2 / (2 * gamma), gamma * alpha**2 / 2)


def concave_gradient(
    b: ArrayLike, alpha: ArrayLike, penalty: str = "scad", a: float = 3.7, gamma: float = 2.0
) -> NDArray[np.float64]:
    """Return the gradient of ``penalty_value(b) - alpha |b|``, which is smooth; same arguments.

    >>> concave_gradient([0.5, 2.0, -9.0], 1.0, "mcp", gamma=4.0)
    array([-0.125, -0.5  ,  1.   ])
    """
    _check(penalty, a, gamma)
    b = np.asarray(b, dtype=np.float64)
    if penalty == "l1":
        return np.zeros_like(b)
    if penalty == "scad":
        return -np.sign(b) * np.clip((np.abs(b) - alpha) / (a - 1), 0.0, alpha)
    return -np.clip(b / gamma, -np.asarray(alpha), alpha)


def curvature(penalty: str = "scad", a: float = 3.7, gamma: float = 2.0) -> float:
    """Return the largest curvature of the concave part: 0, 1/(a - 1) or 1/gamma."""
    _check(penalty, a, gamma)
    return {"l1": 0.0, "scad": 1.0 / (a - 1.0), "mcp": 1.0 / gamma}[penalty]


def threshold(
    z: ArrayLike, alpha: float, penalty: str = "scad", a: float = 3.7, gamma: float = 2.0
) -> NDArray[np.float64]:
    """Return ``argmin_b (z - b)^2 / 2 + penalty(b)``: the solution for an orthonormal design.

    >>> threshold([0.5, 1.5, 9.0], 1.0, "mcp", gamma=2.0)
    array([0., 1., 9.])
    """
    _check(penalty, a, gamma)
    z = np.asarray(z, dtype=np.float64)
    size = np.abs(z)
    plain = soft(z, alpha)
    if penalty == "l1":
        return plain
    if penalty == "mcp":
        return np.where(size <= gamma * alpha, plain / (1 - 1 / gamma), z)
    middle = soft(z, a * alpha / (a - 1)) / (1 - 1 / (a - 1))
    return np.where(size <= 2 * alpha, plain, np.where(size <= a * alpha, middle, z))
