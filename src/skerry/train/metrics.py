"""Measure a network's outliers on some batches, by every definition of :mod:`skerry.deep.outlier_metrics`.

:func:`measure` is what the laboratory logs; :class:`OutlierProbe` records any tensors by name and gives the two numbers
of "Quantizable Transformers" (arXiv 2306.12929). Hooks only; what is kept are sums, never activations.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from skerry.core.errors import ModelError, ParameterError, nearest
from skerry.deep.outlier_metrics import (
    channel_rms,
    excess_kurtosis,
    feature_kurtosis,
    gaussian_floor,
    infinity_norm,
    max_median_ratio,
    max_to_median,
    peak,
    sequence_kurtosis,
    sink_mass,
    value_drain,
)
from skerry.deep.stream import call, first_tensor, stream_blocks, watch_attention

__all__ = ["OutlierProbe", "PRESETS", "mean_excess_kurtosis", "measure", "token_loss"]

# What the two studies of the paper record, and the same places of the laboratory's own network.
PRESETS: dict[str, tuple[tuple[str, str], ...]] = {
    "bert": (
        (r"layer\.\d+\.output\.dense$", "output"),
        (r"layer\.\d+\.output\.LayerNorm$", "input"),
        (r"layer\.\d+\.output\.LayerNorm$", "output"),
    ),
    "opt": (
        (r"layers\.\d+\.fc[12]$", "output"),
        (r"layers\.\d+\.\w*layer_norm$", "output"),
        (r"layers\.\d+\.self_attn\.out_proj$", "output"),
        (r"layers\.\d+$", "output"),
    ),
    "skerry-gpt": (
        (r"blocks\.\d+\.ffn\.(up|down)$", "output"),
        (r"blocks\.\d+\.norm_\d$", "output"),
        (r"blocks\.\d+\.attention$", "output"),
        (r"blocks\.\d+$", "output"),
    ),
}


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy in nats over targets that are not -100.

    Parameters
    ----------
    logits : Tensor of shape (..., n_classes)
    targets : Tensor of int64, shape (...)
    """
    return cross_entropy(logits.flatten(0, -2).float(), targets.flatten())


def _logits(output: Any) -> Tensor:
    found = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if found is None:
        raise ModelError(f"the model returns a {type(output).__name__} without logits: a loss needs them")
    return found


class _Layer:
    """Sums of one block's output over batches."""

    def __init__(self) -> None:
        self.n = self.tokens = 0
        self.excess = self.sequence = self.inf = self.peak = self.spread = 0.0
        self.squares: Tensor | float = 0.0

    def see(self, x: Tensor) -> None:
        n, tokens = len(x), x[..., 0].numel()
        self.excess += float(excess_kurtosis(x).double().sum())
        self.sequence += float(sequence_kurtosis(x).double().sum())
        self.inf += float(infinity_norm(x).double().sum())
        self.squares = self.squares + channel_rms(x).double().square() * tokens
        self.peak += peak(x)
        self.spread = max(self.spread, max_to_median(x))
        self.n, self.tokens = self.n + n, self.tokens + tokens


