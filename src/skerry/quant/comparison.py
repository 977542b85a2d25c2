"""A quantized model beside its float original: layers, loss, bytes, speed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from skerry.core.errors import DataError
from skerry.quant.calibration import as_batches, live, mask_of, run_model
from skerry.quant.engine import output_of
from skerry.quant.linear import QuantizedLinear
from skerry.quant.numerics import signal_to_noise

__all__ = ["Comparison", "clipped_shares", "compare", "language_loss"]


@dataclass(frozen=True)
class Comparison:
    """What quantization cost and saved.

    Attributes
    ----------
    loss, quantized_loss : float
        Mean next-token loss in nats (or the given score); NaN if the batches carry no tokens.
    divergence : float
        Mean over positions of the Kullback-Leibler divergence from the float model's distribution to the quantized
        one's, nats: zero only for equal outputs, where a loss may fall by chance. NaN for models without logits.
    agreement : float
        Share of positions whose largest output is the same.
    signal_to_noise : float
        Of the model's output, decibels.
    nbytes, quantized_nbytes : int
        Of all parameters and buffers.
    items_per_second, quantized_items_per_second : float
        Tokens (or samples) of the batches a second, best of the repetitions, both models in turns.
    layers : dict of str to float
        Signal to noise of every quantized layer's output, decibels, on its own inputs in the quantized model's place.
    clipped : dict of str to float
        Of layers whose inputs have calibrated ranges, the share of live values that these cut off.
    """

    loss: float
    quantized_loss: float
    divergence: float
    agreement: float
    signal_to_noise: float
    nbytes: int
    quantized_nbytes: int
    items_per_second: float
    quantized_items_per_second: float
    layers: Mapping[str, float] = field(default_factory=dict)
    clipped: Mapping[str, float] = field(default_factory=dict)

    @property
    def perplexity(self) -> float:
        """``exp(loss)`` of the float model."""
        return math.exp(self.loss)

    @property
    def quantized_perplexity(self) -> float:
        """``exp(loss)`` of the quantized model."""
        return math.exp(self.quantized_loss)

    def __str__(self) -> str:
        lines = [f"output {self.signal_to_noise:.1f} dB, agreement {self.agreement:.1%}"]
        if not math.isnan(self.loss):
            lines.append(f"loss {self.loss:.4f} -> {self.quantized_loss:.4f} ({self.quantized_loss - self.loss:+.4f})")
        if not math.isnan(self.divergence):
            lines.append(f"divergence {self.divergence:.4f} nats")
        lines.append(f"{self.nbytes / 2**20:,.1f} -> {self.quantized_nbytes / 2**20:,.1f} MiB")
        if self.clipped:
            worst = max(self.clipped, key=lambda name: self.clipped[name])
            lines.append(f"at most {self.clipped[worst]:.2%} of a layer's inputs are clipped ({worst})")
        lines.append(f"{self.items_per_second:,.0f} -> {self.quantized_items_per_second:,.0f} tokens per second")
        return "\n".join(lines)


@torch.no_grad()
def compare(
    model: nn.Module,
    quantized: nn.Module,
    batches: Any,
    *,
    score: Callable[[nn.Module, Any], float] | None = None,
    repetitions: int = 3,
) -> Comparison:
    """Run both models over the same batches; padded tokens (``attention_mask``) count nowhere but in the time.

    Parameters
    ----------
    model, quantized : Module
        The float model and what :func:`~skerry.quant.quantize` made of it.
    batches : Tensor, mapping or list of them
        As for calibration, preferably other data.
    score : callable, optional
        ``score(model, batch)`` in place of the next-token loss, for models that are not language models.
    repetitions : int, default 3
        Timed passes; the best counts.

    Raises
    ------
    DataError
        If there is no batch.
    """
    batches = as_batches(batches)
    score = score or language_loss
    signal = noise = same = places = apart = 0.0
    losses: list[tuple[float, float]] = []
    for batch in batches:
        output = run_model(model, batch)
        with_logits = _has_logits(output, batch)
        exact, rounded = output_of(output).float(), output_of(run_model(quantized, batch)).float()
        if exact.shape != rounded.shape:
            raise DataError(f"the models' outputs differ in shape: {tuple(exact.shape)} and {tuple(rounded.shape)}")
        if exact.ndim > 2:
            exact, rounded = live(exact, mask_of(batch)), live(rounded, mask_of(batch))
        signal += float((exact * exact).sum(dtype=torch.float64))
        noise += float(((exact - rounded) ** 2).sum(dtype=torch.float64))
        same += float((exact.argmax(-1) == rounded.argmax(-1)).sum())
        places += exact[..., 0].numel()
        apart += _divergence(exact, rounded) if with_logits else math.nan
        losses.append((score(model, batch), score(quantized, batch)))
    seconds = [_seconds(m, batches, repetitions) for m in (model, quantized)]
    items = sum(_items(batch) for batch in batches)
    return Comparison(
        loss=sum(a for a, _ in losses) / len(losses),
        quantized_loss=sum(b for _, b in losses) / len(losses),
        divergence=apart / max(places, 1.0),
        agreement=same / max(places, 1.0),
        signal_to_noise=math.inf if noise == 0.0 else 10.0 * math.log10(signal / noise),
        nbytes=stored_bytes(model),
        quantized_nbytes=stored_bytes(quantized),
        items_per_second=items / seconds[0],
        quantized_items_per_second=items / seconds[1],
        layers=_layer_noise(model, quantized, batches[0]),
        clipped=clipped_shares(quantized, batches),
    )


@torch.no_grad()
def language_loss(model: nn.Module, batch: Any) -> float:
    """Return the mean next-token loss (nats) of a batch of token ids; NaN for other inputs or outputs."""
    tokens = batch.get("input_ids") if isinstance(batch, Mapping) else batch
    if not isinstance(tokens, Tensor) or tokens.ndim != 2 or tokens.is_floating_point() or tokens.shape[1] < 2:
        return math.nan
    logits = output_of(run_model(model, batch))
    if not _next_tokens(logits, tokens):
        return math.nan
    wanted = tokens[:, 1:]
    loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), wanted.flatten(), reduction="none")
    mask = mask_of(batch)
    if mask is not None and mask.shape == tokens.shape:
        kept = mask[:, 1:].flatten().bool()
        return float(loss[kept].mean())
    return float(loss.mean())


def _next_tokens(logits: Tensor, tokens: Tensor) -> bool:
    return logits.ndim == 3 and logits.shape[:2] == tokens.shape and int(tokens.max()) < logits.shape[-1]


def _has_logits(output: Any, batch: Any) -> bool:
    if getattr(output, "logits", None) is not None:
        return True
    tokens = batch.get("input_ids") if isinstance(batch, Mapping) else batch
    whole = isinstance(tokens, Tensor) and tokens.ndim == 2 and not tokens.is_floating_point()
    return isinstance(output, Tensor) and whole and _next_tokens(output, tokens)


def _divergence(exact: Tensor, rounded: Tensor) -> float:
    """Return the sum over positions of the divergence between two tensors of logits."""
    total = 0.0
    for a, b in zip(exact.flatten(0, -2).split(1024), rounded.flatten(0, -2).split(1024), strict=True):
        p, q = (torch.log_softmax(x.double(), -1) for x in (a, b))
        total += float((p.exp() * (p - q)).sum())
    return max(total, 0.0)  # rounding may leave a little below it


def stored_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters, buffers and stored parts, tied tensors once."""
    seen: set[int] = set()
    total = 0
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            total += tensor.numel() * tensor.element_size()
    for module in model.modules():
        if isinstance(module, QuantizedLinear):  # its bias is a buffer and was counted
            bias = 0 if module.bias is None else module.bias.numel() * module.bias.element_size()
            total += module.nbytes - bias
    return total


