"""Activation outliers: values of the residual stream far above its mean, by layer, token and channel.

Thresholds are those of the paper's code: an element is an outlier if it exceeds 1000 times the mean absolute value of
the whole layer output, outliers included. Small models do not reach that: values above 100 times are counted too, and
the ratio and kurtosis are always told.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from skerry.deep.stream import first_tensor

__all__ = ["ActivationReport", "LayerActivations", "OutlierToken", "StreamWatch", "token_class"]

MODERATE = 100.0
STRONG = frozenset(". \n , ; : ! ? - -- --- ' \" ( ) [ ] { } / \\ | * & ^ % $ # @ ~ `".split(" ")) | {"\n"}
_WORDS = "and from of the a an in on at for with is was are were to by as that this it but or if not"
WEAK = frozenset(_WORDS.split()) | frozenset("123456789") | {""}


def token_class(text: str | None, position: int) -> str:
    """Return "initial", "strong_delimiter", "weak_semantic" or "other" for a token.

    Examples
    --------
    >>> token_class(" The", 4), token_class(".", 2), token_class("cat", 0), token_class(None, 3)
    ('weak_semantic', 'strong_delimiter', 'initial', 'other')
    """
    if position == 0:
        return "initial"
    if text is None:
        return "other"
    bare = text.strip(" \t\u0120\u2581").lower().replace("\u010a", "\n")
    if bare in STRONG or (bare and re.fullmatch(r"[^\w\s]+", bare) and bare[0] in STRONG):
        return "strong_delimiter"
    return "weak_semantic" if bare in WEAK else "other"


@dataclass(frozen=True)
class OutlierToken:
    """A token with at least one outlier: sequence, position, token id, class, channels and their signed values."""

    sequence: int
    position: int
    token: int
    kind: str
    channels: tuple[int, ...]
    values: tuple[float, ...]


@dataclass
class LayerActivations:
    """One layer's output.

    Attributes
    ----------
    name : str
    top : tuple of 3 float
        Largest absolute values over all tokens.
    median, mean : float
        Of absolute values (the median over the first batch).
    kurtosis : float
        Plain fourth standardised moment of all values; 3 for a Gaussian.
    channels : tuple of 2 int
        With the largest absolute values.
    moderate : int
        Elements above 100 times the mean.
    outliers : int
        Elements above the threshold.
    tokens : list of OutlierToken
        At most 64 of them.
    peaks : Tensor of shape (channels,)
        Largest absolute value of every channel.
    """

    name: str
    top: tuple[float, ...] = (0.0, 0.0, 0.0)
    median: float = 0.0
    mean: float = 0.0
    kurtosis: float = 3.0
    channels: tuple[int, ...] = ()
    moderate: int = 0
    outliers: int = 0
    tokens: list[OutlierToken] = field(default_factory=list)
    peaks: Tensor = field(default_factory=lambda: torch.zeros(0))

    @property
    def ratio(self) -> float:
        """Largest value over the mean."""
        return self.top[0] / self.mean if self.mean > 0 else 0.0


@dataclass
class ActivationReport:
    """All layers, and what they have in common.

    Attributes
    ----------
    layers : list of LayerActivations
    systematic : tuple of int
        Channels among the two largest in at least half of the middle layers.
    classes : dict of str to int
        Outlier tokens by class.
    """

    layers: list[LayerActivations]
    systematic: tuple[int, ...]
    classes: dict[str, int]

    def table(self) -> list[dict[str, Any]]:
        """Return a row a layer."""
        return [
            {
                "layer": layer.name,
                "top 1": layer.top[0],
                "top 2": layer.top[1],
                "top 3": layer.top[2],
                "mean": layer.mean,
                "median": layer.median,
                "ratio": layer.ratio,
                "kurtosis": layer.kurtosis,
                "channels": list(layer.channels),
                "outliers": layer.outliers,
                "moderate": layer.moderate,
            }
            for layer in self.layers
        ]


class StreamWatch:
    """Takes in the outputs of named modules over batches; two passes: sizes first, then the outliers' places.

    Parameters
    ----------
    modules : dict of str to Module
    threshold : float
        Times the mean.
    inputs : bool, default False
        Look at what the modules get instead of what they return.
    """

    def __init__(self, modules: dict[str, nn.Module], threshold: float, *, inputs: bool = False) -> None:
        self.modules = modules
        self.threshold = threshold
        self.inputs = inputs
        self.layers = {name: LayerActivations(name) for name in modules}
        self._moments = {name: torch.zeros(5, dtype=torch.float64) for name in modules}  # n, |x|, x, x^2, x^4
        self._channel: dict[str, Tensor] = {}
        self._cube = {name: 0.0 for name in modules}

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """First pass: sums, largest values, channels."""
        with self._hooks(self._measure):
            yield
        for name, layer in self.layers.items():
            n, absolute, one, two, four = self._moments[name].tolist()
            if n == 0:
                continue
            mean, cube = one / n, self._cube[name] / n
            variance = two / n - mean**2
            central = four / n - 4 * mean * cube + 6 * mean**2 * two / n - 3 * mean**4
            layer.mean = absolute / n
            layer.kurtosis = central / variance**2 if variance > 0 else 0.0
            layer.peaks = self._channel[name]
            layer.channels = tuple(self._channel[name].topk(min(2, len(self._channel[name]))).indices.tolist())

    @contextmanager
    def locating(self, tokens: Callable[[], Tensor | None], text: Callable[[int], str | None]) -> Iterator[None]:
        """Second pass: which tokens and channels pass the threshold."""
        first = [0]

        def see(name: str, x: Tensor) -> None:
            layer = self.layers[name]
            size = x.abs()
            layer.moderate += int((size > MODERATE * layer.mean).sum())
            found = (size > self.threshold * layer.mean).nonzero()
            layer.outliers += len(found)
            ids = tokens()
            places: dict[tuple[int, int], list[int]] = {}
            for b, t, j in found.tolist():
                places.setdefault((b, t), []).append(j)
            for (b, t), channels in places.items():
                if len(layer.tokens) == 64:
                    break
                token = -1 if ids is None else int(ids[b, t])
                kind = token_class(None if token < 0 else text(token), t)
                values = tuple(float(x[b, t, j]) for j in channels)
                layer.tokens.append(OutlierToken(first[0] + b, t, token, kind, tuple(channels), values))
            if name == next(reversed(self.modules)):
                first[0] += len(x)

        with self._hooks(see):
            yield

    def report(self) -> ActivationReport:
        """Return what both passes found."""
        layers = list(self.layers.values())
        middle = layers[1:-1] or layers
        counts = Counter(channel for layer in middle for channel in layer.channels)
        systematic = tuple(sorted(c for c, n in counts.items() if 2 * n >= len(middle)))
        kinds = Counter(token.kind for layer in layers for token in layer.tokens)
        order = ("initial", "strong_delimiter", "weak_semantic", "other")
        return ActivationReport(layers, systematic, {kind: kinds.get(kind, 0) for kind in order})

    def _measure(self, name: str, x: Tensor) -> None:
        layer = self.layers[name]
        size = x.abs()
        largest = size.flatten().topk(min(3, size.numel())).values.tolist()
        layer.top = tuple(sorted([*layer.top, *largest], reverse=True)[:3])
        if not self._moments[name][0]:
            layer.median = float(size.flatten()[: 2**22].median())
        wide = x.double()
        square = wide * wide
        sums = (x.numel(), wide.abs().sum(), wide.sum(), square.sum(), (square * square).sum())
        self._moments[name] += torch.tensor([float(s) for s in sums], dtype=torch.float64)
        self._cube[name] += float((square * wide).sum())
        peak = size.amax((0, 1))
        self._channel[name] = torch.maximum(self._channel[name], peak) if name in self._channel else peak

    @contextmanager
    def _hooks(self, see: Callable[[str, Tensor], None]) -> Iterator[None]:
        handles = []
        for name, module in self.modules.items():

            def hook(module: nn.Module, inputs: tuple, output: Any, name: str = name) -> None:
                x = (inputs[0] if self.inputs else first_tensor(output)).detach().float()
                see(name, x if x.ndim == 3 else x.reshape(1, -1, x.shape[-1]))

            handles.append(module.register_forward_hook(hook))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def as_text(tokenizer: Any) -> Callable[[int], str | None]:
    """Return a function from token id to its text; None for everything without a tokenizer."""
    if tokenizer is None:
        return lambda token: None
    if isinstance(tokenizer, Sequence):
        return lambda token: tokenizer[token] if 0 <= token < len(tokenizer) else None
    return lambda token: tokenizer.decode([token])