@torch.no_grad()
def measure(model: nn.Module, batches: Sequence[tuple[Any, Tensor]]) -> dict[str, float]:
    """Return loss and outlier metrics of a transformer on ``batches`` of inputs and targets.

    Parameters
    ----------
    model : torch.nn.Module
        Its blocks are found by :func:`skerry.deep.stream.stream_blocks`; it returns logits, or an object that has them
        as those of ``transformers`` do.
    batches : sequence of (inputs, targets)
        Inputs may be a mapping of named arguments. Targets stand where the logits do: the next tokens of a language
        model, -100 where nothing is asked. 16 sequences each in the laboratory, so that ``peak`` compares.

    Returns
    -------
    dict
        ``loss`` and ``accuracy``; ``excess kurtosis`` with its ``floor``; ``sequence kurtosis`` and ``inf norm`` of
        Quantizable Transformers; ``feature kurtosis``, ``MMR``, ``peak``, ``max to median``; ``sink, best head``,
        ``sink, mean head``, ``sinks, share of heads`` (above 0.3) and ``value drain``. All on the stream behind the
        blocks, as :mod:`skerry.deep.outlier_metrics` defines them.

    Raises
    ------
    ModelError
        If no block is found or there is no batch.

    Examples
    --------
    >>> from skerry.train.lab_model import SmallGPT
    >>> tokens = torch.randint(66, (4, 12), generator=torch.Generator().manual_seed(0))
    >>> found = measure(SmallGPT(66, seq_len=12), [(tokens, tokens)])
    >>> found["excess kurtosis"] < 3 * found["floor"]  # an untrained network is near the floor
    True
    """
    layers: dict[str, _Layer] = {}
    heads: dict[str, list[Any]] = {}
    total, right, targets_seen = 0.0, 0, 0

    def see_block(name: str) -> Callable:
        layers[name] = _Layer()
        return lambda module, inputs, output: layers[name].see(first_tensor(output).detach())

    def see_attention(name: str, weights: Tensor, values: Tensor | None) -> None:
        held = heads.setdefault(name, [0.0, 0.0, 0])
        held[0] = held[0] + sink_mass(weights, min(8, weights.shape[-1] - 1)).double()
        held[1] += float("nan") if values is None else value_drain(values)
        held[2] += 1

    hooks = [block.register_forward_hook(see_block(name)) for name, block in stream_blocks(model).items()]
    training = model.training
    model.eval()
    try:
        with watch_attention(model, see_attention):
            for x, y in batches:
                logits = _logits(call(model, x))
                counted = int((y != -100).sum())
                total += float(token_loss(logits, y)) * counted if counted else 0.0
                right += int((logits.argmax(-1) == y).sum())
                targets_seen += counted
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    if not targets_seen:
        raise ModelError("there is no batch to measure on")
    found = list(layers.values())
    rms = [(layer.squares / layer.tokens).sqrt() for layer in found]
    mass = torch.cat([m / n for m, _, n in heads.values()]) if heads else torch.full((1,), float("nan"))
    return {
        "loss": total / targets_seen,
        "accuracy": right / targets_seen,
        "excess kurtosis": sum(x.excess for x in found) / sum(x.tokens for x in found),
        "floor": gaussian_floor(len(rms[0])) if len(rms[0]) >= 16 else float("nan"),
        "sequence kurtosis": sum(x.sequence for x in found) / sum(x.n for x in found),
        "inf norm": max(x.inf / x.n for x in found),
        "feature kurtosis": max(feature_kurtosis(s) for s in rms),
        "MMR": max(max_median_ratio(s) for s in rms),
        "peak": sum(x.peak for x in found) / len(found) / len(batches),
        "max to median": max(x.spread for x in found),
        "sink, best head": float(mass.max()),
        "sink, mean head": float(mass.mean()),
        "sinks, share of heads": float((mass > 0.3).double().mean()),
        "value drain": min((d / n for _, d, n in heads.values()), default=float("nan")),
    }


@torch.no_grad()
def mean_excess_kurtosis(
    model: nn.Module, batches: Sequence[Tensor], *, mode: str = "sequence", embedding: bool = True
) -> float:
    """Return the excess kurtosis of Outlier-Safe Pre-Training over the hidden states of a model.

    Parameters
    ----------
    model : torch.nn.Module
    batches : sequence of Tensor of int64, shape (B, T)
    mode : {"sequence", "released"}, default "sequence"
        ``"released"`` does what the authors' script does: each token is a sequence of its own, so that every one is a
        first token.
    embedding : bool, default True
        Count what enters the first block as one more layer, as the paper does (the laboratory's tables do not).

    Raises
    ------
    ParameterError
        For an unknown mode.

    Examples
    --------
    >>> from skerry.train.lab_model import SmallGPT
    >>> tokens = torch.randint(66, (4, 12), generator=torch.Generator().manual_seed(0))
    >>> 0 < mean_excess_kurtosis(SmallGPT(66, seq_len=12), [tokens], mode="released") < 1
    True
    """
    if mode not in ("sequence", "released"):
        raise ParameterError(f"unknown mode {mode!r}: give 'sequence' or 'released'")
    sums: dict[str, list[float]] = {}

    def see(name: str, x: Tensor) -> None:
        k = excess_kurtosis(x)
        held = sums.setdefault(name, [0.0, 0])
        held[0] += float(k.double().sum())
        held[1] += k.numel()

    blocks = stream_blocks(model)
    hooks = [
        b.register_forward_hook(lambda m, i, o, n=name: see(n, first_tensor(o).detach())) for name, b in blocks.items()
    ]
    if embedding:
        first = next(iter(blocks.values()))
        hooks.append(first.register_forward_pre_hook(lambda m, i: see("embedding", i[0].detach())))
    training = model.training
    model.eval()
    try:
        for x in batches:
            call(model, x.reshape(-1, 1) if mode == "released" else x)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return sum(s / n for s, n in sums.values()) / len(sums)


