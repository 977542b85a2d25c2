"""What the studies of weight solvers share: layers with their inputs, errors of a layer's output, seconds, peers.

A layer is ``(name, W, X)``: a weight (out, in) and calibration inputs (tokens, in), from a model or made up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from skerry.quant.numerics import AffineGrid
from skerry.quant.parts import Format, Solved
from skerry.quant.solvers import AdaDim, SpQR
from skerry.quant.statistics import LayerStatistics

__all__ = [
    "Layer",
    "OwnOutput",
    "SpQRAtShare",
    "cpu_seconds",
    "layers_of",
    "made_up_layer",
    "relative_errors",
    "wide_layer",
]

Layer = tuple[str, Tensor, Tensor]


@torch.no_grad()
def layers_of(model: nn.Module, batches: Iterable[Tensor], *, inside: str = "model.decoder.layers.") -> list[Layer]:
    """Return every linear layer of a model's blocks with the inputs that batches of token codes send to it."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.startswith(inside)}
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}

    def listen(name: str) -> Callable[[nn.Module, tuple], None]:
        return lambda module, arguments: seen[name].append(arguments[0].detach().flatten(0, -2).clone())

    handles = [layer.register_forward_pre_hook(listen(name)) for name, layer in layers.items()]
    try:
        for batch in batches:
            model(input_ids=batch, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return [(n.removeprefix(inside), m.weight.detach().float(), torch.cat(seen[n])) for n, m in layers.items()]


def made_up_layer(out: int, inputs: int, tokens: int, seed: int, *, outliers: int = 0) -> Layer:
    """Return a layer of correlated inputs and normal weights, ``outliers`` of them ten times larger."""
    g = torch.Generator().manual_seed(seed)
    W = torch.randn(out, inputs, generator=g)
    W.view(-1)[torch.randperm(W.numel(), generator=g)[:outliers]] *= 10.0
    mix = torch.randn(inputs, inputs, generator=g) / inputs**0.5 + 0.3 * torch.eye(inputs)
    return f"made up {seed}", W, torch.randn(tokens, inputs, generator=g) @ mix


def wide_layer(out: int, inputs: int, seed: int) -> Layer:
    """Return a layer of a language model's shape: inputs of falling spectrum, four channels twenty times larger."""
    g = torch.Generator().manual_seed(seed)
    W = 0.02 * torch.randn(out, inputs, generator=g)
    mix = torch.randn(inputs, inputs, generator=g) / inputs**0.5 * torch.logspace(0, -2, inputs)[:, None]
    X = torch.randn(2 * inputs, inputs, generator=g) @ (mix + 0.1 * torch.eye(inputs))
    X[:, :4] *= 20.0
    return f"{out} x {inputs}", W, X


def relative_errors(
    layers: Sequence[Layer], solvers: Mapping[str, tuple[Any, AffineGrid]], progress: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Return a row a layer: for every solver its error over that of a weight of 0, and stored bits a weight.

    Returns
    -------
    list of dict
        ``layer``, then ``name``, ``name, bits`` and ``name, result`` (the :class:`Solved`) for every solver.
    """
    rows = []
    for name, W, X in layers:
        progress(f"{name}: {len(solvers)} solvers")
        statistics = LayerStatistics.of(X, {"gram", "mean_abs"})
        gram = statistics.gram
        assert gram is not None
        whole = float(((W.double() @ gram) * W.double()).sum())
        row: dict[str, Any] = {"layer": name}
        for label, (solver, grid) in solvers.items():
            found = solver.solve(W, statistics, grid, name=name)
            row |= {
                label: found.objective / whole,
                f"{label}, bits": 8 * found.nbytes / W.numel(),
                f"{label}, result": found,
            }
        rows.append(row)
    return rows


def cpu_seconds(solver: Any, layer: Layer, grid: AffineGrid, *, repeats: int = 3) -> tuple[float, float]:
    """Return the least processor and wall seconds of a solver on one layer, after a first call that compiles."""
    name, W, X = layer
    statistics = LayerStatistics.of(X, {"gram", "mean_abs"})
    solver.solve(W[:64], statistics, grid, name=name)
    found = []
    for _ in range(repeats):
        wall, processor = time.perf_counter(), time.process_time()
        solver.solve(W, statistics, grid, name=name)
        found.append((time.process_time() - processor, time.perf_counter() - wall))
    times = np.array(found)
    return float(times[:, 0].min()), float(times[:, 1].min())


@dataclass(frozen=True)
class SpQRAtShare:
    """SpQR with the threshold, found by bisection, that keeps at most this share of a layer's weights."""

    share: float = 0.01
    solver: SpQR = SpQR()
    steps: int = 14

    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    def solve(self, W: Tensor, statistics: LayerStatistics, grid: Format, *, name: str = "the weight") -> Solved:
        """Return the result of the lowest threshold that keeps no more than the share."""
        low, high, best = 1e-4, 1e4, None
        for _ in range(self.steps):
            middle = (low * high) ** 0.5
            found = replace(self.solver, threshold=middle).solve(W, statistics, grid, name=name)
            if found.info.get("outliers", 0.0) > self.share:
                low = middle
            else:
                high, best = middle, found
        return best or replace(self.solver, threshold=float("inf")).solve(W, statistics, grid, name=name)


@dataclass(frozen=True)
class OwnOutput:
    """AdaDim that decides by the error of the layer's own output, whatever parent the engine knows."""

    solver: AdaDim

    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    def solve(self, W: Tensor, statistics: LayerStatistics, grid: Format, *, name: str = "the weight") -> Solved:
        """Return AdaDim's result."""
        return self.solver.solve(W, statistics, grid, name=name)
