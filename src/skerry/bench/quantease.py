"""QuantEase beside RTN, AWQ, GPTQ and SpQR: layers' errors, bits, seconds, a small model's loss (arXiv 2309.01885)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from skerry.bench.quant_rows import by_name, float_note, make_lab, rows_of
from skerry.bench.train_tables import expectations, expected
from skerry.bench.weight_solvers import (
    Layer,
    SpQRAtShare,
    cpu_seconds,
    layers_of,
    made_up_layer,
    relative_errors,
    wide_layer,
)
from skerry.quant.numerics import AffineGrid
from skerry.quant.recipe import Recipe, parse_bits
from skerry.quant.solvers import AWQ, GPTQ, RTN, QuantEase, SpQR

PUBLISHED = QuantEase(sweeps=30, init="weight", relax=True)
SOLVERS = {
    "RTN": RTN(),
    "AWQ": AWQ(),
    "GPTQ": GPTQ(),
    "QuantEase, 30 sweeps from W": PUBLISHED,
    "QuantEase, 5 sweeps from GPTQ": QuantEase(),
    "QuantEase, 1 % outliers": QuantEase(sweeps=30, init="weight", relax=True, outliers=0.01),
    "QuantEase from GPTQ, 1 % outliers": QuantEase(sweeps=30, outliers=0.01),
    "QuantEase from GPTQ, 1 % outliers, plain": QuantEase(sweeps=30, outliers=0.01, scaled=False),
    "QuantEase, 2 % columns": QuantEase(sweeps=30, init="weight", relax=True, outliers=0.02, structured=True),
    "SpQR, 1 % outliers": SpQRAtShare(0.01, SpQR(damp=0.01, scale_bits=16)),
}
SHAPES = ((1024, 1024), (4096, 1024))


def run(quick: bool, data: Path, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    lab = make_lab(data, quick=quick, progress=progress)
    grids = {bits: AffineGrid(bits, symmetric=False) for bits in (4, 3, 2)}

    progress("made-up layers")
    made_up = _made_up(range(seed, seed + (3 if quick else 20)), progress)
    tables = {"Made-up layers (32 x 48, eight weights x 10), 3 bits: mean error over that of a weight of 0": made_up}
    counts: list[dict[str, Any]] = []
    for which, model in lab.models.items():
        layers = layers_of(model, lab.calibration[: 1 if quick else None])
        for bits in (3, 2) if quick else (4, 3, 2):
            rows = relative_errors(layers, {k: (s, grids[bits]) for k, s in SOLVERS.items()}, progress)
            counts.append({"model": which, "bits": bits} | summary(rows))
            if bits == 3:
                tables[f"{which}, 3 bits: error of every layer over that of a weight of 0"] = _plain(rows)
                tables[f"{which}, 3 bits: geometric mean over the layers"] = _means(rows)
                small_groups = _groups(layers, progress)
                tables[f"{which}, SpQR's groups of 16 beside per-row grids, 3 bits"] = small_groups
    tables["Layers: who is below whom"] = counts

    progress("seconds")
    times = seconds(((256, 256),) if quick else SHAPES, seed)
    tables["Seconds of one layer, 3 bits"] = times

    losses = rows_of(lab, [(k, _recipe(s)) for k, s in SOLVERS.items()], ("w3a16", "w2a16"), progress)
    at = by_name(losses)
    started, gptq = at["QuantEase, 5 sweeps from GPTQ"], at["GPTQ"]
    tables["Expectations"] = expectations(met(counts, times, losses))
    never = all(c["from GPTQ at or under GPTQ"] == c["layers"] for c in counts)
    apart, from_gptq = (sum(c[k] for c in counts) for k in ("1 % outliers under SpQR", "the same from GPTQ"))
    ratio = [t["to GPTQ"] for t in times if t["solver"] == "QuantEase, 5 sweeps from GPTQ"]
    total = sum(c["layers"] for c in counts)
    from_w = sum(c["30 sweeps from W under GPTQ"] for c in counts)
    return {
        "title": "QuantEase: coordinate descent on the layer's error",
        "claim": (
            f"From GPTQ's result it is {'never' if never else 'sometimes'} above GPTQ over {total} cases (layer, bits, "
            f"model); from the float weight it is below GPTQ in {from_w}. With 1 % of the weights apart it is "
            f"below SpQR with as many in {from_gptq} (from the float weight: {apart}). Processor "
            f"seconds: {', '.join(f'{r:.2f}' for r in ratio)} of GPTQ's. "
            f"Loss at 3 bits: +{started['natural w3a16']:.4f} against GPTQ's +{gptq['natural w3a16']:.4f} (planted "
            f"outliers: +{started['planted w3a16']:.4f}, +{gptq['planted w3a16']:.4f})."
        ),
        "table": losses,
        "tables": tables,
        "notes": [
            float_note(lab),
            "First table: increase of the loss in nats, weights only, one asymmetric grid a row; groups of layers "
            "solved in the order of the block, each on inputs that passed the quantized ones before it.",
            "Stored bits count scales, zero points, 16-bit values of kept weights and their places. SpQR has its "
            "threshold from bisection, real zero points, and here one bfloat16 grid a row; its published form has "
            "groups of 16 with second-level grids of 3 bits, a table of its own.",
            "QuantEase's ranges set kept weights aside and trim the tails of the rest by as much; the published code "
            "trims only, which in short rows trims nothing. Kept weights are chosen and moved in the metric of the "
            "columns' activity; 'plain' is the paper's step 1 / L and largest entries.",
        ],
    }  # fmt: skip


def met(
    counts: Sequence[dict[str, Any]], times: Sequence[dict[str, Any]], losses: Sequence[dict[str, Any]]
) -> list[tuple[str, float | str, bool | None]]:
    """Return what the method promises, in layers, seconds and loss, and whether it was kept."""
    total = sum(c["layers"] for c in counts)
    under, apart = (sum(c[k] for c in counts) for k in ("from GPTQ at or under GPTQ", "the same from GPTQ"))
    ratio = max(t["to GPTQ"] for t in times if t["solver"] == "QuantEase, 5 sweeps from GPTQ")
    ours, spqr = (by_name(list(losses))[k] for k in ("QuantEase from GPTQ, 1 % outliers", "SpQR, 1 % outliers"))
    found: list[tuple[str, float | str, bool | None]] = [
        ("from GPTQ at or under GPTQ, every layer", f"{under} of {total}", under == total),
        ("descent monotone", "yes" if (falls := all(c["descent monotone"] == "yes" for c in counts)) else "no", falls),
        expected("processor seconds over GPTQ's, at most 2", ratio, lambda r: r <= 2.0),
        ("1 % outliers from GPTQ under SpQR, nine layers of ten", f"{apart} of {total}", apart >= 0.9 * total),
    ]
    for key in [k for k in ours if k.endswith("a16")]:
        gap = ours[key] - spqr[key]
        found.append(expected(f"{key}: loss with 1 % outliers less SpQR's, below 0", gap, lambda g: g < 0.0))
    return found


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return in how many layers one solver is below another, and whether every descent was monotone."""

    def below(a: str, b: str) -> int:
        return sum(r[a] <= r[b] * (1 + 1e-9) for r in rows)

    paths = [r["QuantEase, 5 sweeps from GPTQ, result"] for r in rows]
    falling = all(b <= a * (1 + 1e-9) for p in paths for a, b in pairwise([p.info["start"], *p.trace]))
    ours = "QuantEase, 5 sweeps from GPTQ"
    return {
        "layers": len(rows),
        "from GPTQ at or under GPTQ": below(ours, "GPTQ"),
        "mean share of GPTQ's error": float(np.exp(np.mean([np.log(r[ours] / r["GPTQ"]) for r in rows]))),
        "30 sweeps from W under GPTQ": below("QuantEase, 30 sweeps from W", "GPTQ"),
        "1 % outliers under SpQR": below("QuantEase, 1 % outliers", "SpQR, 1 % outliers"),
        "the same from GPTQ": below("QuantEase from GPTQ, 1 % outliers", "SpQR, 1 % outliers"),
        "descent monotone": "yes" if falling else "no",
    }


