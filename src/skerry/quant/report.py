"""What a quantization did, layer by layer: bytes, bits per weight, signal to noise, what was decided."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from skerry.quant.recipe import Recipe, to_plain

__all__ = ["LayerReport", "QuantizationReport", "recipe_of"]


@dataclass(frozen=True)
class LayerReport:
    """One linear layer.

    Attributes
    ----------
    name : str
    shape : (out, in)
    nbytes : int
        As saved, with bias, extras and input transforms.
    bits_per_weight : float
        Of weight and extras.
    signal_to_noise : float
        Of the layer's output on calibration tokens, decibels, input rounding included; NaN without calibration.
    objective : float
        The solver's.
    seconds : float
    info : mapping
        The solver's decisions.
    """

    name: str
    shape: tuple[int, int]
    nbytes: int
    bits_per_weight: float
    signal_to_noise: float
    objective: float
    seconds: float
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class QuantizationReport:
    """All layers, all transforms, and the sums.

    Attributes
    ----------
    recipe : Recipe
    architecture : str
    layers : list of LayerReport
    transforms : list of dict
    notes : list of str
    seconds : float
    """

    recipe: Recipe
    architecture: str = ""
    layers: list[LayerReport] = field(default_factory=list)
    transforms: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def nbytes(self) -> int:
        """Bytes of all quantized layers."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def bits_per_weight(self) -> float:
        """Mean over all quantized weights."""
        count = sum(math.prod(layer.shape) for layer in self.layers)
        return sum(layer.bits_per_weight * math.prod(layer.shape) for layer in self.layers) / max(count, 1)

    def worst(self, count: int = 5) -> list[LayerReport]:
        """Return the layers with the least signal to noise, worst first."""
        known = [layer for layer in self.layers if not math.isnan(layer.signal_to_noise)]
        return sorted(known, key=lambda layer: layer.signal_to_noise)[:count]

    def to_plain(self) -> dict[str, Any]:
        """Return the report as JSON-ready data."""
        return {
            "recipe": to_plain(self.recipe),
            "architecture": self.architecture,
            "seconds": self.seconds,
            "bytes": self.nbytes,
            "bits_per_weight": self.bits_per_weight,
            "layers": [
                {
                    "name": layer.name,
                    "shape": list(layer.shape),
                    "bytes": layer.nbytes,
                    "bits_per_weight": layer.bits_per_weight,
                    "signal_to_noise": _number(layer.signal_to_noise),
                    "objective": _number(layer.objective),
                    "seconds": layer.seconds,
                    "info": dict(layer.info),
                }
                for layer in self.layers
            ],
            "transforms": self.transforms,
            "notes": self.notes,
        }

    def __str__(self) -> str:
        lines = [
            f"{self.recipe.name} on {self.architecture}: {len(self.layers)} layers, "
            f"{self.bits_per_weight:.2f} bits per weight, {self.nbytes / 2**20:,.1f} MiB, {self.seconds:.1f} s"
        ]
        lines += [f"  worst: {layer.name} {layer.signal_to_noise:.1f} dB" for layer in self.worst(3)]
        return "\n".join([*lines, *(f"  note: {note}" for note in _gathered(self.notes))])


def _gathered(notes: list[str]) -> list[str]:
    """Return notes of the form "layer: what" that say the same as one, with the first layer's name.

    Examples
    --------
    >>> _gathered(["a.0: x y", "whole", "a.1: x y", "a.2: z"])
    ['a.0 and 1 more: x y', 'whole', 'a.2: z']
    """
    layers: dict[tuple[str, str], list[str]] = {}
    for note in notes:
        name, colon, what = note.partition(": ")
        if colon and " " not in name:
            layers.setdefault((what, ""), []).append(name)
        else:
            layers.setdefault(("", note), [])
    found = []
    for (what, whole), names in layers.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        found.append(whole or f"{names[0]}{more}: {what}")
    return found


def recipe_of(model: nn.Module) -> Recipe | None:
    """Return how a model was quantized, as its report or the folder that it was loaded from says; else None.

    Examples
    --------
    >>> import skerry.quant as quant
    >>> recipe_of(quant.quantize(nn.Sequential(nn.Linear(8, 4)), "rtn", "w8a8")).name
    'rtn'
    >>> recipe_of(nn.Linear(8, 4)) is None
    True
    """
    report = getattr(model, "quantization_report", None)
    found = report.recipe if isinstance(report, QuantizationReport) else getattr(model, "quantization_recipe", None)
    return found if isinstance(found, Recipe) else None


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
