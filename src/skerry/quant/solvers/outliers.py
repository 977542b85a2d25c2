"""Weights kept in floating point beside a grid: which ones, how they move, how they are stored (arXiv 2309.01885)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from skerry.quant.numerics import AffineGrid
from skerry.quant.parts import SparseColumns, SparseEntries

__all__ = ["OutlierPart", "largest_eigenvalue", "sparse_entries", "trimmed_grid"]


@dataclass
class OutlierPart:
    """The sparse matrix H, changed by :meth:`improve`.

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
    rate : float
        Length of a step along ``(T - V) G``: ``step / largest eigenvalue of G``.
    """

    dense: Tensor
    count: int
    structured: bool
    share: float
    step: float
    dtype: str
    rate: float = 0.0

    @classmethod
    def of(cls, W: Tensor, share: float, structured: bool, step: float, dtype: str) -> OutlierPart | None:
        """Return the largest weights (columns) of ``W``; None if the share comes to none."""
        count = round(share * (W.shape[1] if structured else W.numel()))
        if not count:
            return None
        part = cls(torch.zeros_like(W, dtype=torch.float64), count, structured, share, step, dtype)
        part.dense = part.largest(W.double())
        return part

    def measure(self, gram: Tensor) -> None:
        """Set the length of the steps for this Gram matrix."""
        self.rate = self.step / largest_eigenvalue(gram)

    def largest(self, A: Tensor) -> Tensor:
        """Return ``A`` with all but the largest entries (columns of largest norm) set to 0."""
        kept = torch.zeros_like(A)
        if self.structured:
            at = torch.topk(A.square().sum(0), self.count).indices
            kept[:, at] = A[:, at]
        else:
            at = torch.topk(A.abs().flatten(), self.count, sorted=False).indices
            kept.view(-1)[at] = A.flatten()[at]
        return kept

    def improve(self, direction: Tensor) -> Tensor:
        """Step along ``direction`` (half the negative gradient), project, and return the change of the target."""
        improved = self.largest(self.dense + self.rate * direction)
        change = self.dense - improved
        self.dense = improved
        return change

    def grid_without(self, grid: AffineGrid, W: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the grid of ranges that leave the outliers out: kept weights set aside, then tails trimmed.

        The published code trims tails only: in a group of few weights that trims none, whatever is kept.
        """
        if self.structured:
            return grid.fit(W * (self.dense == 0.0).any(0))
        return trimmed_grid(W * (self.dense == 0.0), grid, self.share)

    def stored(self, kept: Tensor) -> SparseEntries | SparseColumns:
        """Return ``kept`` as it is saved."""
        if not self.structured:
            return sparse_entries(kept, self.dtype)
        columns = (kept != 0.0).any(0).nonzero().flatten()
        values = kept[:, columns].to(_dtype(kept, self.dtype))
        return SparseColumns(columns.to(torch.int32), values, tuple(kept.shape))  # type: ignore[arg-type]


def trimmed_grid(W: Tensor, grid: AffineGrid, share: float) -> tuple[Tensor, Tensor | None]:
    """Return the grid of every group's range without ``share / 2`` of its values at each end."""
    if grid.group_size == 0:
        view = W.reshape(1, 1, -1)
    else:
        along = W if grid.axis == 1 else W.T
        view = along.reshape(along.shape[0], -1, grid.group_of(tuple(W.shape)))  # type: ignore[arg-type]
    size = view.shape[-1]
    cut = min(round(share * size / 2), (size - 1) // 2)
    ordered = view.sort(-1).values
    low, high = ordered[..., cut], ordered[..., size - 1 - cut]
    if grid.axis == 0 and grid.group_size:
        low, high = low.T, high.T
    return grid.fit(W, low=low, high=high)


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
