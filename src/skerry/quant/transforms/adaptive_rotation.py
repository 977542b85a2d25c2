"""LRQ-DiT's adaptive rotation: a Hadamard product for mild outliers, a searched double rotation for salient channels.

"LRQ-DiT: log-rotation post-training quantization of diffusion transformers" (arXiv 2508.03485). One number a layer
decides: ``J = ||X||_F / sqrt(tokens x channels)``. The double rotation is DuQuant's: a greedy sequence of rotations
that spread the channel of the largest value over its block, a zigzag permutation that deals the loud channels to all
blocks, and a second greedy rotation. Both stay at run time in front of the layer; the weights undo them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from skerry.core.errors import ParameterError
from skerry.deep.hadamard import has_hadamard
from skerry.quant.architectures.base import Architecture
from skerry.quant.calibration import live, mask_of, run_model
from skerry.quant.groups import Group
from skerry.quant.linear import BlockRotation
from skerry.quant.probe import GroupContext
from skerry.quant.statistics import LayerStatistics

__all__ = ["AdaptiveRotation", "QuantileRotation", "base_rotation", "greedy_rotation", "root_mean_square", "zigzag"]

MOST_TOKENS = 2048


@dataclass(frozen=True)
class AdaptiveRotation:
    """Rotate the inputs of every group, lightly or heavily.

    Parameters
    ----------
    threshold : float, default 1.0
        From this root mean square of the inputs on, the double rotation; 0 takes it everywhere, infinity nowhere.
    block : int, default 128
        Channels that a rotation mixes; smaller where it does not divide the width.
    max_steps : int, default 256
        Of each greedy search.
    random_state : int, default 0

    Raises
    ------
    ParameterError
        For settings out of range.
    """

    threshold: float = 1.0
    block: int = 128
    max_steps: int = 256
    random_state: int = 0

    needs = frozenset({"sample"})
    keeps_inputs = True

    def __post_init__(self) -> None:
        if self.threshold < 0 or self.block < 2 or self.max_steps < 0:
            raise ParameterError("threshold and max_steps must not be negative, and block at least 2")

    def apply(self, group: Group, statistics: LayerStatistics, context: GroupContext) -> Mapping[str, Any]:
        """Rotate one group; see :class:`~skerry.quant.parts.Transform`."""
        X = statistics.sample
        assert X is not None
        X = X[:: max(1, len(X) // MOST_TOKENS)][:MOST_TOKENS].double()
        J = root_mean_square(X)
        block = fitting_block(group.width, self.block)
        if block < 2:
            return {}
        heavy = self.threshold <= J
        changes = self._dual(X, block) if heavy else [BlockRotation(block)]
        before = float(X.abs().max())
        for change in changes:
            X = change(X)
        _put(group, changes)
        return {
            "kind": "dual" if heavy else "hadamard",
            "J": J,
            "block": block,
            "peak_before": before,
            "peak_after": float(X.abs().max()),
        }

    def _dual(self, X: Tensor, block: int) -> list[BlockRotation]:
        first = greedy_rotation(X, block, self.max_steps, self.random_state)
        Y = (X.unflatten(-1, (-1, block)) @ first).flatten(-2)
        order = zigzag(Y.abs().amax(0), block)
        second = greedy_rotation(Y[:, order], block, self.max_steps, self.random_state + 1)
        return [BlockRotation(block, first), BlockRotation(block, second, order)]


@dataclass(frozen=True)
class QuantileRotation:
    """The same rotations, the double one for the layers of largest root mean square in the whole model.

    The paper's threshold of 1 belongs to the norms of its models; that about 5 % of the layers were above it carries
    over. The inputs are those of the float model.

    Parameters
    ----------
    quantile : float in [0, 1], default 0.95
        Layers from this quantile of the root mean squares on get the double rotation.
    block, max_steps, random_state
        As for :class:`AdaptiveRotation`.

    Raises
    ------
    ParameterError
        For settings out of range.
    """

    quantile: float = 0.95
    block: int = 128
    max_steps: int = 256
    random_state: int = 0

    needs = frozenset({"sample"})
    keeps_inputs = True

    def __post_init__(self) -> None:
        if not 0.0 <= self.quantile <= 1.0:
            raise ParameterError(f"quantile must be in [0, 1], got {self.quantile}")
        self._layerwise()

    def apply_model(self, model: nn.Module, architecture: Architecture, batches: list[Any]) -> Mapping[str, Any]:
        """Rotate; see :class:`~skerry.quant.parts.ModelTransform`. One pass measures, one gathers what is searched."""
        names = architecture.block_names(model) if architecture.blocks else [""]
        groups = [g for name in names for g in architecture.block_groups(model, name)]
        groups = [g for g in groups if fitting_block(g.width, self.block) >= 2]
        squares, counts = [0.0] * len(groups), [0] * len(groups)

        def measure(i: int, x: Tensor) -> None:
            squares[i] += float(x.double().square().sum())
            counts[i] += x.numel()

        _listen(model, groups, batches, measure)
        J = torch.tensor([(s / max(n, 1)) ** 0.5 for s, n in zip(squares, counts, strict=True)])
        threshold = float(torch.quantile(J, self.quantile, interpolation="higher")) if len(J) else 0.0
        heavy = (J >= threshold).tolist()
        samples: dict[int, list[Tensor]] = {i: [] for i, is_heavy in enumerate(heavy) if is_heavy}
        room = -(-MOST_TOKENS // len(batches))

        def gather(i: int, x: Tensor) -> None:
            if i in samples:
                flat = x.reshape(-1, x.shape[-1])
                samples[i].append(flat[:: max(1, len(flat) // room)][:room].double())

        _listen(model, groups, batches, gather)
        layerwise = self._layerwise()
        for i, group in enumerate(groups):
            block = fitting_block(group.width, self.block)
            _put(group, layerwise._dual(torch.cat(samples[i]), block) if heavy[i] else [BlockRotation(block)])
        dual = [group.name for group, is_heavy in zip(groups, heavy, strict=True) if is_heavy]
        return {"threshold": threshold, "dual": dual, "hadamard": len(groups) - len(dual)}

    def _layerwise(self) -> AdaptiveRotation:
        return AdaptiveRotation(0.0, self.block, self.max_steps, self.random_state)


def _listen(model: nn.Module, groups: list[Group], batches: list[Any], hear: Callable[[int, Tensor], None]) -> None:
    """Run all batches and give ``hear`` the index and the input of every group that was called, without padding."""
    mask: list[Tensor | None] = [None]
    with ExitStack() as stack:
        for i, group in enumerate(groups):
            layer = next(iter(group.consumers.values()))

            def hook(module: nn.Module, arguments: tuple, i: int = i, layer: Any = layer) -> None:
                x = arguments[0]
                for change in layer.before:
                    x = change(x)
                hear(i, live(x.detach(), mask[0]))

            stack.callback(layer.register_forward_pre_hook(hook).remove)
        for batch in batches:
            mask[0] = mask_of(batch)
            run_model(model, batch)


def _put(group: Group, changes: list[BlockRotation]) -> None:
    """Rotate a group's input at run time, and its weights so that they undo it."""
    for change in changes:
        weights = {n: change(layer.weight.detach().double()).float() for n, layer in group.consumers.items()}
        group.transform_input(change, weights)


