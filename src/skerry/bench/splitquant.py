"""SplitQuant on a small language model: weight-only, without data, at equal width and at equal storage (2501.12428)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from skerry.bench.quant_rows import by_name, float_note, make_lab, rows_of
from skerry.quant.numerics import AffineGrid
from skerry.quant.recipe import Recipe, parse_bits
from skerry.quant.recipes import make_recipe

BITS = ("w2a16", "w3a16", "w4a16")


def _plain(group_size: int, more: int = 0) -> Callable[[str], Recipe]:
    return lambda bits: Recipe(
        "rtn", AffineGrid(parse_bits(bits).weight + more, symmetric=False, group_size=group_size)
    )


def run(quick: bool, data: Path, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    lab = make_lab(data, quick=quick, progress=progress)
    cases = [
        ("per tensor", _plain(0)),
        ("per tensor, split in 3", lambda bits: make_recipe("splitquant", bits)),
        ("per tensor, two bits more", _plain(0, 2)),
        ("per row", _plain(-1)),
        ("per row, split in 3", lambda bits: make_recipe("splitquant", bits, quantizer="row")),
        ("per row, two bits more", _plain(-1, 2)),
        ("groups of 32", _plain(32)),
    ]
    rows = rows_of(lab, cases, BITS, progress)
    at = by_name(rows)
    plain, split, more = at["per tensor"], at["per tensor, split in 3"], at["per tensor, two bits more"]
    wins = [f"{w} {b}" for w in ("natural", "planted") for b in BITS if split[f"{w} {b}"] < more[f"{w} {b}"]]
    return {
        "title": "SplitQuant: three value ranges of a weight",
        "claim": (
            f"One scale a tensor, 3 bits: loss +{plain['natural w3a16']:.3f} -> +{split['natural w3a16']:.3f} by the "
            f"split (planted: +{plain['planted w3a16']:.3f} -> +{split['planted w3a16']:.3f}). At equal storage "
            f"(two bits more for a plain grid) the split wins in {len(wins)} of 6 cases"
            + (f" ({', '.join(wins)})." if wins else ".")
        ),
        "table": rows,
        "notes": [
            float_note(lab),
            "Entries are loss increases in nats. A split weight stores its code and two bits that name its part.",
        ],
    }
