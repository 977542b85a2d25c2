"""What the solvers share: checks, the layer's error, the factor of the damped Gram matrix, the loop over columns.

A layer's error is ``tr((W - V) G (W - V)^T)``: the squared difference of outputs ``x W^T`` and ``x V^T`` over the
calibration tokens whose Gram matrix is G. All of it runs on the processor in float64.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from skerry.core.errors import ModelError, SkerryWarning
from skerry.kernels import quantization_columns as kernel
from skerry.kernels.threads import threads_for
from skerry.quant.numerics import AffineGrid, IntTensor
from skerry.quant.parts import Solved, on_device
from skerry.quant.statistics import LayerStatistics

__all__ = [
    "BLOCK",
    "Places",
    "affine",
    "checked",
    "column_order",
    "error_feedback",
    "feedback_factor",
    "finished",
    "gram_of",
    "grouped",
    "layer_error",
    "min_max",
    "on_the_weights_device",
    "per_scale",
]

BLOCK = 128  # columns settled between two matrix products
DAMP_STEP, DAMP_LIMIT = 0.0025, 0.1
MANTISSA = {"float32": 24, "bfloat16": 8, "float16": 11}


Solve = TypeVar("Solve", bound=Callable[..., Solved])


def on_the_weights_device(solve: Solve) -> Solve:
    """Let a solver's method work on the processor and return its result where the weight was."""

    @functools.wraps(solve)
    def solved(self: Any, W: Tensor, *arguments: Any, **keywords: Any) -> Solved:
        return on_device(solve(self, W, *arguments, **keywords), W.device)

    return solved  # type: ignore[return-value]


def checked(W: Tensor, name: str) -> Tensor:
    """Return the weight as float32 on the processor.

    Raises
    ------
    ModelError
        If it is not a matrix with rows and columns, or holds NaN or infinite values.
    """
    if W.ndim != 2 or not W.numel():
        raise ModelError(f"{name}: a weight must be a matrix (out, in), got shape {tuple(W.shape)}")
    W = W.detach().to("cpu", torch.float32).contiguous()
    if not bool(torch.isfinite(W).all()):
        rows = int((~torch.isfinite(W)).any(1).sum())
        raise ModelError(
            f"{name}: the weight holds NaN or infinite values in {rows} of {len(W)} rows; repair the model"
        )
    return W


def gram_of(statistics: LayerStatistics, W: Tensor, name: str) -> Tensor:
    """Return the Gram matrix (in, in) of the layer's inputs, float64, symmetric.

    Raises
    ------
    ModelError
        If it was not collected, does not fit the weight or is not finite.
    """
    if statistics.gram is None:
        raise ModelError(f"{name}: this solver needs the 'gram' statistic of the layer's inputs")
    gram = statistics.gram.detach().to("cpu", torch.float64)
    if tuple(gram.shape) != (W.shape[1], W.shape[1]):
        raise ModelError(f"{name}: a Gram matrix of {tuple(gram.shape)} does not fit {W.shape[1]} inputs")
    if not bool(torch.isfinite(gram).all()):
        raise ModelError(f"{name}: the Gram matrix of its inputs holds NaN or infinite values")
    return (gram + gram.T).mul_(0.5)


def affine(grid: Any, name: str, solver: str) -> AffineGrid:
    """Return ``grid`` if it is a uniform grid.

    Raises
    ------
    ModelError
        For another format.
    """
    if not isinstance(grid, AffineGrid):
        raise ModelError(f"{name}: {solver} works on uniform grids (AffineGrid), not on {type(grid).__name__}; use RTN")
    return grid


def layer_error(W: Tensor, V: Tensor, gram: Tensor) -> float:
    """Return ``tr((W - V) G (W - V)^T)``.

    Examples
    --------
    >>> layer_error(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 2.0]]), torch.eye(2, dtype=torch.float64))
    1.0
    """
    E = W.double() - V.double()
    return max(float(((E @ gram) * E).sum()), 0.0)


def column_order(gram: Tensor, by_activity: bool) -> Tensor:
    """Return the columns in working order: the most active first, or as they stand."""
    if not by_activity:
        return torch.arange(len(gram))
    return torch.argsort(gram.diagonal(), descending=True, stable=True)


def min_max(W: Tensor, grid: AffineGrid, *, clip: bool = False) -> tuple[Tensor, Tensor | None]:
    """Return scale and zero point of every group of ``W``; ``clip`` searches ranges shrunk to as little as a fifth.

    The search (GPTQ's) takes the least ``sum |w - q(w)|^2.4`` over 80 shares of the range.
    """
    scale, zero = grid.fit(W)
    if not clip:
        return scale, zero
    view = grouped(W, grid)
    low, high = per_scale(view.amin(-1), grid), per_scale(view.amax(-1), grid)
    best = _powers(W, grid, scale, zero)
    for step in range(1, 80):
        share = 1.0 - step / 100.0
        s, z = grid.fit(W, low=low * share, high=high * share)
        error = _powers(W, grid, s, z)
        better = error < best
        best, scale = torch.where(better, error, best), torch.where(better, s, scale)
        zero = None if zero is None or z is None else torch.where(better, z, zero)
    return scale, zero


