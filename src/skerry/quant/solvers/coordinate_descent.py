"""Coordinate descent on a layer's error, a column of all rows at a time: the engine of QuantEase (arXiv 2309.01885).

With all other weights fixed a row's error is a parabola in the weight (i, j); its minimum is at
``u = V_ij + ((T - V) G)_ij / G_jj`` for the target T, and the best value on the grid is the one nearest to u. The
residual ``R = (T - V) G diag(G)^-1`` is kept up to date from change to change: by a matrix product a block of columns
where most weights change, by the changed weights alone where few do.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from skerry.kernels import quantization_columns as kernel
from skerry.kernels.threads import threads_for
from skerry.quant.numerics import AffineGrid
from skerry.quant.solvers.layer import BLOCK, Places, as_arrays

__all__ = ["CoordinateDescent"]

FEW = 0.12  # share of changed weights below which they are spread one by one


class CoordinateDescent:
    """The state of a descent: weights in working order of the columns, all float64.

    Parameters
    ----------
    target : Tensor of shape (out, in)
        What the grid's weights are to imitate.
    gram : Tensor of shape (in, in), float64
    order : int64 Tensor of shape (in,)
        Columns in working order.
    grid : AffineGrid
    scale, zero : Tensor, Tensor or None
        The grid, fixed.
    name : str
    """

    def __init__(
        self,
        target: Tensor,
        gram: Tensor,
        order: Tensor,
        grid: AffineGrid,
        scale: Tensor,
        zero: Tensor | None,
        name: str,
    ) -> None:
        self.order, self.back = order, torch.argsort(order)
        self.grid, self.scale, self.zero = grid, scale, zero
        self.target = target[:, order].double().contiguous()
        ordered = gram[order][:, order]
        self.diagonal = ordered.diagonal().clamp(min=0.0).clone()
        inverse = torch.where(self.diagonal > 0.0, 1.0 / self.diagonal, 0.0)
        self.coupling = (ordered * inverse).contiguous()
        out, inputs = target.shape
        self.places = Places.of(grid, (out, inputs), order, name)
        self.codes = torch.zeros(out, inputs, dtype=torch.int8)
        self.value = self.target.clone()
        self.residual = torch.zeros_like(self.target)
        self.settled = False
        self.active = np.ones(out, dtype=np.bool_)

    def start(self, codes: Tensor) -> None:
        """Continue from codes (out, in), columns in their original order."""
        self.codes = codes[:, self.order].contiguous()
        value = self.grid.values(codes, self.scale, self.zero)
        self.value = value[:, self.order].double().contiguous()
        torch.mm(self.target - self.value, self.coupling, out=self.residual)
        self.settled = True
        self.active[:] = True

    def sweep(self, rounded: bool = True) -> int:
        """Visit every column once and return how many weights changed; ``rounded`` keeps them on the grid."""
        out, inputs = self.value.shape
        scale, zero = as_arrays(self.scale, self.zero)
        grid = (scale, zero, self.places.rows, self.places.columns)
        low, high = np.float32(self.grid.qmin), np.float32(self.grid.qmax)
        moved, before = np.zeros(out, dtype=np.int64), 0
        state = (self.residual.numpy(), self.value.numpy(), self.codes.numpy())
        with threads_for(out * inputs * BLOCK):
            for start in range(0, inputs, BLOCK):
                stop = min(start + BLOCK, inputs)
                own = self.coupling[start:stop, start:stop].contiguous().numpy()
                changes = torch.empty(out, stop - start, dtype=torch.float64)
                kernel.coordinate_block(
                    *(*state, own, *grid, start, low, high, rounded, self.settled),
                    *(self.active, changes.numpy(), moved),
                )
                count, before = int(moved.sum()) - before, int(moved.sum())
                self._spread(changes, start, stop, count)
        self.active = moved > 0 if rounded and self.settled else np.ones(out, dtype=np.bool_)
        self.settled = rounded
        return before

    def _spread(self, changes: Tensor, start: int, stop: int, count: int) -> None:
        if not count:
            return
        rows = self.coupling[start:stop]
        if count < FEW * changes.numel():
            kernel.spread_changes(self.residual.numpy(), changes.numpy(), rows.numpy(), start, stop)
            return
        self.residual[:, :start].addmm_(changes, rows[:, :start], alpha=-1.0)
        self.residual[:, stop:].addmm_(changes, rows[:, stop:], alpha=-1.0)

    def refit(self) -> int:
        """Give every row the scales of least error for its codes, in their dtype; return how many rows got better.

        With codes fixed the error is a parabola in a row's scales: its minimum solves one linear system a row, of as
        many equations as the row has groups. Grids along rows only.
        """
        groups = self.scale.shape[1]
        member = torch.nn.functional.one_hot(torch.from_numpy(self.places.columns), groups).double()  # (in, groups)
        zero = 0.0 if self.zero is None else self.zero.double()[:, self.places.columns]
        unit = self.codes.double() - zero
        gram = self.coupling * self.diagonal
        A = torch.empty(len(unit), groups, groups, dtype=torch.float64)
        for g in range(groups):
            own = member[:, g] > 0.0
            A[:, g] = ((unit[:, own] @ gram[own]) * unit) @ member
        b = (unit * (self.target @ gram)) @ member
        power = A.diagonal(dim1=1, dim2=2)
        ridge = torch.where(power > 0.0, 1e-12 * power, torch.ones_like(power))
        old = self.scale.double()
        new = torch.linalg.solve_ex(A + torch.diag_embed(ridge), b)[0].to(self.scale.dtype).double()
        new = torch.where((new > 0.0) & torch.isfinite(new) & (power > 0.0), new, old)

        def error(s: Tensor) -> Tensor:
            return (torch.einsum("rg,rgh,rh->r", s, A, s) - 2.0 * (b * s).sum(1)).double()

        better = error(new) < error(old)
        if not bool(better.any()):
            return 0
        self.scale = torch.where(better[:, None], new, old).to(self.scale.dtype)
        self.value = unit * self.scale.double()[:, self.places.columns]
        torch.mm(self.target - self.value, self.coupling, out=self.residual)
        self.active |= better.numpy()
        return int(better.sum())

    def move_target(self, change: Tensor) -> None:
        """Add ``change`` (out, in), columns in working order, mostly zeros, to the target."""
        self.target += change
        with threads_for(change.numel() * BLOCK):
            kernel.spread_changes(self.residual.numpy(), (-change).numpy(), self.coupling.numpy(), 0, 0)
        self.active[:] = True

    def take_over(self, kept: Tensor) -> Tensor:
        """Let the grid take what it can of weights kept beside it (out, in); return what is left of them.

        The sum of both, and so the error, stays as it is.
        """
        at = kept != 0.0
        total = self.value + kept
        whole = torch.where(at, total, 0.0)[:, self.back].float()
        codes = self.grid.codes(whole, self.scale, self.zero)
        values = self.grid.values(codes, self.scale, self.zero)[:, self.order].double()
        left = torch.where(at, total - values, 0.0)
        self.codes = torch.where(at, codes[:, self.order], self.codes)
        self.value = torch.where(at, values, self.value)
        self.target += kept - left
        return left

    def error(self) -> float:
        """Return the layer's error ``tr((T - V) G (T - V)^T)``."""
        arrays = (self.target.numpy(), self.value.numpy(), self.residual.numpy(), self.diagonal.numpy())
        with threads_for(self.target.numel()):
            return max(float(kernel.descent_error(*arrays)), 0.0)

    def descent_direction(self) -> Tensor:
        """Return ``(T - V) G``: half the negative gradient of the error by V, columns in working order."""
        return self.residual * self.diagonal

    def found(self, codes: Tensor | None = None) -> Tensor:
        """Return the codes (out, in), or a copy of earlier ones, with columns in their original order."""
        return (self.codes if codes is None else codes)[:, self.back].contiguous()
