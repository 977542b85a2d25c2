"""Seconds of a step of Muon and ROOT at 100 million parameters, beside AdamW and beside their bare matrix products.

The section on cost of the study of ROOT (arXiv 2511.20626), by itself: twelve layers of GPT-2 small's width.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from skerry.core.errors import ParameterError

SIZES = {
    "full": {"dim": 768, "n_layers": 12, "vocabulary": 10_000},
    "quick": {"dim": 128, "n_layers": 2, "vocabulary": 256},
}


def run(quick: bool, data: Path, seed: int, progress: Callable[[str], None], repeats: int = 2) -> dict[str, Any]:
    import torch

    from skerry.bench import optimizers as parts

    if int(repeats) < 1:
        raise ParameterError(f"repeats is {repeats}: give 1 or more")
    size = SIZES["quick" if quick else "full"]
    n, rows = parts.cost(**size, repeats=int(repeats), progress=progress)
    by = {row["step"]: row for row in rows}
    muon, root = by["Muon"], by["ROOT"]
    return {
        "title": "What a step of an orthogonalizing optimizer costs",
        "claim": (
            f"{n / 1e6:.1f} million parameters, {torch.get_num_threads()} thread(s), float32: a step of Muon takes "
            f"{muon['to the products']:.2f} and one of ROOT {root['to the products']:.2f} of the published matrix "
            f"products of five Newton-Schulz steps, {muon['to the fewest']:.2f} and {root['to the fewest']:.2f} of the "
            f"fewest products that give the same; {muon['to AdamW, fused']:.0f} and {root['to AdamW, fused']:.0f} "
            "fused AdamW steps."
        ),
        "table": rows,
        "tables": {
            "Expectations": [
                {"expected": f"{name} within 1.3 of {what}", "measured": row[key], "met": "yes" if row[key] <= 1.3
                 else "no"}
                for name, row in (("Muon", muon), ("ROOT", root))
                for what, key in (("the published products", "to the products"), ("the fewest", "to the fewest"))
            ]
        },
        "notes": [
            f"A decoder of {size['n_layers']} layers of width {size['dim']}, {size['vocabulary']} words, embedding and "
            "head not tied; random gradients. All of a step is counted: momentum, decay, ROOT's quantile and clamp, "
            "the AdamW part for embeddings, head and vectors.",
            "Products: those of five steps as published, one matrix after another into buffers made beforehand. "
            "Fewest: over the Gram matrix where a matrix is so wide that these are fewer, as the optimizer does.",
            "Steps are taken in turn, so that a busy machine slows all of them; CPU seconds, the least of the rounds.",
            "A step's cost does not grow with the batch: what it adds to training shrinks as the batch grows.",
        ],
    }  # fmt: skip
