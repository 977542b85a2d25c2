"""What a quantization will take before it starts: hidden states, Gram matrices, weights, and what it will store."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from skerry.quant.architectures.base import architecture_of
from skerry.quant.recipe import Recipe

__all__ = ["plan"]


def plan(model: nn.Module, recipe: Recipe, batches: list[Any]) -> list[dict[str, Any]]:
    """Return rows of (what, MiB, note) for a model, a recipe and calibration batches of token ids.

    Parameters
    ----------
    model : Module
    recipe : Recipe
    batches : list of Tensor
    """
    architecture = architecture_of(model)
    names = architecture.block_names(model) if architecture.blocks else [""]
    layers = {
        name: module
        for block in names
        for name, module in model.get_submodule(block).named_modules(prefix=block)
        if isinstance(module, nn.Linear) and not recipe.skips(name)
    }
    tokens = sum(batch.numel() for batch in batches if isinstance(batch, Tensor) and not batch.is_floating_point())
    config = getattr(model, "config", None)
    width = getattr(config, "hidden_size", None) or max((m.in_features for m in layers.values()), default=0)
    size = next(iter(model.parameters())).element_size()
    needs = {need for name in layers for part in recipe.parts_for(name) for need in getattr(part, "needs", ())}
    gram = max((m.in_features for m in layers.values()), default=0) ** 2 * 8 if "gram" in needs else 0
    weights = sum(m.weight.numel() for m in layers.values())
    stored = sum(
        m.weight.numel() * (16.0 if recipe.weight is None else _bits(recipe, name, m)) / 8 for name, m in layers.items()
    )
    rows = [
        ("hidden states between blocks", tokens * width * size, f"{tokens:,} tokens of width {width}"),
        ("largest Gram matrix", gram, "float64, one group at a time" if gram else "not needed"),
        ("weights to quantize", weights * size, f"{len(layers)} layers in {len(names)} blocks of {architecture.name}"),
        ("the same, stored", stored, f"{8 * stored / max(weights, 1):.2f} bits per weight, before extras"),
    ]
    return [{"what": what, "MiB": round(nbytes / 2**20, 3), "note": note} for what, nbytes, note in rows]


def _bits(recipe: Recipe, name: str, layer: nn.Linear) -> float:
    weight = recipe.parts_for(name)[0]
    shape = (layer.out_features, layer.in_features)
    if weight is None:
        return 16.0
    grid = weight.for_shape(shape) if hasattr(weight, "for_shape") else weight
    bits = grid.bits_per_weight(shape)
    return bits if math.isfinite(bits) else 16.0
