"""Hadamard rotations: orthogonal matrices of entries +-1/sqrt(n), and the fast product with one.

Orders are 2^a times 1 or an order of Paley's two constructions (12, 20, 28, 36, 44 ...), which covers the widths of
most networks; for another width :func:`rotation_matrix` draws a random orthogonal one. Nothing is ever padded.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from skerry.core.errors import ParameterError

__all__ = ["fast_hadamard", "hadamard_matrix", "has_hadamard", "rotation_matrix"]


def has_hadamard(n: int) -> bool:
    """Return whether :func:`hadamard_matrix` knows a matrix of order ``n``.

    Examples
    --------
    >>> [n for n in range(1, 50) if has_hadamard(n)]
    [1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48]
    """
    return n >= 1 and _core_order(n) is not None


def hadamard_matrix(n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return an orthonormal Hadamard matrix (n, n): ``H @ H.T = I``, all entries +-1/sqrt(n).

    Raises
    ------
    ParameterError
        If no construction is known here for ``n``.
    """
    core = _core_order(n)
    if core is None:
        raise ParameterError(f"no Hadamard matrix of order {n} is known here; use rotation_matrix({n})")
    signs = _core(core)
    while len(signs) < n:
        signs = torch.cat([torch.cat([signs, signs], 1), torch.cat([signs, -signs], 1)])
    return (signs.double() / math.sqrt(n)).to(dtype)


def rotation_matrix(n: int, *, random_state: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a random-sign Hadamard rotation (n, n), or a random orthogonal one where no Hadamard order fits.

    Examples
    --------
    >>> R = rotation_matrix(7, dtype=torch.float64)
    >>> torch.allclose(R @ R.T, torch.eye(7, dtype=torch.float64))
    True
    """
    generator = torch.Generator().manual_seed(random_state)
    if has_hadamard(n):
        signs = torch.randint(0, 2, (n, 1), generator=generator).double() * 2 - 1
        return (signs * hadamard_matrix(n, torch.float64)).to(dtype)
    q, r = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    return (q * torch.sign(torch.diagonal(r))).to(dtype)


def fast_hadamard(x: Tensor) -> Tensor:
    """Return ``x @ hadamard_matrix(n)`` for ``x`` (..., n) in n log n operations.

    Examples
    --------
    >>> x = torch.randn(3, 24, generator=torch.Generator().manual_seed(0))
    >>> torch.allclose(fast_hadamard(x), x @ hadamard_matrix(24), atol=1e-6)
    True
    """
    n = x.shape[-1]
    core = _core_order(n)
    if core is None:
        raise ParameterError(f"no Hadamard matrix of order {n} is known here")
    y = x.reshape(-1, n // core, core)
    if core > 1:
        y = y @ _core(core).to(y)
    width = 1
    while width < n // core:
        y = y.reshape(len(y), -1, 2, width, core)
        y = torch.stack([y[:, :, 0] + y[:, :, 1], y[:, :, 0] - y[:, :, 1]], dim=2)
        width *= 2
    return y.reshape(x.shape) / math.sqrt(n)


def _core_order(n: int) -> int | None:
    """Return m such that n = 2^a m and m is 1 or an order of Paley's constructions; None without one."""
    m = n
    while m > 1:
        if (m % 4 == 0 and _paley(m)) or m == 1:
            return m
        if m % 2:
            return None
        m //= 2
    return 1 if m == 1 and n >= 1 and not n & (n - 1) else None


def _paley(m: int) -> int:
    """Return 1 or 2 for Paley's first (q = m - 1) or second (q = m/2 - 1) construction, 0 for neither."""
    if not m & (m - 1):
        return 0  # a power of two: Sylvester's is simpler
    if _is_prime(m - 1) and (m - 1) % 4 == 3:
        return 1
    return 2 if _is_prime(m // 2 - 1) and (m // 2 - 1) % 4 == 1 else 0


def _is_prime(q: int) -> bool:
    return q > 1 and all(q % k for k in range(2, math.isqrt(q) + 1))


@lru_cache(maxsize=8)
def _core(m: int) -> Tensor:
    if m == 1:
        return torch.ones(1, 1)
    kind = _paley(m)
    q = m - 1 if kind == 1 else m // 2 - 1
    squares = {i * i % q for i in range(1, q)}
    character = torch.tensor([0.0] + [1.0 if i in squares else -1.0 for i in range(1, q)])
    places = torch.arange(q)
    jacobsthal = character[(places[:, None] - places[None, :]) % q]
    border = torch.zeros(q + 1, q + 1)
    border[0, 1:], border[1:, 0], border[1:, 1:] = 1.0, -1.0 if kind == 1 else 1.0, jacobsthal
    if kind == 1:  # I + S, S skew
        return border + torch.eye(q + 1)
    eye = torch.eye(q + 1)
    return torch.kron(border, torch.tensor([[1.0, 1.0], [1.0, -1.0]])) + torch.kron(
        eye, torch.tensor([[1.0, -1.0], [-1.0, -1.0]])
    )
