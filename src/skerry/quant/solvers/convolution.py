"""Weight solvers on convolutions: a kernel is a row, the patches under it are its inputs (QuantEase, GPTQ, ...)."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, unfold

from skerry.core.errors import DataError, ModelError
from skerry.quant.parts import Format, Solved
from skerry.quant.statistics import StatisticsCollector

__all__ = ["patches_of", "solve_convolution"]

Convolution = nn.Conv1d | nn.Conv2d


def patches_of(layer: Convolution, x: Tensor) -> Tensor:
    """Return what the kernels of a convolution are multiplied with.

    Parameters
    ----------
    layer : nn.Conv1d or nn.Conv2d
    x : Tensor of shape (N, C, L) or (N, C, H, W)

    Returns
    -------
    Tensor of shape (groups, N, places, C / groups * kernel size)
        In the order of ``layer.weight.flatten(1)``.

    Examples
    --------
    >>> layer = nn.Conv2d(2, 3, 3, padding=1, bias=False)
    >>> x = torch.randn(1, 2, 4, 4)
    >>> product = patches_of(layer, x)[0] @ layer.weight.flatten(1).T
    >>> torch.allclose(product.mT.reshape(1, 3, 4, 4), layer(x), atol=1e-5)
    True
    """
    if isinstance(layer, nn.Conv1d):
        sizes = [(1, v[0]) for v in (layer.kernel_size, layer.dilation, layer.stride)]
        x = x.unsqueeze(-2)
    else:
        sizes = [tuple(v) for v in (layer.kernel_size, layer.dilation, layer.stride)]
    kernel, dilation, stride = sizes
    sides = list(layer._reversed_padding_repeated_twice)
    if any(sides):
        ahead = sides if isinstance(layer, nn.Conv2d) else [*sides, 0, 0]
        x = pad(x, ahead, mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)
    columns = unfold(x, kernel, dilation=dilation, stride=stride)  # (N, C * kernel, places)
    return torch.stack(columns.chunk(layer.groups, 1)).mT


@torch.no_grad()
def solve_convolution(
    layer: Convolution, batches: Iterable[Tensor], solver: Any, grid: Format, *, name: str = "the layer"
) -> tuple[Convolution, list[Solved]]:
    """Solve the weight of a convolution on the inputs that reach it.

    Parameters
    ----------
    layer : nn.Conv1d or nn.Conv2d
    batches : iterable of Tensor of shape (N, C, ...)
        Inputs of this layer.
    solver : Solver
        For example ``QuantEase()``.
    grid : Format
        Its groups run along the kernel: input channels first, then places.
    name : str
        For errors.

    Returns
    -------
    layer : nn.Conv1d or nn.Conv2d
        A copy with the weight that was found, dequantized.
    solved : list of Solved
        The stored parts, one for each of the layer's groups: (out / groups, in / groups * kernel size).

    Raises
    ------
    ModelError
        For another kind of layer, or what the solver refuses.
    DataError
        If there is no batch, or one does not fit the layer.

    Examples
    --------
    >>> from skerry.quant.numerics import AffineGrid
    >>> from skerry.quant.solvers import GPTQ, RTN
    >>> _ = torch.manual_seed(0)
    >>> layer, x = nn.Conv2d(4, 8, 3), torch.randn(8, 4, 9, 9).cumsum(-1)
    >>> found, plain = (solve_convolution(layer, [x], s, AffineGrid(3))[0] for s in (GPTQ(), RTN()))
    >>> bool((found(x) - layer(x)).norm() < 0.7 * (plain(x) - layer(x)).norm())
    True
    """
    if not isinstance(layer, (nn.Conv1d, nn.Conv2d)) or layer.transposed:
        raise ModelError(f"{name}: a {type(layer).__name__} is not unfolded; Conv1d and Conv2d are")
    collectors = [StatisticsCollector(getattr(solver, "needs", ()) or {"absmax"}, name) for _ in range(layer.groups)]
    seen = False
    for x in batches:
        if x.ndim != layer.weight.ndim or x.shape[1] != layer.in_channels:
            raise DataError(f"{name}: inputs of {tuple(x.shape)} do not fit {layer.in_channels} channels")
        seen = True
        for collector, patches in zip(collectors, patches_of(layer, x.float()), strict=True):
            collector.update(patches)
    if not seen:
        raise DataError(f"{name}: no input to calibrate on")
    kernels = layer.weight.detach().flatten(1).chunk(layer.groups)
    solved = [
        solver.solve(W, collector.finish(), grid, name=name) for W, collector in zip(kernels, collectors, strict=True)
    ]
    found = copy.deepcopy(layer)
    found.weight.copy_(torch.cat([s.dense() for s in solved]).reshape(layer.weight.shape))
    return found, solved
