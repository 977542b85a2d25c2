"""Clip the residual stream after each block: the negative control of "Outlier-Driven Rescaling" (arXiv 2601.22966).

Cutting outliers off while the norms still need them to rescale costs loss, or diverges without gated attention.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from skerry.core.errors import ParameterError

__all__ = ["ResidualClip"]


class ResidualClip:
    """Clamp what each of the given blocks returns to [-limit, limit], until :meth:`remove` or the end of ``with``.

    Parameters
    ----------
    blocks : iterable of Module
        Blocks that return the residual stream, as a tensor or as the first of a tuple.
    limit : float
        The paper tries 10, 100 and 1000.

    Raises
    ------
    ParameterError
        If the limit is not positive.

    Examples
    --------
    >>> import torch
    >>> block = torch.nn.Identity()
    >>> with ResidualClip([block], 10):
    ...     block(torch.tensor([1.0, 50.0]))
    tensor([ 1., 10.])
    """

    def __init__(self, blocks: Iterable[nn.Module], limit: float) -> None:
        if not limit > 0:
            raise ParameterError(f"limit is {limit}: give a positive number, such as 10, 100 or 1000")
        self.limit = float(limit)
        self._handles = [block.register_forward_hook(self._clip) for block in blocks]

    def _clip(self, module: nn.Module, inputs: tuple, output: torch.Tensor | tuple) -> torch.Tensor | tuple:
        if isinstance(output, tuple):
            return (output[0].clamp(-self.limit, self.limit), *output[1:])
        return output.clamp(-self.limit, self.limit)

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __enter__(self) -> ResidualClip:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()
