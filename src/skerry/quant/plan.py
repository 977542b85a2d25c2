"""What a quantization will take before it starts: hidden states, statistics, weights, and what it will store."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from skerry.quant.architectures.base import architecture_of
from skerry.quant.calibration import rows_to_run
from skerry.quant.offload import is_offloaded
from skerry.quant.probe import PROBE_BATCHES
from skerry.quant.recipe import Recipe
from skerry.quant.statistics import CHUNK, SAMPLE_TOKENS

__all__ = ["PEAK", "plan"]

PEAK = "peak of memory"
GRAM = 8  # bytes of an entry
COPIES = 5  # float32 copies of a weight that a solver holds: itself, ordered, codes and values, the best so far
FACTORS = 4  # float64 matrices of a Gram matrix's size beside it: ordered, damped, inverse, factor


def plan(
    model: nn.Module, recipe: Recipe, batches: list[Any], *, memory: int = 2**31, shard_bytes: int = 2**31
) -> list[dict[str, Any]]:
    """Return rows of (what, MiB, note) for quantizing a model in place and saving it.

    Parameters
    ----------
    model : Module
        In memory, or offloaded (see :mod:`skerry.quant.offload`).
    recipe : Recipe
    batches : list of Tensor or mapping
        Calibration: token ids, pixel values.
    memory : int, default 2 GiB
        Bytes of hidden states that may stay in memory.
    shard_bytes : int, default 2 GiB
        Largest file that is written.

    Notes
    -----
    The last row is what the run holds at its worst beside the program itself (Python and torch, about half a GiB), an
    estimate from shapes: weights, the hidden states between blocks, and the larger of one block's work (statistics of
    its groups, the calls that searches repeat, a copy of its weights for the guard, the solver's own) and of writing.
    Attention that forms its whole matrix (``eager``) is not in it.
    """
    architecture = architecture_of(model)
    names = architecture.block_names(model) if architecture.blocks else [""]
    blocks = [dict(model.get_submodule(name).named_modules(prefix=name)) for name in names]
    recipe = recipe.with_skip(*architecture.keep)
    found = [_layers(modules, recipe) for modules in blocks]
    layers = {name: shape for block in found for name, shape in block.items()}
    size = next(iter(model.parameters())).element_size()
    sizes = [_bytes(model.get_submodule(name)) for name in names]
    away = is_offloaded(model)
    kept = _bytes(model) - (sum(sizes) - max(sizes) if away else 0)
    width = _width(model, layers)
    batches = rows_to_run(batches, recipe)
    tokens = [_tokens(model, batch) for batch in batches]
    states = sum(tokens) * width * size
    held = min(states, memory) * (1 if recipe.propagate == "quantized" else 2)
    needs = {need for name in layers for part in recipe.parts_for(name) for need in getattr(part, "needs", ())}
    needs |= {need for part in recipe.transforms for need in getattr(part, "needs", ())}
    grams = bool(needs & {"gram", "covariance"})
    work = max((_work(block, tokens, size, grams, sized, recipe) for block, sized in zip(found, sizes, strict=True)))
    weights = sum(out * inputs for out, inputs in layers.values())
    stored = sum(_bits(recipe, name, shape) * shape[0] * shape[1] / 8 for name, shape in layers.items())
    rest = max(kept - weights * size, 0)
    writing = 2 * min(stored + rest, shard_bytes) + 4 * max((out * i for out, i in layers.values()), default=0)
    gram = max((inputs for _, inputs in layers.values()), default=0) ** 2 * GRAM if grams else 0
    seen = (
        f"{sum(tokens):,} tokens of width {width}{_where(states, memory)}" if batches else "none: no calibration given"
    )
    rows = [
        ("weights as loaded", kept, "one block and what is outside of them" if away else ""),
        ("hidden states between blocks", states, seen),
        ("work on one block", work, f"largest Gram matrix {gram / 2**20:,.1f}" if grams else "no Gram matrix"),
        ("writing", writing, "one shard, twice"),
        ("weights to quantize", weights * size, f"{len(layers)} layers in {len(names)} blocks of {architecture.name}"),
        ("the same, stored", stored, f"{8 * stored / max(weights, 1):.2f} bits per weight, before extras"),
        (PEAK, kept + max(held + work, writing), "beside the program itself"),
    ]
    return [{"what": what, "MiB": round(nbytes / 2**20, 3), "note": note} for what, nbytes, note in rows]


def _layers(modules: Mapping[str, nn.Module], recipe: Recipe) -> dict[str, tuple[int, int]]:
    """Return (out, in) of the layers of a block that will be quantized; GPT-2's ``Conv1D`` holds (in, out)."""
    found = {}
    for name, module in modules.items():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim != 2 or recipe.skips(name):
            continue
        if isinstance(module, nn.Linear):
            found[name] = (module.out_features, module.in_features)
        elif type(module).__name__ == "Conv1D":
            found[name] = (weight.shape[1], weight.shape[0])
    return found


