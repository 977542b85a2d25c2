"""How outliers spread: what a norm makes of outlier tokens, and what queries, keys and values they get from it.

Behind a norm outlier tokens are nearly one vector; their keys are long and point where every query looks, their values
are short: a head that gives them probability scales down what all other tokens say (An et al. 2025, section 4).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from skerry.deep.stream import attention_layers, first_tensor, stream_norms

__all__ = ["Spread", "SpreadWatch"]

SIDES = {"query": ("q_proj", "query", "q"), "key": ("k_proj", "key", "k"), "value": ("v_proj", "value", "v")}
FUSED = ("c_attn", "qkv")


@dataclass(frozen=True)
class Spread:
    """One layer between emergence and disappearance.

    Attributes
    ----------
    layer : str
    similarity : float
        Mean cosine between outlier tokens' vectors behind the layer's first norm; NaN for a single token or no norm.
    query, key, value : float
        Mean length at outlier tokens over the mean length at all tokens, before positions are turned in; NaN where the
        projections are not found.
    """

    layer: str
    similarity: float
    query: float
    key: float
    value: float


class SpreadWatch:
    """Takes in norms and projections of some blocks during one call of the model.

    Parameters
    ----------
    blocks : mapping of str to Module
    places : sequence of (int, int)
        Sequence and position of the outlier tokens.
    """

    def __init__(self, blocks: Mapping[str, nn.Module], places: Sequence[tuple[int, int]]) -> None:
        self.blocks = dict(blocks)
        self.places = list(places)
        self._seen: dict[str, dict[str, Tensor]] = {name: {} for name in blocks}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch for the time of a ``with`` block."""
        with ExitStack() as stack:
            for name, block in self.blocks.items():
                for norm in list(stream_norms(block).values())[:1]:
                    stack.callback(norm.register_forward_hook(partial(self._keep, name, "norm")).remove)
                for attention in list(attention_layers(block).values())[:1]:
                    for side, module in _projections(attention).items():
                        stack.callback(module.register_forward_hook(partial(self._keep, name, side)).remove)
            yield

    def report(self) -> list[Spread]:
        """Return a line for every block that was called."""
        found = []
        for name, seen in self._seen.items():
            if "fused" in seen:
                seen |= dict(zip(SIDES, seen["fused"].chunk(3, -1), strict=True))
            if seen:
                similar = _similarity(seen.get("norm"), self.places)
                found.append(Spread(name, similar, *(_length(seen.get(side), self.places) for side in SIDES)))
        return found

    def _keep(self, block: str, what: str, module: nn.Module, inputs: tuple, output: Any) -> None:
        x = first_tensor(output)
        if isinstance(x, Tensor) and x.ndim == 3:
            self._seen[block][what] = x.detach().float()


def _projections(attention: nn.Module) -> dict[str, nn.Module]:
    children = dict(attention.named_children())
    fused = next((children[n] for n in FUSED if n in children), None)
    if fused is not None:
        return {"fused": fused}
    found = {side: next((children[n] for n in names if n in children), None) for side, names in SIDES.items()}
    return {side: module for side, module in found.items() if module is not None}


def _similarity(x: Tensor | None, places: Sequence[tuple[int, int]]) -> float:
    if x is None or len(places) < 2:
        return float("nan")
    unit = nn.functional.normalize(torch.stack([x[at] for at in places]), dim=1)
    n = len(unit)
    return float(((unit @ unit.T).sum() - n) / (n * (n - 1)))


def _length(x: Tensor | None, places: Sequence[tuple[int, int]]) -> float:
    if x is None:
        return float("nan")
    lengths = x.norm(dim=-1)
    return float(torch.stack([lengths[at] for at in places]).mean() / lengths.mean().clamp(min=1e-30))
