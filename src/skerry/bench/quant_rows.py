"""What the studies of quantization share: two small models of one function, and rows of loss increases.

"Natural" is the character model as trained, "planted" its twin with huge shifted channels (see
:mod:`skerry.bench.quant_models`). An entry is the held-out loss of the quantized model minus that of the float one, in
nats; one model and one seed, so differences in the third digit say nothing.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from skerry.bench.quant_models import CharModel, characters, loss_of, plant_outliers, trained_char_model, windows
from skerry.quant.engine import quantize_model
from skerry.quant.linear import QuantizedLinear
from skerry.quant.recipe import Recipe
from skerry.quant.report import QuantizationReport

__all__ = ["Lab", "by_name", "float_note", "increase", "make_lab", "rows_of"]

QUICK = CharModel(width=64, blocks=2, heads=2, context=64, steps=150, batch=16)


@dataclass(frozen=True)
class Lab:
    """The two models and their texts.

    Attributes
    ----------
    models : dict of str to Module
        "natural" and "planted".
    calibration : list of Tensor
        64 windows of training text.
    held : Tensor of shape (windows, context + 1)
    loss : dict of str to float
        Of the float models.
    """

    models: Mapping[str, nn.Module]
    calibration: list[Tensor]
    held: Tensor
    loss: Mapping[str, float]


def make_lab(data: Path, *, quick: bool, progress: Callable[[str], None]) -> Lab:
    """Return the lab; trains the model if the cache has none."""
    settings = QUICK if quick else CharModel()
    model = trained_char_model(data, settings, progress)
    train, held, _ = characters(data)
    tokens = windows(held, 32 if quick else 160, settings.context + 1, random_state=7)
    calibration = list(windows(train, 64, settings.context, random_state=11).split(16))
    models = {"natural": model, "planted": plant_outliers(model)}
    return Lab(models, calibration, tokens, {name: loss_of(m, tokens) for name, m in models.items()})


def increase(lab: Lab, which: str, recipe: Recipe, *, check: bool = True) -> tuple[float, QuantizationReport]:
    """Return the loss increase of a recipe on one of the models, and the engine's report; ``check`` is the engine's."""
    model = copy.deepcopy(lab.models[which])
    found, report = quantize_model(model, recipe, calibration=lab.calibration, inplace=True, check=check)
    for module in found.modules():
        if isinstance(module, QuantizedLinear):
            module.keep_dense()
    return loss_of(found, lab.held) - lab.loss[which], report


def rows_of(
    lab: Lab,
    cases: Iterable[tuple[str, Callable[[str], Recipe]]],
    bits: Iterable[str],
    progress: Callable[[str], None],
    *,
    models: tuple[str, ...] = ("natural", "planted"),
    check: bool = True,
) -> list[dict[str, Any]]:
    """Return a row a case: the loss increase for every model and width, stored bits per weight, seconds.

    A case is a name and a function from bits ("w4a16") to a recipe; one that raises says "-" (it cannot do these bits).
    """
    rows = []
    bits = list(bits)
    for label, make in cases:
        row: dict[str, Any] = {"method": label}
        seconds, stored = 0.0, []
        for which in models:
            for width in bits:
                progress(f"{label}, {which}, {width}")
                started = time.perf_counter()
                try:
                    recipe = make(width)
                except ValueError:
                    row[f"{which} {width}"] = "-"
                    continue
                row[f"{which} {width}"], report = increase(lab, which, recipe, check=check)
                seconds += time.perf_counter() - started
                stored.append(f"{report.bits_per_weight:.2f}")
        row["stored bits"] = ", ".join(stored[: len(bits)])
        row["seconds"] = seconds
        rows.append(row)
    return rows


def by_name(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the rows by their method's name."""
    return {row["method"]: row for row in rows}


def float_note(lab: Lab) -> str:
    """Say what the float models lose."""
    same = abs(lab.loss["planted"] - lab.loss["natural"])
    return (
        f"Float loss {lab.loss['natural']:.4f} nats on {len(lab.held)} held-out windows of "
        f"{lab.held.shape[1] - 1} characters of tinyshakespeare; the planted twin differs by {same:.1g}."
    )
