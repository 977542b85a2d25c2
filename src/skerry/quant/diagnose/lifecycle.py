"""When activation outliers come, what carries them, and when they go.

An outlier appears where one layer's output has it and its input has not; its second MLP layer explains it:
``out_i = sum_j W_ij A_tj``, and a few j carry nearly all of the sum. It disappears the same way, with opposite sign.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from skerry.deep.stream import call, first_tensor
from skerry.quant.diagnose.activations import ActivationReport, OutlierToken
from skerry.quant.diagnose.spread import Spread, SpreadWatch

__all__ = ["Contribution", "Lifecycle", "Turn", "trace_lifecycle"]

SHARE = 0.9


@dataclass(frozen=True)
class Contribution:
    """One term ``W_ij A_tj`` of an output element."""

    column: int
    weight: float
    value: float
    contribution: float


@dataclass(frozen=True)
class Turn:
    """Where outliers come or go.

    Attributes
    ----------
    layer : str
    token : OutlierToken
    channel : int
    change : float
        What the block adds to that element.
    written : float
        What its last linear layer writes there.
    contributions : tuple of Contribution
        The fewest terms that hold 90 % of ``written``, largest first.
    largest : dict of str to float
        Largest absolute value along the token after every layer of the block.
    """

    layer: str
    token: OutlierToken
    channel: int
    change: float
    written: float
    contributions: tuple[Contribution, ...]
    largest: dict[str, float]


@dataclass(frozen=True)
class Lifecycle:
    """Emergence, spread and disappearance of activation outliers.

    Attributes
    ----------
    emergence, disappearance : Turn or None
        None if there are no outliers, or they last to the end.
    similarity : dict of str to float
        Mean cosine between the outlier tokens' vectors after every layer in between; above 0.99 they are one vector.
    spread : list of Spread
        What the layers that read the outliers make of their tokens.
    """

    emergence: Turn | None
    disappearance: Turn | None
    similarity: dict[str, float]
    spread: list[Spread] = field(default_factory=list)


def trace_lifecycle(
    model: nn.Module, blocks: dict[str, nn.Module], down: str | None, found: ActivationReport, batch: Any
) -> Lifecycle:
    """Follow the first batch's outlier tokens through the blocks.

    Parameters
    ----------
    model : Module
    blocks : dict of str to Module
        In order.
    down : str or None
        Name, within a block, of the layer that writes the MLP's output.
    found : ActivationReport
    batch : as for the model
        The first that the report saw.
    """
    names = list(blocks)
    size = _batch_size(batch)
    tokens = {layer.name: [t for t in layer.tokens if t.sequence < size] for layer in found.layers}
    with_outliers = [i for i, name in enumerate(names) if tokens.get(name)]
    if not with_outliers:
        return Lifecycle(None, None, {})
    first, last = with_outliers[0], with_outliers[-1]
    outputs: dict[str, Tensor] = {}
    inside: dict[str, dict[str, Tensor]] = {}
    places = [(t.sequence, t.position) for t in tokens[names[first]]]
    spread = SpreadWatch({n: blocks[n] for n in names[first + 1 : last + 2]}, places)
    watched = {names[first]} | ({names[last + 1]} if last + 1 < len(names) else set())
    with ExitStack() as stack, torch.no_grad():
        for name, block in blocks.items():
            stack.callback(block.register_forward_hook(partial(_keep, outputs, name)).remove)
            if name in watched:
                inside[name] = {}
                for part, module in block.named_modules():
                    if part and not list(module.children()):
                        stack.callback(module.register_forward_hook(partial(_keep, inside[name], part)).remove)
                if down is not None:
                    writer = block.get_submodule(down)
                    stack.callback(
                        writer.register_forward_pre_hook(
                            partial(_keep_input, inside[name], "input of the writer")
                        ).remove
                    )
        stack.enter_context(spread.watching())
        call(model, batch)
    token = max(tokens[names[first]], key=lambda t: max(abs(v) for v in t.values))
    before = outputs[names[first - 1]] if first else None
    emergence = _turn(names[first], blocks, down, inside, outputs[names[first]], before, token)
    disappearance = None
    if last + 1 < len(names):
        leaving = max(tokens[names[last]], key=lambda t: max(abs(v) for v in t.values))
        gone = names[last + 1]
        disappearance = _turn(gone, blocks, down, inside, outputs[gone], outputs[names[last]], leaving)
    similarity = {n: _similarity(outputs[n], places) for n in names[first : last + 1]} if len(places) > 1 else {}
    return Lifecycle(emergence, disappearance, similarity, spread.report())


def _turn(
    name: str,
    blocks: dict[str, nn.Module],
    down: str | None,
    inside: dict[str, dict[str, Tensor]],
    after: Tensor,
    before: Tensor | None,
    token: OutlierToken,
) -> Turn:
    channel = token.channels[max(range(len(token.values)), key=lambda i: abs(token.values[i]))]
    at = token.sequence, token.position
    change = float(after[at][channel]) - (0.0 if before is None else float(before[at][channel]))
    terms: tuple[Contribution, ...] = ()
    written = float("nan")
    if down is not None:
        weight = _rows(blocks[name].get_submodule(down), channel)
        A = inside[name]["input of the writer"]
        A = A.reshape(*after.shape[:2], -1)[at].float()
        products = weight * A
        written = float(products.sum())
        order = (products * (1.0 if written >= 0 else -1.0)).argsort(descending=True)
        held = products[order].cumsum(0) * (1.0 if written >= 0 else -1.0)
        count = int((held < SHARE * abs(written)).sum()) + 1
        terms = tuple(
            Contribution(int(j), float(weight[j]), float(A[j]), float(products[j])) for j in order[: min(count, 16)]
        )
    largest = {
        part: float(x.reshape(*after.shape[:2], -1)[at].abs().max())
        for part, x in inside[name].items()
        if x.numel() % (after.shape[0] * after.shape[1]) == 0
    }
    return Turn(name, token, channel, change, written, terms, largest)


def _rows(layer: nn.Module, channel: int) -> Tensor:
    """Return the weights (in,) that make one output; ``Conv1D`` stores them the other way round."""
    weight = layer.weight.detach().float()
    return weight[:, channel] if type(layer).__name__ == "Conv1D" else weight[channel]


def _similarity(x: Tensor, places: list[tuple[int, int]]) -> float:
    vectors = torch.stack([x[b, t] for b, t in places]).float()
    unit = vectors / vectors.norm(dim=1, keepdim=True).clamp(min=1e-30)
    products = unit @ unit.T
    n = len(unit)
    return float((products.sum() - n) / (n * (n - 1)))


def _keep(store: dict[str, Tensor], name: str, module: nn.Module, inputs: tuple, output: Any) -> None:
    found = first_tensor(output)
    if isinstance(found, Tensor):
        store[name] = found.detach().float()


def _keep_input(store: dict[str, Tensor], name: str, module: nn.Module, inputs: tuple) -> None:
    store[name] = inputs[0].detach()


def _batch_size(batch: Any) -> int:
    tensor = batch
    if isinstance(batch, Mapping):
        tensor = next(v for v in batch.values() if isinstance(v, Tensor))
    return len(tensor[0] if isinstance(tensor, tuple) else tensor)