@torch.no_grad()
def clipped_shares(quantized: nn.Module, batches: Any) -> dict[str, float]:
    """Return, for every layer whose inputs have calibrated ranges, the share of live values that these cut off.

    Parameters
    ----------
    quantized : Module
    batches : Tensor, mapping or list of them
    """
    layers = [(n, m) for n, m in quantized.named_modules() if isinstance(m, QuantizedLinear)]
    layers = [(n, m) for n, m in layers if hasattr(m.activation, "clipped")]
    if not layers:
        return {}
    counts = {name: [0, 0] for name, _ in layers}
    mask: list[Tensor | None] = [None]

    def count(name: str, layer: QuantizedLinear, module: nn.Module, inputs: tuple) -> None:
        x = inputs[0]
        for change in layer.before:
            x = change(x)
        outside = live(layer.activation.clipped(x), mask[0])  # type: ignore[union-attr]
        counts[name][0] += int(outside.sum())
        counts[name][1] += outside.numel()

    handles = [layer.register_forward_pre_hook(partial(count, name, layer)) for name, layer in layers]
    try:
        for batch in as_batches(batches):
            mask[0] = mask_of(batch)
            run_model(quantized, batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: cut / total for name, (cut, total) in counts.items() if total}


def _layer_noise(model: nn.Module, quantized: nn.Module, batch: Any) -> dict[str, float]:
    """Return the signal to noise of the outputs of layers that both models have, on one batch."""
    names = [n for n, m in quantized.named_modules() if isinstance(m, QuantizedLinear)]
    found: list[dict[str, Tensor]] = []
    for one in (model, quantized):
        outputs: dict[str, Tensor] = {}
        handles = []
        for name in names:
            try:
                module = one.get_submodule(name)
            except AttributeError:
                continue
            keep = partial(_keep, outputs, name)
            handles.append(module.register_forward_hook(keep))
        try:
            run_model(one, batch)
        finally:
            for handle in handles:
                handle.remove()
        found.append(outputs)
    return {
        n: signal_to_noise(*(live(outputs[n], mask_of(batch)) for outputs in found))
        for n in names
        if n in found[0] and n in found[1]
    }


def _keep(outputs: dict[str, Tensor], name: str, module: nn.Module, arguments: tuple, output: Tensor) -> None:
    outputs[name] = output.detach()


def _seconds(model: nn.Module, batches: list[Any], repetitions: int) -> float:
    best = math.inf
    for _ in range(max(1, repetitions)):
        started = time.perf_counter()
        for batch in batches:
            run_model(model, batch)
        best = min(best, time.perf_counter() - started)
    return best


def _items(batch: Any) -> int:
    tensor = batch
    if isinstance(batch, Mapping):
        tensor = batch.get("input_ids", next(v for v in batch.values() if isinstance(v, Tensor)))
    if isinstance(tensor, tuple):
        tensor = tensor[0]
    return tensor.numel() if not tensor.is_floating_point() else len(tensor)
