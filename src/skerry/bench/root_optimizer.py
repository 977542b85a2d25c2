"""ROOT beside Muon and AdamW: how exact, how dear and how robust each is (arXiv 2511.20626).

Exactness on random and on live matrices; seconds of a step at 100 million parameters beside its matrix products; a byte
model and a quadratic with and without heavy-tailed gradients.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SIZES = {
    "full": {
        "shapes": (
            *((64, 64), (64, 128), (64, 256), (256, 256), (256, 512)),
            *((256, 1024), (256, 2048), (512, 512), (512, 2048)),
        ),
        "cost": {"dim": 768, "n_layers": 12, "vocabulary": 10_000, "repeats": 2},
        "seeds": 3,
        "steps": 200,
        "quadratic": 300,
    },
    "quick": {
        "shapes": ((64, 64), (64, 128)),
        "cost": {"dim": 128, "n_layers": 2, "vocabulary": 256, "repeats": 1},
        "seeds": 1,
        "steps": 25,
        "quadratic": 60,
    },
}  # fmt: skip
QUADRATIC = 10


def run(quick: bool, data: Path, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    from joblib import Parallel, delayed

    from skerry.bench import optimizers as parts

    size = SIZES["quick" if quick else "full"]
    text = parts.read_text(data)
    progress("exactness of the Newton-Schulz steps")
    exact = parts.precision(size["shapes"], seed)
    n_params, cost = parts.cost(**size["cost"], progress=progress)

    jobs = [
        (name, noise, s)
        for noise in parts.NOISES
        for name in parts.OPTIMIZERS
        for s in range(seed, seed + size["seeds"])
    ]
    progress(f"{len(jobs)} byte models of {size['steps']} steps")
    results = Parallel(n_jobs=1 if quick else 2)(
        delayed(parts.train_bytes)(text, name, noise, s, size["steps"]) for name, noise, s in jobs
    )
    losses: dict[tuple[str, str], list[float]] = defaultdict(list)
    seconds: dict[str, list[float]] = defaultdict(list)
    for (name, noise, _), found in zip(jobs, results, strict=True):
        losses[name, noise].append(found["loss"])
        seconds[name].append(found["seconds"])
    live = parts.live_precision(next(r["momenta"] for j, r in zip(jobs, results, strict=True) if j[0] == "Muon"))
    progress("the quadratic")
    bowl = {
        (n, o): parts.quadratic(n, o, QUADRATIC, size["quadratic"]) for n in parts.OPTIMIZERS for o in (False, True)
    }

    rows = []
    for name in parts.OPTIMIZERS:
        row: dict[str, Any] = {"optimizer": name}
        for noise in parts.NOISES:
            row[noise] = float(np.mean(losses[name, noise]))
            row[f"{noise}, sd"] = float(np.std(losses[name, noise], ddof=1)) if size["seeds"] > 1 else None
        row["ms per step"] = 1e3 * float(np.mean(seconds[name])) / size["steps"]
        rows.append(row)

    def ahead(noise: str) -> tuple[float, int]:
        gaps = np.subtract(losses["Muon", noise], losses["ROOT", noise])
        return float(gaps.mean()), int((gaps > 0).sum())

    gaps = {noise: ahead(noise) for noise in parts.NOISES}
    ratio = {r["step"]: r["to the products"] for r in cost if r["to the products"]}
    over = {r["step"]: r["to AdamW, fused"] for r in cost}
    bowls = {k: float(np.mean(v)) for k, v in bowl.items()}
    wins = sum(a < b for a, b in zip(bowl["ROOT", True], bowl["Muon", True], strict=True))
    gain = [r["Muon"] / r["fitted"] for r in exact]
    told = "; ".join(
        f"{noise}: ROOT {'better' if g > 0 else 'worse'} than Muon by {abs(g):.3f} nats, "
        f"ahead in {k} of {size['seeds']}"
        for noise, (g, k) in gaps.items()
    )
    return {
        "title": "ROOT: an orthogonalizing optimizer for heavy-tailed gradients",
        "claim": (
            f"Byte model, {size['steps']} steps, {size['seeds']} seed(s). {told}. Quadratic with 1 % outliers: ROOT "
            f"{bowls['ROOT', True]:.4f}, Muon {bowls['Muon', True]:.4f}, ROOT ahead in {wins} of {QUADRATIC} draws; "
            f"without {bowls['ROOT', False]:.4f} and {bowls['Muon', False]:.4f}. Fitted coefficients cut the squared "
            f"error of the singular values {min(gain):.3g} to {max(gain):.3g} times. A step at {n_params / 1e6:.0f} "
            f"million parameters costs {ratio['Muon']:.2f} (Muon) and {ratio['ROOT']:.2f} (ROOT) of its bare "
            f"matrix products, {over['Muon']:.0f} and {over['ROOT']:.0f} fused AdamW steps on this processor."
        ),
        "table": rows,
        "tables": {
            "Mean squared distance of singular values from 1, float32, unseen Gaussian matrices": exact,
            "The same on the last momenta of a Muon run": live,
            f"Seconds of a step, {n_params / 1e6:.1f} million parameters": cost,
            f"Quadratic, (W - W*)^2 / 2 after {size['quadratic']} steps": [
                {"optimizer": n, "clean": bowls[n, False], "1 % outliers": bowls[n, True]} for n in parts.OPTIMIZERS
            ],
            "Expectations": [
                {"expected": t, "measured": v, "met": "yes" if met else "no"}
                for t, v, met in (
                    ("ROOT ahead of Muon with Student-t entries (nats)", gaps["Student-t entries"][0],
                     gaps["Student-t entries"][0] > 0),
                    ("ROOT ahead of Muon with spoilt batches (nats)", gaps["spoilt batches"][0],
                     gaps["spoilt batches"][0] > 0),
                    ("ROOT equal to Muon without noise: within 0.03 nats", gaps["clean"][0],
                     abs(gaps["clean"][0]) <= 0.03),
                    ("Muon within 1.3 of its matrix products", ratio["Muon"], ratio["Muon"] <= 1.3),
                    ("ROOT within 1.3 of its matrix products", ratio["ROOT"], ratio["ROOT"] <= 1.3),
                    *((f"{r['step']} within 1.3 of the fewest products", r["to the fewest"], r["to the fewest"] <= 1.3)
                      for r in cost if r["to the fewest"]),
                    ("ROOT ahead on the quadratic with outliers in 9 of 10 draws", wins, wins >= 9),
                )
            ],
        },
        "notes": [
            "Byte model: 2 layers of 64, 16 x 64 bytes of WikiText-2 a step, one learning rate (3e-3, cosine) and "
            "decay for all, gradients clipped to norm 1 after the noise; loss on 12 batches of held-out text, in nats. "
            "Student-t entries: t with 1.5 degrees of freedom, ten times the gradient's size, on 1 % of the entries of "
            "every gradient. Spoilt batches: one in fifty with shuffled targets and twentyfold loss.",
            "'Muon, fitted coefficients' and 'Muon, clamp' are ROOT with one of its two parts.",
            "A step's cost does not grow with the batch: what Muon adds to a training step shrinks as the batch grows. "
            "AdamW's part of a step (embeddings, head, vectors) is within the Muon and ROOT figures. The bare products "
            "are those of the published order of operations; wide matrices go over their Gram matrix: fewer products.",
            "One triple for all is fitted to the shapes of the table together. Triples fitted to random matrices "
            "assume a narrow spectrum; live momenta are nearer to low rank, and a table shows what that costs.",
            "The authors' scale (1B parameters, FineWeb-Edu) and their vision transformer on CIFAR-10 are not part "
            "of it.",
        ],
    }  # fmt: skip