class OutlierProbe:
    """Record infinity norm and kurtosis of named tensors while a model runs (Quantizable Transformers).

    Parameters
    ----------
    model : torch.nn.Module
    record : str or sequence of (str, {"input", "output"})
        A preset, ``"bert"``, ``"opt"`` or ``"skerry-gpt"``, or regular expressions that modules' names must contain,
        each with what of the module is recorded.

    Attributes
    ----------
    max_inf_norm, avg_kurtosis, max_kurtosis : float
        Per sequence, mean over sequences; then the maximum or the mean over recorded tensors.
    table : list of dict
        A row for each recorded tensor.

    Raises
    ------
    ParameterError
        For an unknown preset.
    ModelError
        If no module matches.

    Examples
    --------
    >>> from skerry.train.lab_model import SmallGPT
    >>> model = SmallGPT(66)
    >>> with OutlierProbe(model, "skerry-gpt") as probe:
    ...     _ = model(torch.zeros(2, 5, dtype=torch.long))
    >>> len(probe.table), probe.max_inf_norm > 0
    (18, True)
    """

    def __init__(self, model: nn.Module, record: str | Sequence[tuple[str, str]] = "skerry-gpt") -> None:
        if isinstance(record, str):
            if record not in PRESETS:
                raise ParameterError(f"unknown preset {record!r}: {nearest(record, PRESETS)}")
            record = PRESETS[record]
        self._places = [
            (name, module, side)
            for pattern, side in record
            for name, module in model.named_modules()
            if re.search(pattern, name)
        ]
        if not self._places:
            raise ModelError(f"no module of {type(model).__name__} matches {[p for p, _ in record]}")
        self._sums: dict[tuple[str, str], list[float]] = {}
        self._hooks: list[Any] = []

    def __enter__(self) -> OutlierProbe:
        for name, module, side in self._places:
            self._hooks.append(module.register_forward_hook(self._see(name, side)))
        return self

    def __exit__(self, *exc: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _see(self, name: str, side: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple, output: Any) -> None:
            x = (inputs[0] if side == "input" else first_tensor(output)).detach()
            held = self._sums.setdefault((name, side), [0.0, 0.0, 0])
            held[0] += float(infinity_norm(x).double().sum())
            held[1] += float(sequence_kurtosis(x).double().sum())
            held[2] += len(x)

        return hook

    @property
    def table(self) -> list[dict[str, Any]]:
        """Name, side, infinity norm and kurtosis of each recorded tensor."""
        return [
            {"tensor": name, "side": side, "inf norm": i / n, "kurtosis": k / n}
            for (name, side), (i, k, n) in self._sums.items()
        ]

    def _values(self, key: str) -> list[float]:
        if not self._sums:
            raise ModelError("the model has not run inside the probe: call it within the with block")
        return [row[key] for row in self.table]

    @property
    def max_inf_norm(self) -> float:
        """Largest over tensors of the mean infinity norm."""
        return max(self._values("inf norm"))

    @property
    def avg_kurtosis(self) -> float:
        """Mean kurtosis over tensors; 3 for a Gaussian."""
        values = self._values("kurtosis")
        return sum(values) / len(values)

    @property
    def max_kurtosis(self) -> float:
        """Largest kurtosis over tensors."""
        return max(self._values("kurtosis"))
