"""The nearest matrix with orthonormal rows or columns, by Newton-Schulz steps on a whole stack of matrices at once.

A step applies ``f(s) = a s + b s^3 + c s^5`` to every singular value and leaves the singular vectors; five steps of the
published triple take values of 0.01 to 1 close to 1 (Jordan et al., Muon, 2024).
"""

from __future__ import annotations

import torch
from torch import Tensor

from skerry.core.errors import ParameterError

__all__ = ["MUON_COEFFICIENTS", "newton_schulz"]

MUON_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def newton_schulz(
    matrices: Tensor,
    coefficients: tuple[float, float, float] = MUON_COEFFICIENTS,
    steps: int = 5,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return the orthogonalized matrices: same singular vectors, singular values near 1.

    Every matrix is divided by its Frobenius norm first, so its scale does not matter; a zero matrix stays zero. The
    iteration runs on the wide orientation, where its products are smaller; if the matrix is wide enough, on the Gram
    matrix alone, which saves nearly half of the products at 1 to 4 and agrees to about 1e-4 in float32.

    Parameters
    ----------
    matrices : Tensor of shape (..., m, n)
        Not changed. One leading axis or more makes a stack, which costs one batched product per operation.
    coefficients : (float, float, float), default (3.4445, -4.7750, 2.0315)
        ``a, b, c`` of the step; :func:`skerry.train.optim.adanewton.fit` finds the best for a shape.
    steps : int, default 5
    dtype : torch.dtype, optional
        Type to compute in. By default bfloat16 on CUDA devices, else float32 (float64 stays float64). Float16
        overflows and is refused.

    Returns
    -------
    Tensor
        Of the shape and dtype of ``matrices``.

    Raises
    ------
    ParameterError
        If ``matrices`` has fewer than two axes, ``steps`` is negative or ``dtype`` is not bfloat16, float32, float64.

    Examples
    --------
    >>> import torch
    >>> values = torch.linalg.svdvals(newton_schulz(torch.diag(torch.tensor([1.0, 0.5, 0.1]))))
    >>> [round(v, 4) for v in values.tolist()]
    [1.1187, 0.712, 0.6988]
    """
    if matrices.ndim < 2:
        raise ParameterError(f"matrices has {matrices.ndim} axes: give (..., m, n)")
    if steps < 0:
        raise ParameterError(f"steps is {steps}: give 0 or more")
    x = matrices.to(compute_dtype(matrices, dtype))
    wide = x.mT if x.shape[-2] > x.shape[-1] else x
    shape = wide.shape
    # A tiny matrix still has a direction: only a zero norm is replaced, nothing is added to it.
    norm = torch.linalg.vector_norm(wide, dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    wide = (wide / norm).reshape(-1, *shape[-2:])
    wide = (_by_gram if _gram_is_cheaper(wide, coefficients[0], steps) else _iterate)(wide, coefficients, steps)
    wide = wide.reshape(shape)
    return (wide.mT if x.shape[-2] > x.shape[-1] else wide).to(matrices.dtype)


def _iterate(wide: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    a, b, c = coefficients
    for _ in range(steps):
        gram = torch.bmm(wide, wide.mT)
        wide = torch.baddbmm(wide, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide


def _by_gram(wide: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """Do the same on ``A = X X'`` alone: every iterate is a polynomial in A times X, so X is multiplied only twice."""
    a, b, c = coefficients
    gram, factor = torch.bmm(wide, wide.mT), None
    for k in range(steps):
        step = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        step.diagonal(dim1=-2, dim2=-1).add_(a)
        factor = step if factor is None else torch.bmm(step, factor)
        if k < steps - 1:
            gram = torch.bmm(step, torch.bmm(gram, step))
            gram = (gram + gram.mT).mul_(0.5)
    return torch.bmm(factor, wide)


def _gram_is_cheaper(wide: Tensor, slope: float, steps: int) -> bool:
    """Tell whether the second way has fewer operations, and is as exact.

    Rounding can leave eigenvalues of the Gram matrix slightly below zero, and each step multiplies them by the slope
    squared: in few digits or many steps they would grow.
    """
    m, n = wide.shape[-2:]
    grown = torch.finfo(wide.dtype).eps * abs(slope) ** (2 * (steps - 1))
    fewer = 2 * m * n + (4 * steps - 3) * m * m < steps * (2 * m * n + m * m)
    return steps > 1 and fewer and grown < 0.01


def compute_dtype(matrices: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """Return the type that :func:`newton_schulz` computes in."""
    if dtype is None:
        if matrices.dtype == torch.float64:
            return torch.float64
        return torch.bfloat16 if matrices.is_cuda else torch.float32
    if dtype not in (torch.bfloat16, torch.float32, torch.float64):
        raise ParameterError(f"dtype is {dtype}: Newton-Schulz steps need bfloat16, float32 or float64")
    return dtype
