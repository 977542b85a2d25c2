"""OutlierTune on a small language model, natural and with planted outliers (arXiv 2406.18832)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from skerry.bench.quant_rows import by_name, float_note, make_lab, rows_of
from skerry.quant.recipes import make_recipe

BITS = ("w8a8", "w6a6", "w4a4")


def run(quick: bool, data: Path, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    lab = make_lab(data, quick=quick, progress=progress)
    grid = 20 if quick else "auto"
    cases = [
        ("static per tensor", lambda bits: make_recipe("rtn", bits, static=True)),
        ("dynamic per token", lambda bits: make_recipe("rtn", bits)),
        ("SmoothQuant 0.5", lambda bits: make_recipe("smoothquant", bits, static=True)),
        ("OS+", lambda bits: make_recipe("os-plus", bits, n_grid=grid)),
        ("OutlierTune without symmetrization", lambda bits: make_recipe("outliertune", bits, symmetrize=False)),
        ("OutlierTune", lambda bits: make_recipe("outliertune", bits)),
        ("OutlierTune, searched ranges", lambda bits: make_recipe("outliertune", bits, range="mse")),
    ]
    rows = rows_of(lab, cases, BITS, progress)
    at = by_name(rows)
    mine, bare, token = at["OutlierTune"], at["OutlierTune without symmetrization"], at["dynamic per token"]
    return {
        "title": "OutlierTune: integer activations without a scale",
        "claim": (
            f"Planted outliers, W6A6: loss +{mine['planted w6a6']:.4f} with OutlierTune, "
            f"+{bare['planted w6a6']:.4f} without symmetrization, +{token['planted w6a6']:.3f} per token; natural, "
            f"W4A4: +{mine['natural w4a4']:.3f}, +{bare['natural w4a4']:.3f}, +{token['natural w4a4']:.3f}."
        ),
        "table": rows,
        "notes": [
            float_note(lab),
            "Entries are loss increases in nats. Layers that no norm feeds are rounded per token under OutlierTune.",
        ],
    }