def seconds(shapes: Sequence[tuple[int, int]], seed: int) -> list[dict[str, Any]]:
    """Return processor and wall seconds of GPTQ and QuantEase on layers of these shapes."""
    rows = []
    solvers = {k: SOLVERS[k] for k in ("RTN", "GPTQ", "QuantEase, 5 sweeps from GPTQ", "QuantEase, 30 sweeps from W")}
    for out, inputs in shapes:
        layer, base = wide_layer(out, inputs, seed), 0.0
        for label, solver in solvers.items():
            processor, wall = cpu_seconds(solver, layer, AffineGrid(3, symmetric=False))
            base = processor if label == "GPTQ" else base
            row = {"layer": layer[0], "solver": label, "processor s": processor, "wall s": wall}
            rows.append(row | {"to GPTQ": processor / base if base else float("nan")})
    return rows


def _made_up(seeds: range, progress: Callable[[str], None]) -> list[dict[str, Any]]:
    grid = AffineGrid(3, symmetric=False)
    solvers = SOLVERS | {
        "QuantEase, 2 sweeps from GPTQ": QuantEase(sweeps=2),
        "QuantEase, 5 % outliers": QuantEase(sweeps=30, init="weight", relax=True, outliers=0.05),
        "QuantEase, 4 % columns": QuantEase(sweeps=30, init="weight", relax=True, outliers=0.04, structured=True),
    }
    layers = [made_up_layer(32, 48, 300, s, outliers=8) for s in seeds]
    rows = relative_errors(layers, {k: (s, grid) for k, s in solvers.items()}, progress)
    return [{"solver": k, "error": float(np.mean([r[k] for r in rows]))} for k in solvers]


def _groups(layers: list[Layer], progress: Callable[[str], None]) -> list[dict[str, Any]]:
    """Published SpQR (groups of 16) beside QuantEase without groups at no more bits."""
    row, group = AffineGrid(3, symmetric=False), AffineGrid(3, symmetric=False, group_size=16)
    solvers = {
        "SpQR, groups of 16, 1 % outliers": (SpQRAtShare(0.01, SpQR(damp=0.01)), group),
        "QuantEase, rows, 1 % outliers": (SOLVERS["QuantEase from GPTQ, 1 % outliers"], row),
        "QuantEase, rows, 3 % outliers": (QuantEase(sweeps=30, outliers=0.03), row),
        "QuantEase, groups of 64": (QuantEase(), AffineGrid(3, symmetric=False, group_size=64, scale_dtype="float16")),
    }
    return _means(relative_errors(layers, solvers, progress))


def _means(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    names = [k for k in rows[0] if k != "layer" and not k.endswith((", bits", ", result"))]
    return [
        {
            "solver": k,
            "error": float(np.exp(np.mean([np.log(r[k]) for r in rows]))),
            "stored bits": float(np.mean([r[f"{k}, bits"] for r in rows])),
        }
        for k in names
    ]


def _plain(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if not k.endswith((", bits", ", result"))} for r in rows]


def _recipe(solver: Any) -> Callable[[str], Recipe]:
    def make(bits: str) -> Recipe:
        grid = AffineGrid(parse_bits(bits).weight, symmetric=False)
        return Recipe("quantease", grid, solver, sequential="group")

    return make
