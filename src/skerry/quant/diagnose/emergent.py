"""Emergent features: channels of the hidden states that are loud in most layers and many tokens (LLM.int8, 2208.07339).

Channel j is one if ``|x_j| >= 6`` in at least a quarter of the layers and at 6 % of the tokens, counted in the hidden
states that enter the projections: what the norms of the blocks put out, padding left out. Such channels set every scale
a token and leave the others a few steps; the recipe ``llm-int8`` multiplies them apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from skerry.core.errors import ModelError, ParameterError
from skerry.deep.stream import call, first_tensor, stream_norms
from skerry.quant.calibration import as_batches, following_mask, live

__all__ = ["EmergentFeature", "EmergentLayer", "EmergentReport", "EmergentWatch", "emergent_features"]

KEPT = 4096  # values of a channel that its quartiles are taken of


@dataclass(frozen=True)
class EmergentFeature:
    """One channel.

    Attributes
    ----------
    channel : int
    layer_share : float
        Layers in which any token reaches the threshold.
    token_share : float
        Tokens that reach it, mean over these layers.
    quartiles : tuple of 3 float
        Of the absolute values that reach it.
    one_sided : float
        Share of these values that have the more common sign.
    loudness : float
        Their median over the root mean square of all values of these layers.
    """

    channel: int
    layer_share: float
    token_share: float
    quartiles: tuple[float, float, float]
    one_sided: float
    loudness: float


@dataclass(frozen=True)
class EmergentLayer:
    """One block: the emergent features that show here, the tokens that carry any, and all channels beyond 6."""

    name: str
    channels: tuple[int, ...]
    token_share: float
    beyond: int


@dataclass(frozen=True)
class EmergentReport:
    """What :func:`emergent_features` found; both lists are empty where no norm gives hidden states away."""

    threshold: float
    features: list[EmergentFeature] = field(default_factory=list)
    layers: list[EmergentLayer] = field(default_factory=list)


def emergent_features(
    model: nn.Module,
    batches: Any,
    *,
    threshold: float = 6.0,
    layer_share: float = 0.25,
    token_share: float = 0.06,
    blocks: Mapping[str, nn.Module] | None = None,
) -> EmergentReport:
    """Count the emergent features of a transformer.

    Parameters
    ----------
    model : Module
    batches : Tensor, mapping or list of them
    threshold : float, default 6.0
    layer_share, token_share : float, default 0.25 and 0.06
        What a channel must reach.
    blocks : mapping of str to Module, optional
        By default as the model's architecture says, else the longest list with norms.

    Raises
    ------
    DataError
        If there is no batch.
    ModelError
        If no block has a norm.
    ParameterError
        For a threshold or share out of range.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaModel
    >>> config = LlamaConfig(
    ...     vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    ... )
    >>> model = LlamaModel(config).eval()
    >>> for block in model.layers:
    ...     block.input_layernorm.weight.data[5] = 100.0
    >>> [f.channel for f in emergent_features(model, [torch.arange(24).reshape(2, 12)]).features]
    [5]
    """
    from skerry.quant.diagnose.report import described_blocks

    watch = EmergentWatch(model, described_blocks(model) if blocks is None else blocks, threshold)
    if not watch.sites:
        raise ModelError(f"{type(model).__name__}: no norm inside its blocks gives the hidden states away")
    with torch.no_grad(), watch.measuring():
        for batch in as_batches(batches):
            call(model, batch)
    return watch.report(layer_share=layer_share, token_share=token_share)


class EmergentWatch:
    """Takes in the outputs of the norms inside blocks while batches run.

    Parameters
    ----------
    model : Module
    blocks : mapping of str to Module
    threshold : float, default 6.0

    Raises
    ------
    ParameterError
        If the threshold is not positive.
    """

    def __init__(self, model: nn.Module, blocks: Mapping[str, nn.Module], threshold: float = 6.0) -> None:
        if not threshold > 0.0:
            raise ParameterError(f"threshold must be positive, got {threshold}")
        self.threshold, self.model = threshold, model
        self._mask: Callable[[], Tensor | None] = lambda: None
        self.blocks = list(blocks)
        norms = stream_norms(model).items()
        self.sites = {n: (b, m) for n, m in norms for b in self.blocks if n.startswith(f"{b}.")}
        self._hits: dict[str, Tensor] = {}
        self._any: dict[str, float] = {}
        self._tokens: dict[str, int] = {}
        self._energy: dict[str, float] = {}
        self._values: dict[int, list[Tensor]] = {}

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Watch for the time of a ``with`` block."""
        with ExitStack() as stack:
            self._mask = stack.enter_context(following_mask(self.model))
            for block, module in self.sites.values():
                stack.callback(module.register_forward_hook(partial(self._see, block)).remove)
            yield

    def report(self, *, layer_share: float = 0.25, token_share: float = 0.06) -> EmergentReport:
        """Return the channels that reach both shares, loudest first, and a line for every block."""
        for name, share in (("layer_share", layer_share), ("token_share", token_share)):
            if not 0.0 <= share <= 1.0:
                raise ParameterError(f"{name} must be in [0, 1], got {share}")
        seen = [b for b in self.blocks if self._tokens.get(b)]
        if not seen or len({len(self._hits[b]) for b in seen}) > 1:
            return EmergentReport(self.threshold)
        shares = torch.stack([self._hits[b] / self._tokens[b] for b in seen])  # (layers, channels)
        present = shares > 0.0
        layers = present.double().mean(0)
        tokens = shares.sum(0) / present.sum(0).clamp(min=1)
        chosen = ((layers >= layer_share) & (tokens >= token_share) & present.any(0)).nonzero().flatten().tolist()
        features = [self._feature(c, float(layers[c]), float(tokens[c]), seen, present[:, c]) for c in chosen]
        features.sort(key=lambda f: -f.loudness)
        told = []
        for block, row in zip(seen, present, strict=True):
            here = tuple(c for c in chosen if bool(row[c]))
            told.append(EmergentLayer(block, here, self._any[block] / self._tokens[block], int(row.sum())))
        return EmergentReport(self.threshold, features, told)

    def _feature(self, channel: int, layers: float, tokens: float, seen: list[str], present: Tensor) -> EmergentFeature:
        values = torch.cat(self._values[channel])
        size = values.abs()
        quartiles = torch.quantile(size, torch.tensor([0.25, 0.5, 0.75])).tolist()
        positive = float((values > 0).float().mean())
        own = [b for b, there in zip(seen, present.tolist(), strict=True) if there]
        count = sum(self._tokens[b] * len(self._hits[b]) for b in own)
        mean = (sum(self._energy[b] for b in own) / count) ** 0.5
        return EmergentFeature(
            channel, layers, tokens, tuple(quartiles), max(positive, 1.0 - positive), quartiles[1] / max(mean, 1e-30)
        )

    def _see(self, block: str, module: nn.Module, inputs: tuple, output: Any) -> None:
        x = live(first_tensor(output).detach().float(), self._mask()).flatten(0, -2)
        loud = x.abs() >= self.threshold
        hits = loud.sum(0).double()
        self._hits[block] = self._hits[block] + hits if block in self._hits else hits
        self._any[block] = self._any.get(block, 0.0) + float(loud.any(1).sum())
        self._tokens[block] = self._tokens.get(block, 0) + len(x)
        self._energy[block] = self._energy.get(block, 0.0) + float(x.square().sum(dtype=torch.float64))
        for channel in hits.nonzero().flatten().tolist():
            kept = self._values.setdefault(channel, [])
            if (room := KEPT - sum(len(v) for v in kept)) > 0:
                kept.append(x[loud[:, channel], channel][:room].clone())
