"""Weights kept in floating point beside a grid: which ones, how they move, how they are stored (arXiv 2309.01885)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from skerry.quant.numerics import AffineGrid
from skerry.quant.parts import SparseColumns, SparseEntries
from skerry.quant.solvers.coordinate_descent import CoordinateDescent
from skerry.quant.solvers.layer import grouped, per_scale

__all__ = ["OutlierPart", "largest_eigenvalue", "sparse_entries", "trimmed_grid"]


@dataclass
class OutlierPart:
    """The sparse matrix H, columns in working order, changed by :meth:`improve`.

    Attributes
    ----------
    dense : Tensor of shape (out, in), float64
        Zeros and the kept weights.
    count : int
        Weights kept; columns, if ``structured``.
    structured : bool
    share, step : float
    dtype : str
        Of the stored values.
    scaled : bool
        Measure entries by the activity of their column.
    power : Tensor of shape (in,), float64
        That activity: the diagonal of the Gram matrix, or ones.
    rate : float
        Least length of a step: ``step`` over the largest eigenvalue of G (of G with unit diagonal, if ``scaled``).
    length : float
        Length tried now: from 1 downwards if ``scaled``.
    """

    dense: Tensor
    count: int
    structured: bool
    share: float
    step: float
    dtype: str
    scaled: bool
    power: Tensor
    rate: float = 0.0
    length: float = 0.0

    @classmethod
    def of(
        cls, W: Tensor, share: float, structured: bool, step: float = 1.0, dtype: str = "float16", scaled: bool = True
    ) -> OutlierPart | None:
        """Return the largest weights (columns) of ``W``; None if the share comes to none."""
        count = round(share * (W.shape[1] if structured else W.numel()))
        if not count:
            return None
        ones = torch.ones(W.shape[1], dtype=torch.float64)
        part = cls(torch.zeros_like(W, dtype=torch.float64), count, structured, share, step, dtype, scaled, ones)
        part.dense = part.largest(W.double())
        return part

    def measure(self, gram: Tensor) -> None:
        """Set the length of the steps, and what an entry weighs, for this Gram matrix."""
        if self.scaled:
            self.power = gram.diagonal().clamp(min=0.0).clone()
            root = torch.where(self.power > 0.0, self.power.rsqrt(), 0.0)
            gram = gram * torch.outer(root, root)
        self.rate = self.step / largest_eigenvalue(gram)
        self.length = 1.0 if self.scaled else self.rate

    def largest(self, A: Tensor) -> Tensor:
        """Return ``A`` with all but the largest entries (columns of largest norm) set to 0."""
        kept = torch.zeros_like(A)
        if self.structured:
            at = torch.topk(A.square().sum(0) * self.power, self.count).indices
            kept[:, at] = A[:, at]
        else:
            at = torch.topk((A.abs() * self.power.sqrt()).flatten(), self.count, sorted=False).indices
            kept.view(-1)[at] = A.flatten()[at]
        return kept

    def improve(self, state: CoordinateDescent) -> None:
        """Move the kept weights, and which they are, to lower the error of ``state``; columns in working order.

        Of every kept weight the grid takes what it can, so that all are measured by what they add to it; then comes a
        step along the negative gradient and the projection, both in the metric ``power``. The step is halved until the
        error does not rise, which is certain at ``rate``.
        """
        if state.settled:
            self.dense = state.take_over(self.dense)
        inverse = torch.where(self.power > 0.0, 1.0 / self.power, 0.0)
        before, kept, direction = state.error(), self.dense, state.descent_direction() * inverse
        while True:
            improved = self.largest(kept + self.length * direction)
            state.move_target(kept - improved)
            if self.length <= self.rate or state.error() <= before:
                self.dense = improved
                return
            state.move_target(improved - kept)
            self.length = max(self.length / 2.0, self.rate)

    def grid_without(self, grid: AffineGrid, W: Tensor, kept: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the grid of ranges that leave the outliers out: kept weights set aside, then tails trimmed.

        ``W`` and ``kept`` (out, in) have their columns in the original order.
        The published code trims tails only: in a group of few weights that trims none, whatever is kept.
        """
        if self.structured:
            return grid.fit(W * (kept == 0.0).any(0))
        return trimmed_grid(W * (kept == 0.0), grid, self.share)

    def stored(self, kept: Tensor) -> SparseEntries | SparseColumns:
        """Return ``kept`` as it is saved."""
        if not self.structured:
            return sparse_entries(kept, self.dtype)
        columns = (kept != 0.0).any(0).nonzero().flatten()
        values = kept[:, columns].to(_dtype(kept, self.dtype))
        return SparseColumns(columns.to(torch.int32), values, tuple(kept.shape))  # type: ignore[arg-type]


def trimmed_grid(W: Tensor, grid: AffineGrid, share: float) -> tuple[Tensor, Tensor | None]:
    """Return the grid of every group's range without ``share / 2`` of its values at each end."""
    view = grouped(W, grid)
    size = view.shape[-1]
    cut = min(round(share * size / 2), (size - 1) // 2)
    ordered = view.sort(-1).values
    low, high = ordered[..., cut], ordered[..., size - 1 - cut]
    return grid.fit(W, low=per_scale(low, grid), high=per_scale(high, grid))


def sparse_entries(kept: Tensor, dtype: str) -> SparseEntries:
    """Return the entries of ``kept`` (out, in) that are not 0, by rows."""
    rows, columns = kept.nonzero(as_tuple=True)
    values = kept[rows, columns].to(_dtype(kept, dtype))
    return SparseEntries(rows.to(torch.int32), columns.to(torch.int32), values, tuple(kept.shape))  # type: ignore[arg-type]


def largest_eigenvalue(gram: Tensor) -> float:
    """Return the largest eigenvalue of a Gram matrix by power iteration, its residual added: not below the true one.

    Examples
    --------
    >>> round(largest_eigenvalue(torch.diag(torch.tensor([1.0, 4.0, 2.0], dtype=torch.float64))), 4)
    4.0
    """
    v = torch.randn(len(gram), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    value = rest = 0.0
    for _ in range(300):
        v = v / v.norm()
        w = gram @ v
        value = float(v @ w)
        rest = float((w - value * v).norm())
        if rest <= 1e-6 * value:
            break
        v = w
    return value + rest


def _dtype(values: Tensor, dtype: str) -> torch.dtype:
    """Return the dtype of stored values; float16 gives way to bfloat16 where it would overflow."""
    if dtype == "float16" and values.numel() and float(values.abs().max()) > 65504.0:
        return torch.bfloat16
    return getattr(torch, dtype)
