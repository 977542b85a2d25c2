"""OliVe on a small language model: weights and activations in outlier-victim pairs (arXiv 2304.07493)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from skerry.bench.quant_rows import by_name, float_note, make_lab, rows_of
from skerry.quant.formats import OutlierVictim
from skerry.quant.numerics import AffineGrid
from skerry.quant.recipe import Recipe, parse_bits
from skerry.quant.recipes import make_recipe
from skerry.quant.recipes.common import inputs
from skerry.quant.solvers import RTN
from skerry.quant.statistics import LayerStatistics

BITS = ("w4a16", "w4a4")


def _clipped(bits: str) -> Recipe:
    widths = parse_bits(bits)
    return Recipe("clip", AffineGrid(widths.weight), RTN(clip=True), inputs(widths, static=True))


def run(quick: bool, data: Path, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    lab = make_lab(data, quick=quick, progress=progress)
    cases = [
        ("int4, min-max", lambda bits: Recipe("rtn", AffineGrid(4), None, inputs(parse_bits(bits), static=True))),
        ("int4, best clip of weights", _clipped),
        ("OliVe int4", lambda bits: make_recipe("olive", bits, types=("int",))),
        ("OliVe int4 or flint4", lambda bits: make_recipe("olive", bits)),
    ]
    rows = rows_of(lab, cases, BITS, progress)
    at = by_name(rows)
    mine, plain = at["OliVe int4 or flint4"], at["int4, min-max"]
    return {
        "title": "OliVe: four bits with room for outliers",
        "claim": (
            f"W4: loss +{mine['natural w4a16']:.4f} against +{plain['natural w4a16']:.4f} by min-max (planted: "
            f"+{mine['planted w4a16']:.3f}, +{plain['planted w4a16']:.3f}); W4A4, one static scale a tensor: "
            f"+{mine['natural w4a4']:.3f} against +{plain['natural w4a4']:.3f} (planted: +{mine['planted w4a4']:.3f}, "
            f"+{plain['planted w4a4']:.3f})."
        ),
        "table": rows,
        "tables": {"Relative squared error of one weight, in percent": _tails(seed)},
        "notes": [float_note(lab), "Entries of the first table are loss increases in nats; static activation scales."],
    }


def _tails(seed: int) -> list[dict[str, Any]]:
    """Rounding errors of synthetic weights, from normal to heavy tails."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(256, 512, generator=generator)
    rows = []
    for label, W in (
        ("normal", normal),
        ("Student t, 5 degrees", _student(normal, 5, generator)),
        ("Student t, 3 degrees", _student(normal, 3, generator)),
    ):
        scores = {
            "int4, min-max": AffineGrid(4).round(W),
            "int4, best clip": RTN(clip=True).solve(W, LayerStatistics(), AffineGrid(4)).dense(),
            "OliVe": OutlierVictim().quantize(W).dequantize(),
        }
        rows.append(
            {"weight": label} | {k: 100 * float((v - W).norm() ** 2 / W.norm() ** 2) for k, v in scores.items()}
        )
    return rows


def _student(normal: torch.Tensor, degrees: int, generator: torch.Generator) -> torch.Tensor:
    squares = torch.randn(degrees, *normal.shape, generator=generator).square().sum(0)
    return normal / (squares / degrees).sqrt()