def _work(
    layers: Mapping[str, tuple[int, int]], tokens: list[int], size: int, grams: bool, block: int, recipe: Recipe
) -> float:
    """Return the bytes of one block's work."""
    largest = max(tokens, default=0)
    inputs = [i for _, i in layers.values()]
    widest, heaviest = max(inputs, default=0), max((out * i for out, i in layers.values()), default=0)
    running = largest * sum(out for out, _ in layers.values()) * size + 3 * largest * widest * 4
    sample = min(sum(tokens), SAMPLE_TOKENS + largest) * 4
    gram = [i * i * GRAM for i in inputs] if grams else []
    if recipe.sequential == "group":
        gathered = widest * sample + max(gram, default=0)
    else:
        gathered = sum(i * sample for i in inputs) + sum(gram)
    summing = 3 * widest * widest * GRAM + min(largest, CHUNK) * widest * 4 if grams and tokens else 0
    calls = min(len(tokens), PROBE_BATCHES) * largest * sum(i + out for out, i in layers.values()) * size
    guard = block if recipe.transforms and tokens else 0
    if recipe.propagate == "mixed":  # the float twin, and the two products of every group's inputs
        guard += block
        gathered += sum(2 * i * i * 8 for i in inputs)
    solving = COPIES * 4 * heaviest + (FACTORS * widest * widest * GRAM if grams else 0)
    return gathered + calls + guard + max(running + summing, solving)


def _bytes(module: nn.Module) -> int:
    """Return the bytes of parameters and buffers, tied ones once."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum({id(t) if t.is_meta else t.data_ptr(): t.numel() * t.element_size() for t in tensors}.values())


def _width(model: nn.Module, layers: Mapping[str, tuple[int, int]]) -> int:
    width = getattr(getattr(model, "config", None), "hidden_size", None)
    return width or max((inputs for _, inputs in layers.values()), default=0)


def _tokens(model: nn.Module, batch: Any) -> int:
    """Return the tokens that a batch becomes: its ids, or an image's patches and one more."""
    if isinstance(batch, Mapping):
        batch = next((batch[k] for k in ("input_ids", "pixel_values") if k in batch), next(iter(batch.values())))
    if isinstance(batch, tuple):
        batch = batch[0]
    if not isinstance(batch, Tensor):
        return 0
    if batch.ndim == 4:
        patch = getattr(getattr(model, "config", None), "patch_size", None) or 1
        return len(batch) * (batch.shape[2] * batch.shape[3] // patch**2 + 1)
    return batch.numel() if not batch.is_floating_point() else batch.numel() // batch.shape[-1]


def _where(states: int, memory: int) -> str:
    return ", in scratch files" if states > memory else ""


def _bits(recipe: Recipe, name: str, shape: tuple[int, int]) -> float:
    weight = recipe.parts_for(name)[0]
    if weight is None:
        return 16.0
    grid = weight.for_shape(shape) if hasattr(weight, "for_shape") else weight
    bits = grid.bits_per_weight(shape)
    return bits if math.isfinite(bits) else 16.0