def _powers(W: Tensor, grid: AffineGrid, scale: Tensor, zero: Tensor | None) -> Tensor:
    error = (grid.values(grid.codes(W, scale, zero), scale, zero) - W).abs() ** 2.4
    return per_scale(grouped(error, grid).sum(-1), grid)


def grouped(W: Tensor, grid: AffineGrid) -> Tensor:
    """Return ``W`` (out, in) as (lines, groups, size): lines are rows, or columns for a grid along them."""
    if grid.group_size == 0:
        return W.reshape(1, 1, -1)
    along = W if grid.axis == 1 else W.T
    return along.reshape(along.shape[0], -1, grid.group_of(tuple(W.shape)))  # type: ignore[arg-type]


def per_scale(values: Tensor, grid: AffineGrid) -> Tensor:
    """Return one value a group, (lines, groups), in the shape of the grid's scale."""
    return values.T if grid.axis == 0 and grid.group_size else values


@dataclass(frozen=True)
class Places:
    """Which entry of a grid's scale a weight uses, for columns taken in ``order``.

    Attributes
    ----------
    rows : int
        Neighbouring rows that share an entry.
    columns : int64 ndarray of shape (in,)
        Entry of every column, in working order.
    shape : tuple of int
        Of the scale.
    """

    rows: int
    columns: np.ndarray
    shape: tuple[int, int]

    @classmethod
    def of(cls, grid: AffineGrid, shape: tuple[int, int], order: Tensor, name: str) -> Places:
        """Return the places of ``grid`` on a weight of ``shape``; an error names the layer if groups do not fit."""
        out, inputs = shape
        at = order.numpy()
        if grid.group_size == 0:
            return cls(out, np.zeros(inputs, dtype=np.int64), (1, 1))
        size = grid.group_of(shape, name)
        if grid.axis == 1:
            return cls(1, at // size, (out, inputs // size))
        return cls(size, at.astype(np.int64), (out // size, inputs))


@dataclass(frozen=True)
class Factor:
    """``G + damping = A diag(power) A^T`` with A unit upper triangular, columns in working order.

    Attributes
    ----------
    feedback : Tensor of shape (in, in), float64
        A: entry (j, k) is the share of column j's error that column k takes over.
    power : Tensor of shape (in,), float64
        ``1 / U_jj^2`` in the notation of GPTQ's inverse factor U.
    damp : float
        Share of the mean diagonal entry that was added.
    """

    feedback: Tensor
    power: Tensor
    damp: float


def feedback_factor(gram: Tensor, damp: float) -> Factor | None:
    """Factor the damped Gram matrix; dead inputs get 1 on the diagonal.

    If the matrix is not positive definite, ``damp`` is raised by steps of 0.0025 to 0.1; None if that does not help.

    Notes
    -----
    GPTQ's feedback by the Cholesky factor U of the inverse equals feedback of the original weights' errors by A: with
    ``H = R R^T``, R upper triangular, ``U = R^-1`` and ``A = R diag(R)^-1``. No inverse is taken.
    """
    diagonal = gram.diagonal()
    mean = float(diagonal.mean())
    if mean <= 0.0:
        return None
    dead = (diagonal <= 0.0).flip(0)
    while True:
        H = gram.flip(0, 1)  # a copy: wide layers' matrices take a gigabyte
        H.diagonal().add_(damp * mean)
        H.diagonal()[dead] = 1.0
        lower, failed = torch.linalg.cholesky_ex(H)
        pivots = lower.diagonal()
        # rank deficiency may pass as tiny pivots of nothing but rounding
        if not failed and float(pivots.min()) ** 2 > 1e-13 * float(H.diagonal().max()):
            del H
            upper = lower.flip(0, 1)
            pivots = upper.diagonal().clone()
            return Factor(upper.div_(pivots), pivots**2, damp)
        if damp + DAMP_STEP > DAMP_LIMIT + 1e-12:
            return None
        damp += DAMP_STEP


def error_feedback(
    W: Tensor,
    factor: Factor,
    order: Tensor,
    grid: AffineGrid,
    scale: Tensor | None,
    zero: Tensor | None,
    name: str,
    *,
    unextended: bool = False,
    places: Places | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Round ``W`` column by column, every error fed to the columns after it: GPTQ's loop.

    Parameters
    ----------
    W : Tensor of shape (out, in), float32
    factor : Factor
        Of the Gram matrix with rows and columns in ``order``.
    order : int64 Tensor of shape (in,)
    grid : AffineGrid
    scale, zero : Tensor or None
        A grid given beforehand; None fits every group when its first column is reached, on the weights as they stand
        then (with axis 1 only in the natural order).
    name : str
    unextended : bool, default False
        Ranges of fresh grids need not contain 0 (AdaDim's published rule).
    places : Places, optional
        Where a weight's scale is, if not by the grid's own groups.

    Returns
    -------
    codes : int8 Tensor of shape (out, in)
    scale, zero : Tensor
    """
    out, inputs = W.shape
    places = places or Places.of(grid, (out, inputs), order, name)
    fresh = scale is None
    if scale is None:
        s, z = np.ones(places.shape, np.float32), np.zeros(places.shape, np.float32)
    else:
        s, z = as_arrays(scale, zero)
    weight = W[:, order].double().contiguous()
    error, codes = torch.zeros_like(weight), torch.zeros(out, inputs, dtype=torch.int8)
    low, high = np.float32(grid.qmin), np.float32(grid.qmax)
    size = inputs if grid.group_size <= 0 or not fresh else grid.group_of((out, inputs), name)
    block = size * max(1, BLOCK // size) if fresh and grid.axis == 1 else BLOCK
    rule = kernel.UNEXTENDED if unextended else _rule(grid)
    floor = np.float32(max(float(W.abs().amax() * 1e-8), 1e-30))
    fit = (rule, low, high, floor, MANTISSA[grid.scale_dtype])
    with threads_for(out * inputs * BLOCK):
        for start in range(0, inputs, block):
            stop = min(start + block, inputs)
            target = weight[:, start:stop].clone()
            if start:
                target.addmm_(error[:, :start], factor.feedback[:start, start:stop])
            own = factor.feedback[start:stop, start:stop].contiguous().numpy()
            common = (target.numpy(), weight.numpy(), error.numpy(), codes.numpy(), own, s, z)
            if not fresh:
                kernel.feedback_block(*common, places.rows, places.columns, start, low, high)
            elif grid.axis == 0:
                kernel.fresh_column_block(*common, places.rows, start, *fit)
            else:
                kernel.fresh_group_block(*common, size, start, *fit)
    back = torch.argsort(order)
    codes = codes[:, back].contiguous()
    if not fresh:
        return codes, scale, zero  # type: ignore[return-value]
    if grid.axis == 0:
        s, z = s[:, back.numpy()], z[:, back.numpy()]
    scale = torch.from_numpy(np.ascontiguousarray(s)).to(getattr(torch, grid.scale_dtype))
    integer = torch.from_numpy(np.ascontiguousarray(z)).to(torch.int32)
    return codes, scale, None if grid.symmetric and not unextended else integer


def as_arrays(scale: Tensor, zero: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
    """Return scale and zero point as the kernels want them: float32, zero 0 where there is none."""
    s = np.ascontiguousarray(scale.detach().float().cpu().numpy())
    return s, np.zeros_like(s) if zero is None else np.ascontiguousarray(zero.detach().float().cpu().numpy())


def _rule(grid: AffineGrid) -> int:
    if grid.symmetric:
        return kernel.FULL_RANGE if grid.full_range else kernel.SYMMETRIC
    return kernel.ASYMMETRIC


def finished(
    W: Tensor, grid: AffineGrid, codes: Tensor, scale: Tensor, zero: Tensor | None, gram: Tensor | None, info: dict
) -> Solved:
    """Return codes on a grid as a result, with the layer's error if the Gram matrix is at hand."""
    weight = IntTensor(grid, codes, scale, zero)
    error = float("nan") if gram is None else layer_error(W, weight.dequantize(), gram)
    return Solved(weight, objective=error, info=info)


def told(info: dict[str, Any], statistics: LayerStatistics, gram: Tensor) -> dict[str, Any]:
    """Add to ``info`` what a reader must know of the Gram matrix: dead inputs, fewer tokens than inputs."""
    if dead := int((gram.diagonal() <= 0.0).sum()):
        info["dead_inputs"] = dead
    if 0 < statistics.tokens < len(gram):
        info["few_tokens"] = f"{statistics.tokens} tokens for {len(gram)} inputs"
    return info


def fell_back(name: str, info: dict[str, Any]) -> dict[str, Any]:
    """Warn that a layer is rounded to nearest, and note it."""
    reason = (
        "its inputs are all zero" if info.get("silent") else "the Gram matrix of its inputs is not positive definite"
    )
    warnings.warn(f"{name}: {reason}; rounded to nearest instead", SkerryWarning, stacklevel=3)
    return info | {"fallback": "rtn"}
