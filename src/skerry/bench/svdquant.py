"""SVDQuant: one layer with imbalanced channels, and a small language model at 4 bits (arXiv 2411.05007)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from skerry.bench.quant_rows import by_name, float_note, make_lab, rows_of
from skerry.bench.train_tables import expectations, expected
from skerry.quant.activation import GroupDynamic
from skerry.quant.engine import quantize_model
from skerry.quant.numerics import AffineGrid
from skerry.quant.recipe import Recipe
from skerry.quant.recipes import make_recipe
from skerry.quant.transforms.low_rank import BranchSmooth, LowRankAbsorb

BITS = ("w4a4",)
GRID = AffineGrid(4, group_size=64)


def run(quick: bool, data: Path, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    lab = make_lab(data, quick=quick, progress=progress)
    size = 32 if quick else 64
    steps = 6 if quick else 20
    plain = Recipe("rtn", AffineGrid(4, group_size=size), None, GroupDynamic(4, size))
    cases: list[tuple[str, Callable[[str], Recipe]]] = [
        ("min-max, groups", lambda bits: plain),
        ("smoothing, no branch", lambda bits: _recipe(bits, size, 0, steps)),
        *((f"SVDQuant, rank {r}", lambda bits, r=r: _recipe(bits, size, r, steps)) for r in (4, 8, 16, 32)),
        ("SVDQuant, rank 16, GPTQ", lambda bits: _recipe(bits, size, 16, steps, gptq=True)),
    ]
    rows = rows_of(lab, cases, BITS, progress)
    at = by_name(rows)
    layers = _layers(seed, progress)
    ours, smooth = at["SVDQuant, rank 16"], at["smoothing, no branch"]
    return {
        "title": "SVDQuant: a low-rank branch at 4 bits",
        "claim": (
            f"W4A4 of the language model, loss increase with rank 16 +{ours['natural w4a4']:.3f}, smoothing alone "
            f"+{smooth['natural w4a4']:.3f}, min-max +{at['min-max, groups']['natural w4a4']:.3f} (planted: "
            f"+{ours['planted w4a4']:.3f}, +{smooth['planted w4a4']:.3f}, "
            f"+{at['min-max, groups']['planted w4a4']:.3f})."
        ),
        "table": rows,
        "tables": {
            "One layer, 192 to 384, relative squared output error": layers,
            "Expectations": expectations(met(layers, rows)),
        },
        "notes": [
            float_note(lab),
            f"Groups of {size} on both sides; the branch is stored in 16 bits and counted in the stored bits.",
            "Rank 32 of a layer of width 128 is a quarter of its rank: at this size the branch is not small.",
        ],
    }


def met(layers: list[dict[str, Any]], rows: list[dict[str, Any]]) -> list[tuple[str, float | str, bool | None]]:
    """Return by how much the branch must be ahead of smoothing (as on such layers beforehand), and whether it is."""
    found = []
    for row, margin in zip(layers, (2.0, 10.0, 2.0), strict=True):
        ratio = row["smoothing"] / row["SVDQuant rank 32, rounds"]
        found.append(
            expected(
                f"{row['layer']}: smoothing's error over rank 32's, at least {margin:g}",
                ratio,
                lambda r, m=margin: r >= m,
            )
        )
    loud = layers[1]
    without = loud["SVD without smoothing, rank 32"] / loud["SVDQuant rank 32"]
    found.append(
        expected(f"{loud['layer']}: without smoothing before it, at least 10 times", without, lambda r: r >= 10)
    )
    at = by_name(rows)
    order = ["min-max, groups", "smoothing, no branch", *(f"SVDQuant, rank {r}" for r in (4, 8, 16, 32))]
    for which in ("natural", "planted"):
        losses = [at[k][f"{which} w4a4"] for k in order]
        falling = all(b < a for a, b in pairwise(losses))
        found.append((f"{which}: loss falls from min-max to smoothing to rank 4, 8, 16, 32", losses[-1], falling))
    return found


def _recipe(bits: str, size: int, rank: int, n_grid: int, *, gptq: bool = False) -> Recipe:
    return make_recipe("svdquant", f"{bits}g{size}", rank=rank, n_grid=n_grid, gptq=gptq)


def _layers(seed: int, progress: Callable[[str], None]) -> list[dict[str, Any]]:
    """One linear layer: natural, with four loud input channels, and with the same imbalance undone in the weight."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(1024, 192, generator=generator)
    W = torch.randn(384, 192, generator=generator) / 192**0.5
    loud = torch.ones(192)
    loud[torch.randperm(192, generator=generator)[:4]] = 30.0
    methods: list[tuple[str, Recipe]] = [
        ("min-max", Recipe("rtn", GRID, None, GroupDynamic(4, 64))),
        ("smoothing", _one(0, 1)),
        ("SVD without smoothing, rank 32", Recipe("svd", GRID, LowRankAbsorb(32, 1), GroupDynamic(4, 64))),
        ("SVDQuant rank 8", _one(8, 1)),
        ("SVDQuant rank 16", _one(16, 1)),
        ("SVDQuant rank 32", _one(32, 1)),
        ("SVDQuant rank 32, rounds", _one(32, 100)),
    ]
    rows = []
    for label, x, weight in (
        ("natural", X, W),
        ("four channels x 30", X * loud, W),
        ("x 30 and / 30 in the weight", X * loud, W / loud),
    ):
        row: dict[str, Any] = {"layer": label}
        for name, recipe in methods:
            progress(f"one layer, {label}, {name}")
            row[name] = _layer_error(x, weight, recipe)
        rows.append(row)
    return rows


def _one(rank: int, iterations: int) -> Recipe:
    return Recipe("one", GRID, LowRankAbsorb(rank, iterations), GroupDynamic(4, 64), (BranchSmooth(rank, 20),))


@torch.no_grad()
def _layer_error(X: Tensor, W: Tensor, recipe: Recipe) -> float:
    layer = nn.Linear(192, 384, bias=False)
    layer.weight.copy_(W)
    model = nn.Sequential(layer)
    exact = X @ W.T
    found, _ = quantize_model(model, recipe, calibration=X)
    return float(((found(X) - exact) ** 2).sum() / (exact**2).sum())
