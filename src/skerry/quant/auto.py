"""Which recipe for this model: a few are tried on some of its blocks, in a time budget, judged on held-out text."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from skerry.core.errors import DataError, SkerryError
from skerry.quant.architectures.base import architecture_of
from skerry.quant.calibration import as_batches
from skerry.quant.comparison import compare
from skerry.quant.engine import quantize_model
from skerry.quant.parts import ModelTransform
from skerry.quant.recipe import Bits, parse_bits
from skerry.quant.recipes import make_recipe

__all__ = ["Choice", "candidates_for", "choose_recipe"]


@dataclass(frozen=True)
class Choice:
    """The recipe chosen, why, and what was tried.

    Attributes
    ----------
    name : str
    why : str
    tried : list of dict
        ``recipe``, ``divergence`` and ``loss increase`` (nats), ``decibels``, ``seconds``, ``note``; best first.
    """

    name: str
    why: str
    tried: list[dict[str, Any]]


def candidates_for(bits: str | Bits) -> tuple[str, ...]:
    """Return the recipes worth trying at these bits, cheapest first.

    Examples
    --------
    >>> candidates_for("w8a8")
    ('rtn', 'smoothquant', 'outliertune')
    """
    widths = parse_bits(bits)
    if widths.form != "int":
        return ("rtn", "smoothquant") if widths.activation < 16 else ("rtn",)
    if widths.activation == 16:
        return ("rtn",) if widths.weight >= 8 else ("rtn", "gptq", "quantease")
    if widths.weight >= 8 and widths.activation >= 8:
        return ("rtn", "smoothquant", "outliertune")
    return ("rtn", "smoothquant", "outliertune", "quarot", "svdquant")


def choose_recipe(
    model: nn.Module,
    bits: str | Bits,
    calibration: Any,
    *,
    budget: float = 120.0,
    blocks: int = 2,
    progress: Callable[[str], None] = lambda text: None,
) -> Choice:
    """Try the candidates for these bits and return the best.

    Each is applied to ``blocks`` blocks, the first and others evenly spread (a rotation turns the whole model and is
    tried on all of it), and judged on the last calibration batch, which it has not seen: by how far its predictions are
    from the float model's (the divergence; unlike a loss it cannot be low by chance), for models without logits by the
    output's signal to noise.

    Parameters
    ----------
    model : Module
    bits : str or Bits
    calibration : list of Tensor or mapping
        At least two batches.
    budget : float, default 120
        Seconds; no new candidate starts after them.
    blocks : int, default 2
    progress : callable

    Raises
    ------
    DataError
        With fewer than two batches.
    """
    batches = as_batches(calibration)
    if len(batches) < 2:
        raise DataError("choosing a recipe needs two calibration batches: one is held out to judge by")
    seen, held = batches[:-1], batches[-1:]
    architecture = architecture_of(model)
    names = architecture.block_names(model) if architecture.blocks else []
    step = max(1, len(names) // max(blocks, 1))
    kept = set(names[::step][:blocks])
    others = tuple(f"{name}.*" for name in names if name not in kept)
    started = time.perf_counter()
    tried: list[dict[str, Any]] = []
    for name in candidates_for(bits):
        spent = time.perf_counter() - started
        if tried and spent > budget:
            tried.append({"recipe": name, "note": f"not tried: {spent:.0f} s of {budget:.0f} were spent"})
            continue
        progress(name)
        recipe = make_recipe(name, bits)
        whole = any(isinstance(t, ModelTransform) for t in recipe.transforms)
        at = time.perf_counter()
        try:
            found, _ = quantize_model(model, recipe if whole else recipe.with_skip(*others), calibration=seen)
        except SkerryError as error:
            tried.append({"recipe": name, "note": f"does not fit: {error}"})
            continue
        result = compare(model, found, held, repetitions=1)
        share = 1.0 if whole or not names else len(kept) / len(names)
        increase = (result.quantized_loss - result.loss) / share
        tried.append(
            {
                "recipe": name,
                "divergence": result.divergence / share,
                "loss increase": increase,
                "decibels": result.signal_to_noise + 10.0 * math.log10(share),
                "seconds": time.perf_counter() - at,
                "note": "whole model" if whole else f"{len(kept) or 1} of {len(names) or 1} blocks, scaled up",
            }
        )
    judged = [row for row in tried if "decibels" in row]
    if not judged:
        raise DataError(f"no recipe fits this model at {bits}: {tried[0]['note']}")
    comparable = all(math.isfinite(row["divergence"]) for row in judged)
    judged.sort(key=lambda row: row["divergence"] if comparable else -row["decibels"])
    best = judged[0]
    why = f"cleanest output on held-out inputs ({best['decibels']:.1f} dB)"
    if comparable:
        why = f"closest to the float model on held-out inputs ({best['divergence']:.2g} nats apart"
        loss = best["loss increase"]
        why += f", loss {loss:+.4f})" if math.isfinite(loss) else ")"
    return Choice(best["recipe"], why, judged + [row for row in tried if "decibels" not in row])
