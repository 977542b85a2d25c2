"""Outlier Suppression+ on a small language model, natural and with planted outliers (arXiv 2304.09145).

Static per-tensor inputs throughout, the hard setting: min-max rounding, SmoothQuant, OS+ without and with its shift.
"""

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
        ("min-max", lambda bits: make_recipe("rtn", bits, static=True)),
        ("SmoothQuant 0.5", lambda bits: make_recipe("smoothquant", bits, static=True)),
        ("OS+ without shift", lambda bits: make_recipe("os-plus", bits, shift=False, n_grid=grid)),
        ("OS+", lambda bits: make_recipe("os-plus", bits, n_grid=grid)),
    ]
    rows = rows_of(lab, cases, BITS, progress)
    at = by_name(rows)
    worst = max(abs(at["OS+"][f"natural {b}"] - at["OS+"][f"planted {b}"]) for b in BITS)
    return {
        "title": "Outlier Suppression+: static activations of a small language model",
        "claim": (
            f"Planted outliers, W6A6: loss +{at['OS+']['planted w6a6']:.3f} with OS+, "
            f"+{at['SmoothQuant 0.5']['planted w6a6']:.3f} with SmoothQuant, +{at['min-max']['planted w6a6']:.3f} by "
            f"min-max; W4A4: +{at['OS+']['planted w4a4']:.3f}, +{at['SmoothQuant 0.5']['planted w4a4']:.3f}, "
            f"+{at['min-max']['planted w4a4']:.3f}. OS+ on natural and planted model differs by at most {worst:.3f}."
        ),
        "table": rows,
        "notes": [float_note(lab), "Entries are loss increases in nats; weights of one scale a row."],
    }
