"""AdaDim beside its two directions, GPTQ and AWQ: errors and choices of layers, loss of a small model (2309.15531)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from skerry.bench.quant_rows import by_name, float_note, make_lab, rows_of
from skerry.bench.weight_solvers import Layer, OwnOutput, layers_of, relative_errors
from skerry.quant.numerics import AffineGrid
from skerry.quant.recipe import Recipe, parse_bits
from skerry.quant.solvers import AWQ, GPTQ, RTN, AdaDim

BITS = ("w4a16", "w3a16", "w2a16")
OWN_CHOICE = "AdaDim over GPTQ, chosen by GPTQ"


def run(quick: bool, data: Path, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    lab = make_lab(data, quick=quick, progress=progress)
    size = 16 if quick else 32
    bits = BITS[1:] if quick else BITS
    cases = [
        ("RTN, per-OC", _recipe(RTN(), size, 1)),
        ("RTN, per-IC", _recipe(RTN(), size, 0)),
        ("AdaDim over RTN", _recipe(AdaDim(), size, 1)),
        ("AdaDim over RTN, own output", _recipe(OwnOutput(AdaDim()), size, 1)),
        ("AWQ, per-OC", _recipe(AWQ(), size, 1)),
        ("GPTQ, per-OC", _recipe(GPTQ(), size, 1)),
        ("GPTQ, per-IC", _recipe(GPTQ(), size, 0)),
        ("AdaDim over GPTQ", _recipe(AdaDim(GPTQ()), size, 1)),
        ("AdaDim over GPTQ, own output of GPTQ", _recipe(OwnOutput(AdaDim(GPTQ(), choose="base")), size, 1)),
    ]
    losses = rows_of(lab, cases, bits, progress)
    at = by_name(losses)
    tables: dict[str, list[dict[str, Any]]] = {}
    found: dict[str, list[dict[str, Any]]] = {}
    for which, model in lab.models.items():
        layers = layers_of(model, lab.calibration[: 1 if quick else None])
        found[which] = decisions(layers, AffineGrid(3, symmetric=False, group_size=size), progress)
        tables[f"{which}, 3 bits: who chooses what"] = by_kind(found[which])
        tables[f"{which}, 3 bits: every layer"] = found[which]
    worst = max(r["AdaDim"] / min(r["per-OC"], r["per-IC"]) for rows in found.values() for r in rows)
    worst_gptq = max(
        r["AdaDim over GPTQ"] / min(r["GPTQ, per-OC"], r["GPTQ, per-IC"]) for rows in found.values() for r in rows
    )
    own_choice = max(r[OWN_CHOICE] / min(r["GPTQ, per-OC"], r["GPTQ, per-IC"]) for rows in found.values() for r in rows)
    score = {
        which: float(spearmanr([r["outlier score"] for r in rows], [r["per-IC"] / r["per-OC"] for r in rows])[0])
        for which, rows in found.items()
    }
    oc, ic, ada = (at[k] for k in ("RTN, per-OC", "RTN, per-IC", "AdaDim over RTN"))
    fed, fed_ada = at["GPTQ, per-OC"], at["AdaDim over GPTQ"]
    return {
        "title": "AdaDim: groups along the outputs or along the inputs",
        "claim": (
            f"RTN at 3 bits, groups of {size}: planted outliers cost +{oc['planted w3a16']:.4f} nats per-OC, "
            f"+{ic['planted w3a16']:.4f} per-IC, +{ada['planted w3a16']:.4f} adaptive; natural model "
            f"+{oc['natural w3a16']:.4f}, +{ic['natural w3a16']:.4f}, +{ada['natural w3a16']:.4f}. GPTQ per-OC "
            f"+{fed['planted w3a16']:.4f} (planted), +{fed['natural w3a16']:.4f} (natural); adaptive "
            f"+{fed_ada['planted w3a16']:.4f}, +{fed_ada['natural w3a16']:.4f}. A layer's own error is at most "
            f"{worst:.3f} of the better direction's (RTN), {own_choice:.3f} (GPTQ, chosen by GPTQ's errors), "
            f"{worst_gptq:.3f} (GPTQ, chosen by RTN's, the published rule)."
        ),
        "table": losses,
        "tables": tables,
        "notes": [
            float_note(lab),
            "First table: increase of the loss in nats, weights only, asymmetric grids whose range contains 0; every "
            "block is calibrated on the outputs of the float blocks before it, as published. 'AdaDim' decides by "
            "the error of attention or of the layer's own output for all others (this architecture has no gated MLP).",
            "Planting multiplies three channels behind every norm by 25 and divides the readers' columns by as much: "
            "sensitive columns that are small in their rows, the paper's case.",
            "Rank correlation of a layer's outlier score (largest over median mean square of its inputs) with the "
            f"ratio of errors per-IC / per-OC: {score['natural']:.2f} natural, {score['planted']:.2f} planted.",
            "'own output of GPTQ' compares what GPTQ makes of both directions, at twice the time; the published rule "
            "compares roundings to nearest.",
        ],
    }


def decisions(layers: Sequence[Layer], grid: AffineGrid, progress: Callable[[str], None]) -> list[dict[str, Any]]:
    """Return a row a layer: errors of both directions, AdaDim's and its choice, over RTN and over GPTQ."""
    along = {"per-OC": grid, "per-IC": AffineGrid(grid.bits, symmetric=False, group_size=grid.group_size, axis=0)}
    solvers: dict[str, tuple[Any, AffineGrid]] = {k: (RTN(), g) for k, g in along.items()}
    solvers |= {"AdaDim": (AdaDim(), grid)}
    solvers |= {f"GPTQ, {k}": (GPTQ(), g) for k, g in along.items()}
    solvers |= {"AdaDim over GPTQ": (AdaDim(GPTQ()), grid), OWN_CHOICE: (AdaDim(GPTQ(), choose="base"), grid)}
    solvers |= {"AWQ": (AWQ(), grid)}
    rows = []
    for row in relative_errors(layers, solvers, progress):
        info = row["AdaDim, result"].info
        rows.append(
            {"layer": row["layer"]}
            | {k: row[k] for k in solvers}
            | {
                "chosen": info["dim"],
                "outlier score": info["outlier_score"],
                "share of error in the top 1 % columns": info["column_concentration"],
                "stored bits": row["AdaDim, bits"],
            }
        )
    return rows


def by_kind(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row a kind of layer (the last part of its name): how many chose "ic", and mean errors."""
    kinds = list(dict.fromkeys(r["layer"].rpartition(".")[2] for r in rows))
    table = []
    for kind in kinds:
        own = [r for r in rows if r["layer"].rpartition(".")[2] == kind]
        table.append(
            {"layers": kind, "chose ic": f"{sum(r['chosen'] == 'ic' for r in own)} of {len(own)}"}
            | {k: float(np.mean([r[k] for r in own])) for k in ("per-OC", "per-IC", "AdaDim", "outlier score")}
        )
    return table


def _recipe(solver: Any, size: int, axis: int) -> Callable[[str], Recipe]:
    def make(bits: str) -> Recipe:
        grid = AffineGrid(parse_bits(bits).weight, symmetric=False, group_size=size, axis=axis)
        return Recipe("adadim", grid, solver, propagate="float")

    return make
