"""What is added to the main product: weights kept apart, the low-rank branch, the bias."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from skerry.quant.parts import LowRank, Solved, SparseColumns, SparseEntries

__all__ = ["Extras"]


class Extras:
    """Adds sparse part, low-rank branch and bias to a float32 product.

    Parameters
    ----------
    solved : Solved
        Its ``weight`` is not looked at.
    bias : Tensor of shape (out,), optional
    """

    def __init__(self, solved: Solved, bias: Tensor | None) -> None:
        self.bias = None if bias is None else bias.detach().float()
        self.low_rank: LowRank | None = solved.low_rank
        self._factors: dict[torch.dtype, tuple[Tensor, Tensor]] = {}
        self.columns: Tensor | None = None
        self._rows: Tensor | None = None
        self._entries: Tensor | None = None
        if isinstance(solved.sparse, SparseColumns):
            self.columns, self._rows = solved.sparse.columns.long(), solved.sparse.values.float().T.contiguous()
        elif isinstance(solved.sparse, SparseEntries):
            s = solved.sparse
            index = torch.stack((s.rows.long(), s.columns.long()))
            coordinates = torch.sparse_coo_tensor(index, s.values.float(), s.shape, check_invariants=True)
            with warnings.catch_warnings():  # torch calls its CSR tensors a beta
                warnings.simplefilter("ignore", UserWarning)
                self._entries = coordinates.coalesce().to_sparse_csr()

    @property
    def nbytes(self) -> int:
        """Bytes held beyond the stored parts."""
        held = [t for t in (self.bias, self._rows) if t is not None]
        return sum(t.numel() * t.element_size() for t in held)

    def finish(self, y: Tensor, x: Tensor, rounded: Callable[[Tensor | None], Tensor]) -> Tensor:
        """Return the layer's output from the main product.

        Parameters
        ----------
        y : float32 Tensor of shape (tokens, out)
            Changed in place.
        x : Tensor of shape (tokens, in)
            The input before rounding: what the low-rank branch sees.
        rounded : callable
            Gives the rounded input, float32, all of it (None) or some columns: what the sparse part sees.
        """
        if self.columns is not None and self._rows is not None:
            y.addmm_(rounded(self.columns).float(), self._rows)
        elif self._entries is not None:
            y.add_((self._entries @ rounded(None).float().T.contiguous()).T)
        if self.low_rank is not None:
            down, up = self._branch(x.dtype)
            y.add_((x @ down) @ up)
        return y if self.bias is None else y.add_(self.bias)

    def _branch(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        if dtype not in self._factors and self.low_rank is not None:
            self._factors = {dtype: (self.low_rank.down.to(dtype).T, self.low_rank.up.to(dtype).T)}
        return self._factors[dtype]
