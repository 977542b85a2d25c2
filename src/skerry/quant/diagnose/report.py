"""The check-up of a network: outliers in activations, weights and attention, and which recipe they ask for.

An et al. (2025), "Systematic Outliers in Large Language Models" (arXiv 2502.06415). Two passes over the batches; the
memory is that of one batch and, for attention, one layer's probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from skerry.core.errors import ModelError
from skerry.deep.stream import call, stream_blocks, watch_attention
from skerry.quant.architectures.base import architecture_of
from skerry.quant.calibration import as_batches, output_of
from skerry.quant.diagnose.activations import ActivationReport, StreamWatch, as_text
from skerry.quant.diagnose.attention import AttentionLayer, AttentionWatch
from skerry.quant.diagnose.emergent import EmergentFeature, EmergentReport, EmergentWatch
from skerry.quant.diagnose.lifecycle import Lifecycle, trace_lifecycle
from skerry.quant.diagnose.remedies import RemedyWatch
from skerry.quant.diagnose.weights import WeightOutliers, weight_outliers

__all__ = ["Advice", "OutlierReport", "described_blocks", "outliers"]

LOUD = 6.0  # times the root mean square: an emergent feature of a model on which no remedy can be tried
HELPS, SAME = 3.0, 1.0  # decibels: what a remedy must win over plain rounding, and where two remedies are alike


@dataclass(frozen=True)
class Advice:
    """A recommendation: what was seen, why it matters, and a recipe of :mod:`skerry.quant.recipes` (or "")."""

    rule: str
    why: str
    recipe: str


@dataclass
class OutlierReport:
    """What :func:`outliers` found.

    Attributes
    ----------
    model : str
    n_sequences, seq_len : int
    threshold : float
        Of activation outliers, times the mean.
    activation, down_input : ActivationReport
        Of the blocks' outputs, and of the inputs of the layers that write the MLPs' outputs (empty if unknown).
    weight : dict of str to WeightOutliers
    attention : list of AttentionLayer
    lifecycle : Lifecycle
    emergent : EmergentReport
        Channels of the hidden states at 6 and above in many layers and tokens (LLM.int8's).
    remedies : dict of str to float
        Signal to noise (decibels) that 8-bit rounding leaves in the layers behind norms, with each remedy tried on them
        (see :mod:`skerry.quant.diagnose.remedies`); empty for architectures that are not described.
    advice : list of Advice
    """

    model: str
    n_sequences: int
    seq_len: int
    threshold: float
    activation: ActivationReport
    down_input: ActivationReport
    weight: Mapping[str, WeightOutliers]
    attention: list[AttentionLayer]
    lifecycle: Lifecycle
    emergent: EmergentReport
    remedies: Mapping[str, float] = field(default_factory=dict)
    advice: list[Advice] = field(default_factory=list)

    def to_plain(self) -> dict[str, Any]:
        """Return the report as JSON-ready data."""
        return _plain(
            {
                "model": self.model,
                "n_sequences": self.n_sequences,
                "seq_len": self.seq_len,
                "threshold": self.threshold,
                "activation": {
                    "layers": [
                        row | {"outlier_tokens": [asdict(t) for t in layer.tokens]}
                        for row, layer in zip(self.activation.table(), self.activation.layers, strict=True)
                    ],
                    "systematic_dims": list(self.activation.systematic),
                    "token_classes": self.activation.classes,
                },
                "down_input": {"layers": self.down_input.table()},
                "weight": {"modules": {name: asdict(found) for name, found in self.weight.items()}},
                "attention": {
                    "layers": [
                        {
                            "layer": layer.name,
                            "C_top": layer.received.topk(min(5, len(layer.received))).values.tolist(),
                            "C_median": float(layer.received.median()),
                            "sinks": list(layer.sinks),
                            "head_share": list(layer.head_share),
                            "S_mean": list(layer.scale_mean),
                            "S_std": list(layer.scale_std),
                            "drain": layer.drain,
                        }
                        for layer in self.attention
                    ]
                },
                "lifecycle": asdict(self.lifecycle),
                "emergent": asdict(self.emergent),
                "remedies": dict(self.remedies),
                "advice": [asdict(a) for a in self.advice],
            }
        )


def outliers(
    model: nn.Module,
    batches: Any,
    *,
    tokenizer: Any = None,
    act_eta: float = 1000.0,
    attn_frac: float = 0.1,
) -> OutlierReport:
    """Look for systematic outliers.

    Parameters
    ----------
    model : Module
    batches : Tensor, mapping or list of them
        Inputs of the model, sequences of one length.
    tokenizer : object with ``decode``, or a list of token texts, optional
        To class the tokens that carry outliers.
    act_eta : float, default 1000.0
        An activation outlier is this many times the mean absolute value of its layer's output.
    attn_frac : float, default 0.1
        An attention sink receives at least this share of the number of queries.

    Returns
    -------
    OutlierReport

    Raises
    ------
    DataError
        If there is no batch.
    ModelError
        If no list of blocks is found, or the model's weights or outputs are not finite.
    """
    batches = as_batches(batches)
    model = model.eval()
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise ModelError(f"{name} holds NaN or infinite values; the model file is damaged")
    blocks = described_blocks(model)
    down = _writer(model, next(iter(blocks)))
    writers = {f"{name}.{down}": block.get_submodule(down) for name, block in blocks.items()} if down else {}
    stream, inner = StreamWatch(blocks, act_eta), StreamWatch(writers, act_eta, inputs=True)
    attention, emergent = AttentionWatch(attn_frac), EmergentWatch(model, blocks)
    tried = RemedyWatch(model, architecture_of(model))
    ids: list[Tensor | None] = [None]
    text = as_text(tokenizer)
    with torch.no_grad():
        with ExitStack() as stack:
            for watch in (stream.measuring(), inner.measuring(), emergent.measuring(), tried.measuring(len(batches))):
                stack.enter_context(watch)
            stack.enter_context(watch_attention(model, attention.measure))
            for batch in batches:
                if not bool(torch.isfinite(output_of(call(model, batch))).all()):
                    raise ModelError("the model's outputs are not finite on these inputs; save it in wider numbers")
        attention.settle()
        with stream.locating(lambda: ids[0], text), watch_attention(model, attention.share):
            for batch in batches:
                ids[0] = _ids(batch)
                call(model, batch)
    activation = stream.report()
    first = batches[0]
    tensor = _ids(first)
    report = OutlierReport(
        model=type(model).__name__,
        n_sequences=sum(len(t) for t in (_ids(b) for b in batches) if t is not None),
        seq_len=0 if tensor is None else int(tensor.shape[-1]),
        threshold=act_eta,
        activation=activation,
        down_input=inner.report(),
        weight=weight_outliers(model),
        attention=attention.report(),
        lifecycle=trace_lifecycle(model, blocks, down, activation, first),
        emergent=emergent.report(),
        remedies=tried.report(),
    )
    report.advice = _advice(report)
    return report


def described_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Return the blocks by name: as the model's architecture says, else the longest list with norms."""
    architecture = architecture_of(model)
    if architecture.groups:
        return {name: model.get_submodule(name) for name in architecture.block_names(model)}
    return stream_blocks(model)


def _writer(model: nn.Module, block: str) -> str | None:
    """Return the name within a block of the linear layer that writes the MLP's output."""
    architecture = architecture_of(model)
    named = architecture.writers[-1] if architecture.writers else None
    candidates = [named] if named else ["mlp.down_proj", "mlp.c_proj", "output.dense", "fc2", "mlp.fc2", "ffn.down"]
    for name in candidates:
        try:
            model.get_submodule(f"{block}.{name}")
        except AttributeError:
            continue
        return name
    return None


def _ids(batch: Any) -> Tensor | None:
    tensor = batch.get("input_ids") if isinstance(batch, Mapping) else batch[0] if isinstance(batch, tuple) else batch
    return tensor if isinstance(tensor, Tensor) and not tensor.is_floating_point() and tensor.ndim == 2 else None


def _advice(report: OutlierReport) -> list[Advice]:
    found: list[Advice] = []
    layers, tried = report.activation.layers, report.remedies
    worst = max(layers, key=lambda layer: layer.ratio)
    if worst.ratio > 100.0 and report.activation.systematic:
        channels = ", ".join(map(str, report.activation.systematic[:6]))
        why = f"channels {channels} reach {worst.ratio:,.0f} times the mean after {worst.name}, layer after layer"
        found.append(Advice("activation outliers in fixed channels", why, "os-plus"))
        if not tried or tried["llm-int8"] - tried["rtn"] >= HELPS:
            found.append(Advice("the same without calibration data", why, "llm-int8"))
    features = [f for f in report.emergent.features if tried or f.loudness >= LOUD]
    remedy = _remedy(tried) if tried else "llm-int8" if features and not found else "rtn"
    if remedy != "rtn":
        found.append(_against_loud_channels(features, tried, remedy))
    kinds = report.activation.classes
    if kinds["initial"] and not any(n for kind, n in kinds.items() if kind != "initial"):
        why = "only the first token of a sequence carries outliers: keep it out of static activation ranges"
        found.append(Advice("outliers at position 0 only", why, "rtn"))
    flagged = [name for name, w in report.weight.items() if w.flagged]
    if flagged:
        why = f"{', '.join(flagged[:4])}: single columns stand far above their layer; keep them in 16 bits"
        found.append(Advice("weight outliers", why, "quantease"))
    sinks = [layer for layer in report.attention if layer.sinks and layer.scale_std and max(layer.scale_std) > 0.2]
    if sinks:
        why = f"{len(sinks)} layers scale their output by what a sink takes: never drop sink tokens from the cache"
        found.append(Advice("attention sinks at work", why, ""))
    if not found:
        why = f"the largest value is {worst.ratio:,.0f} times the mean, kurtosis {worst.kurtosis:,.1f}: plain rounding"
        found.append(Advice("no systematic outliers", why, "rtn"))
    return found


def _remedy(tried: Mapping[str, float]) -> str:
    """Return what to do at 8 bits: the first remedy, cheapest first, as good as the best; "rtn" if none helps."""
    best = max(tried.values())
    if best - tried["rtn"] < HELPS:
        return "rtn"
    return next(name for name, decibels in tried.items() if decibels >= best - SAME)


def _against_loud_channels(features: list[EmergentFeature], tried: Mapping[str, float], remedy: str) -> Advice:
    seen = "some channels behind norms are loud"
    if features:
        channels, first = ", ".join(str(f.channel) for f in features[:6]), features[0]
        seen = (
            f"channels {channels} enter {first.layer_share:.0%} of the layers at {first.quartiles[1]:,.1f}, "
            f"{first.loudness:,.0f} times the root mean square"
        )
    if not tried:
        seen += ": one scale a token leaves the others few steps"
    else:
        seen += f": {tried_in_words(tried)}"
    return Advice("emergent features" if features else "loud channels", seen, remedy)


def tried_in_words(tried: Mapping[str, float]) -> str:
    """Return what the remedies left of the layers behind norms, as a clause.

    Examples
    --------
    >>> tried_in_words({"rtn": 21.34, "smoothquant": 41.1, "llm-int8": 30.7})
    'in 8 bits the layers behind norms keep 21.3 dB with rtn, 41.1 dB with smoothquant, 30.7 dB with llm-int8'
    """
    kept = ", ".join(f"{decibels:.1f} dB with {name}" for name, decibels in tried.items())
    return f"in 8 bits the layers behind norms keep {kept}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