def root_mean_square(X: Tensor) -> float:
    """Return ``||X||_F / sqrt(number of entries)``.

    Examples
    --------
    >>> round(root_mean_square(torch.tensor([[3.0, 4.0], [0.0, 5.0]])), 6)
    3.535534
    """
    return float(X.double().square().mean().sqrt())


def base_rotation(n: int) -> Tensor:
    """Return the product of n - 1 Givens rotations whose first row is (1, ..., 1) / sqrt(n), float64 (n, n).

    Examples
    --------
    >>> base_rotation(4)[0].tolist()
    [0.5, 0.5, 0.5, 0.5]
    """
    E = torch.eye(n, dtype=torch.float64)
    for i in range(n - 1):
        cos, sin = (i + 2) ** -0.5, ((i + 1) / (i + 2)) ** 0.5
        upper, lower = E[i].clone(), E[i + 1].clone()
        E[i], E[i + 1] = cos * upper - sin * lower, sin * upper + cos * lower
    swap = torch.arange(n)
    swap[[0, n - 1]] = swap[[n - 1, 0]]
    return E[swap][:, swap].round(decimals=15)


def greedy_rotation(X: Tensor, block: int, max_steps: int, random_state: int) -> Tensor:
    """Return the rotation (block, block), shared by all blocks, that leaves the smallest range of values.

    Every step spreads the channel of the largest value over its block; the best step counts, none among them.

    Parameters
    ----------
    X : Tensor of shape (tokens, channels)
    block, max_steps, random_state : int
    """
    generator = torch.Generator().manual_seed(random_state)
    E = base_rotation(block)
    q, r = torch.linalg.qr(torch.randn(block - 1, block - 1, generator=generator, dtype=torch.float64))
    mix = torch.eye(block, dtype=torch.float64)
    mix[1:, 1:] = q * torch.sign(torch.diagonal(r))
    E = E @ mix
    Y = X.float().reshape(-1, block)  # judges only; the rotation itself is kept in float64
    R = torch.eye(block, dtype=torch.float64)
    best, least = R, float(Y.max() - Y.min())
    for _ in range(max_steps):
        k = int(Y.abs().amax(0).argmax())
        swap = torch.arange(block)
        swap[[0, k]] = swap[[k, 0]]
        step = E[swap][:, swap]
        Y, R = Y @ step.float(), R @ step
        peak = float(Y.max() - Y.min())
        if peak < least:
            best, least = R, peak
    return best


def zigzag(sizes: Tensor, block: int) -> Tensor:
    """Return the order of channels that deals the loudest to the blocks in turn, there and back.

    Examples
    --------
    >>> zigzag(torch.tensor([4.0, 3.0, 2.0, 1.0]), 2).tolist()
    [0, 3, 1, 2]
    """
    count = len(sizes) // block
    ranked = sizes.argsort(descending=True, stable=True)
    rounds = ranked.reshape(block, count).clone()
    rounds[1::2] = rounds[1::2].flip(1)
    return rounds.T.reshape(-1)


def fitting_block(width: int, wanted: int) -> int:
    """Return the largest block up to ``wanted`` that divides the width and has a Hadamard matrix.

    Examples
    --------
    >>> fitting_block(1152, 128), fitting_block(96, 128), fitting_block(7, 128)
    (128, 96, 1)
    """
    return next(b for b in range(min(wanted, width), 0, -1) if width % b == 0 and has_hadamard(b))
