"""What helps against loud channels, tried on the model itself: 8-bit products of the layers that norms feed.

Whether loud channels are better smoothed into the weights or multiplied apart does not show in how loud they are. Where
their weights are small, smoothing costs nothing, and LLM.int8's codes, whose step is set by the other columns, hold
those weights coarsely; where only some tokens are loud, smoothing makes all others pay. So each remedy rounds the
model's own layers on its own inputs, and what is left of their outputs decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from skerry.quant.activation import TokenDynamic
from skerry.quant.architectures.base import Architecture
from skerry.quant.calibration import following_mask, live
from skerry.quant.formats.mixed_decomposition import MixedInt8, OutlierSplit
from skerry.quant.numerics import AffineGrid
from skerry.quant.transforms.smooth import smoothing_scale

__all__ = ["REMEDIES", "RemedyWatch", "remedies"]

TOKENS = 256  # of one layer: the first half sets the scales of smoothing, the second judges
REMEDIES = ("rtn", "smoothquant", "llm-int8")


def remedies(X: Tensor, W: Tensor) -> dict[str, float]:
    """Return, for every remedy, the share of a token's output that rounding both sides to 8 bits makes noise; the mean.

    Parameters
    ----------
    X : Tensor of shape (tokens, in)
    W : Tensor of shape (out, in)

    Examples
    --------
    >>> g = torch.Generator().manual_seed(0)
    >>> X, W = torch.randn(64, 32, generator=g), torch.randn(16, 32, generator=g)
    >>> X[:, 3], W[:, 3] = 50.0 * X[:, 3], W[:, 3] / 50.0  # loud, and its weights are small
    >>> found = remedies(X, W)
    >>> min(found, key=found.get)
    'smoothquant'
    """
    X, W = X.float(), W.detach().float()
    seen, judged = X[: len(X) // 2], X[len(X) // 2 :]
    exact, grid, inputs, split = judged @ W.T, AffineGrid(8), TokenDynamic(8), OutlierSplit()
    s = smoothing_scale((seen if len(seen) else judged).abs().amax(0), W.abs().amax(0), 0.5)
    given = {
        "rtn": inputs.fake(judged) @ grid.quantize(W).dequantize().T,
        "smoothquant": inputs.fake(judged / s) @ grid.quantize(W * s).dequantize().T,
        "llm-int8": split.fake(judged) @ MixedInt8().quantize(W).dequantize().T,
    }
    energy = exact.double().square().sum(1)
    live = energy > 0.0  # every token counts alike: a few loud ones would hide what the others lose
    noise = {name: (y - exact).double().square().sum(1)[live] / energy[live] for name, y in given.items()}
    return {name: float(shares.mean()) if len(shares) else 0.0 for name, shares in noise.items()}


class RemedyWatch:
    """Keeps some inputs of every group of layers that a norm feeds while batches run.

    Parameters
    ----------
    model : Module
    architecture : Architecture
        Says which layers read which norm; of one that does not, nothing is known and :meth:`report` is empty.
    """

    def __init__(self, model: nn.Module, architecture: Architecture) -> None:
        self.model = model
        self._mask: Callable[[], Tensor | None] = lambda: None
        self.readers: dict[str, list[nn.Module]] = {}
        known = architecture.groups and not (architecture.check is not None and architecture.check(model))
        for block in architecture.block_names(model) if known else ():
            inside = dict(model.get_submodule(block).named_modules())
            for spec in architecture.groups:
                readers = [inside[name] for name in spec.readers if name in inside]
                if spec.kind == "norm" and readers and all(hasattr(r, "weight") for r in readers):
                    self.readers[f"{block}.{spec.readers[0]}"] = readers
        self._kept: dict[str, list[Tensor]] = {name: [] for name in self.readers}

    @contextmanager
    def measuring(self, batches: int) -> Iterator[None]:
        """Watch for the time of a ``with`` block, in which this many batches run."""
        room = max(2, -(-TOKENS // max(batches, 1)))
        with ExitStack() as stack:
            self._mask = stack.enter_context(following_mask(self.model))
            for name, readers in self.readers.items():
                stack.callback(readers[0].register_forward_pre_hook(partial(self._see, name, room)).remove)
            yield

    def report(self) -> dict[str, float]:
        """Return the signal to noise in decibels that each remedy leaves, from the mean noise over all groups."""
        total, count = dict.fromkeys(REMEDIES, 0.0), 0
        for name, kept in self._kept.items():
            if not kept:
                continue
            X = torch.cat(kept)
            X = X[torch.randperm(len(X), generator=torch.Generator().manual_seed(0))]
            found = remedies(X, torch.cat([_rows(r) for r in self.readers[name]]))
            total = {remedy: total[remedy] + found[remedy] for remedy in REMEDIES}
            count += 1
        return {remedy: -10.0 * math.log10(max(noise / count, 1e-12)) for remedy, noise in total.items() if count}

    def _see(self, name: str, room: int, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        x = live(inputs[0].detach().float(), self._mask()).flatten(0, -2)
        self._kept[name].append(x[:: max(1, len(x) // room)][:room].cpu().clone())


def _rows(layer: nn.Module) -> Tensor:
    """Return the weight (out, in); ``Conv1D`` stores it the other way round."""
    weight: Tensor = layer.weight.detach().float().cpu()  # type: ignore[operator,union-attr,assignment]
    return weight.T if type(layer).__name__ == "Conv1D" else weight
