"""Quantization meets dLLMs (arXiv 2508.14896) in laboratory form: which recipes hold for diffusion language models.

Four axes: bits, method, task category, model type. The models are small masked-diffusion language models of
characters; the census of their outliers stands beside an autoregressive twin's, and a third model has massive outliers
planted where the paper finds them, at the input of every MLP's second layer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from skerry.bench import dllm_grid as grid
from skerry.bench.dllm_models import Settings, plant_massive, text_windows, train_model
from skerry.bench.dllm_tasks import TASKS, questions, score_written, shakespeare
from skerry.core.files import cache_folder
from skerry.deep.masked_diffusion import MaskedDiffusionLM, corrupt

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
QUICK = Settings(width=32, blocks=2, heads=2, steps=8, tuning_steps=3, twin_steps=4, batch=8)
LOUD = tuple(c for c in (*grid.PAPER_CONFIGS, *grid.ROUNDING) if c.bits in ("w8a8", "w4a4"))


def run(
    quick: bool, data: Path, seed: int, progress: Callable[[str], None], seeds: int = 3, resume: bool = True
) -> dict[str, Any]:
    torch.set_num_threads(1)
    settings = QUICK if quick else Settings(seed=seed)
    sizes = grid.QUICK if quick else grid.Sizes()
    train, held = shakespeare(data)
    base, instruct, causal = (train_model(data, kind, settings, progress) for kind in ("base", "instruct", "causal"))
    massive = plant_massive(base, text_windows(train, 8, 77))
    study = grid.StudyGrid(
        {"base": base, "instruct": instruct, "massive": massive},
        train,
        held,
        (*grid.PAPER_CONFIGS, *grid.ROUNDING, *grid.MASKED_CONFIGS),
        seeds=range(seed, seed + (1 if quick else int(seeds))),
        sizes=sizes,
        only={"massive": LOUD},
        cache=cache_folder() / ("dllm-cells-quick.jsonl" if quick else "dllm-cells.jsonl"),
        progress=progress,
    )
    cells = study.run(resume=str(resume).lower() not in ("false", "0", "no"))
    progress("census of outliers")
    text = text_windows(held, 8 if quick else 64, 78)
    census = [
        *(row for name in ("base", "instruct", "massive") for row in census_rows(name, study.models[name], text)),
        *census_rows("causal", causal, text, shares=(0.0,)),
    ]
    found = tables(cells, census)
    found["tables"]["Float models: answers without a wrong character"] = [
        {"model": name}
        | {task: _exact(study.models[name], task, sizes.questions, seed) for task in TASKS if task != "cloze"}
        for name in ("base", "instruct")
    ]
    return found | {
        "file": "quantized-dllm",  # as its paper is called in the catalogue
        "cells": [json.dumps(c, sort_keys=True) for c in cells],
        "census": [json.dumps(c, sort_keys=True) for c in census],
        "notes": _notes(cells, sizes, settings),
    }


def _exact(model: MaskedDiffusionLM, task: str, n: int, seed: int) -> float:
    return score_written(model, questions(task, n, 6000 + seed), exact=True)


def census_rows(
    name: str, model: MaskedDiffusionLM, text: torch.Tensor, *, shares: tuple[float, ...] = SHARES
) -> list[dict[str, Any]]:
    """Return the census of a model's layers for every share t of masked characters, as plain rows."""
    from skerry.quant.diagnose import input_census

    layers = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"]
    layers = [n for n in layers if not n.endswith(("k_proj", "v_proj", "up_proj"))]  # they read what another reads
    rows = []
    for t in shares:
        given = corrupt(text, model.mask_id, t, generator=torch.Generator().manual_seed(79))[0]
        for found in input_census(model, list(given.split(16)), layers=layers):
            kind = found.layer.rsplit(".", 1)[-1]
            row = {"model": name, "linear": kind, "t": t} | found.as_row()
            rows.append(row | {"token_ratio": found.token_ratio, "channel_ratio": found.channel_ratio})
    return [{k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in row.items()} for row in rows]


def tables(cells: list[dict[str, Any]], census: list[dict[str, Any]]) -> dict[str, Any]:
    """Return title, claim and tables made of cells and census alone: a report can be made again from its JSON."""
    rows = _grid_rows(cells)
    checks = expectations(cells, census)
    at = {(r["model"], r["method"]): r["mean drop, %"] for r in rows}
    four = ", ".join(f"{m} {at['base', f'{m} w4a4']:.1f}" for m in ("smoothquant", "quarot", "duquant"))
    eight = ", ".join(f"{m} {at['base', f'{m} w8a8']:.1f}" for m in ("smoothquant", "quarot", "duquant"))
    weights = ", ".join(f"{m} {at['base', f'{m} w{b}a16g64']:.1f}" for b in (4, 3) for m in ("gptq", "awq"))
    return {
        "title": "Quantization meets diffusion language models",
        "claim": (
            f"Mean drop of the base model's task scores in per cent: W4A4 {four}; W8A8 {eight}; weights only at 4, 4, "
            f"3, 3 bits {weights}. {sum(met for *_, met in checks)} of {len(checks)} orderings of the paper appear."
        ),
        "table": rows,
        "tables": {
            "Orderings of the paper": [
                {"ordering": what, "measured": told, "appears": "yes" if met else "no"} for what, told, met in checks
            ],
            **{f"By {by}": grid.marginal(cells, by) for by in ("bits", "method", "category", "model")},
            "Calibrated on masked text, beside clean": _calibration_rows(cells),
            "Outliers at the input of linear layers": _census_table(census),
        },
    }


def _grid_rows(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found: dict[tuple, dict[str, Any]] = {}
    for p in grid.pooled(cells, ("model", "method", "bits", "calib", "task")):
        if p["calib"] == "clean":
            row = found.setdefault((p["model"], p["method"], p["bits"]), {})
            row[p["task"]], row[f"{p['task']} drop"] = p["score"], p["drop_pct"]
    stored = {(c["model"], c["method"], c["bits"]): c["bits_per_weight"] for c in cells}
    return [
        {"model": key[0], "method": "float" if key[1] == "float" else f"{key[1]} {key[2]}"}
        | {task: row[task] for task in TASKS}
        | {
            "mean drop, %": grid.known_mean(row[f"{task} drop"] for task in TASKS),
            "bound, nats": row[grid.BOUND],
            "stored bits": stored[key],
        }
        for key, row in found.items()
    ]


def _mean_drop(cells: list[dict[str, Any]], tasks: tuple[str, ...] = TASKS, **wanted: Any) -> float:
    """Return the mean drop over tasks of the cells whose fields are as wanted, pooled over seeds."""
    wanted = {"calib": "clean"} | wanted
    chosen = [c for c in cells if c["task"] in tasks and all(c[k] == v for k, v in wanted.items())]
    rows = grid.pooled(chosen, ("model", "method", "bits", "task"))
    return grid.known_mean(r["drop_pct"] for r in rows)


def _bound(cells: list[dict[str, Any]], **wanted: Any) -> float:
    """Return the rise of the likelihood bound in nats a character, averaged over seeds."""
    wanted = {"calib": "clean", "task": grid.BOUND} | wanted
    chosen = [c["score"] - c["fp_score"] for c in cells if all(c[k] == v for k, v in wanted.items())]
    return float(np.mean(chosen)) if chosen else float("nan")


def expectations(cells: list[dict[str, Any]], census: list[dict[str, Any]]) -> list[tuple[str, str, bool]]:
    """Return the paper's orderings: what it says, what was measured, whether it appears."""
    low, found = "w4a4", []

    def add(what: str, told: str, met: bool) -> None:
        found.append((what, told, bool(met)))

    for model in ("base", "instruct"):
        w4, w3 = (
            float(np.mean([_mean_drop(cells, model=model, bits=f"w{b}a16g64", method=m) for m in ("gptq", "awq")]))
            for b in (4, 3)
        )
        add(f"{model}: 3-bit weights lose more than 4-bit ones", f"{w3:.1f} and {w4:.1f} %", w3 > w4)
        g, a = (
            float(np.mean([_bound(cells, model=model, bits=f"w{b}a16g64", method=m) for b in (4, 3)]))
            for m in ("gptq", "awq")
        )
        add(f"{model}: GPTQ ahead of AWQ", f"bound rises by {g:.4f} and {a:.4f} nats", g < a)
        eight = [_mean_drop(cells, model=model, bits="w8a8", method=m) for m in ("smoothquant", "quarot", "duquant")]
        told = ", ".join(f"{e:.1f}" for e in eight)
        add(f"{model}: W8A8 within 1 % for all three", f"{told} %", max(abs(e) for e in eight) < 1.0)
    for model in ("base", "instruct", "massive"):
        smooth, *rotated = (
            _mean_drop(cells, model=model, bits=low, method=m) for m in ("smoothquant", "quarot", "duquant")
        )
        told = f"{smooth:.1f} to {rotated[0]:.1f} (QuaRot), {rotated[1]:.1f} % (DuQuant)"
        add(f"{model}, W4A4: SmoothQuant loses more than both rotations", told, smooth > max(rotated))
        add(
            f"{model}, W4A4: DuQuant ahead of QuaRot",
            f"{rotated[1]:.1f} and {rotated[0]:.1f} %",
            rotated[1] < rotated[0],
        )
    hard, easy = (
        _mean_drop(cells, tasks=tasks, bits=low, model="base", method="smoothquant")
        for tasks in (("addition", "brackets", "copy"), ("cloze",))
    )
    add("base, SmoothQuant W4A4: maths and code lose more than the cloze", f"{hard:.1f} and {easy:.1f} %", hard > easy)
    methods = ("smoothquant", "quarot", "duquant")
    tuned, plain = (
        float(np.mean([_mean_drop(cells, model=m, bits=low, method=k) for k in methods])) for m in ("instruct", "base")
    )
    add("W4A4: instruct loses less than base", f"{tuned:.1f} and {plain:.1f} %", tuned < plain)
    ratio = _peak(census, "base", "token_ratio")
    most = max(ratio, key=lambda k: ratio[k])
    told = ", ".join(f"{k} {v:.1f}" for k, v in ratio.items())
    add("The most massive token is at the second MLP layer's input (largest over median)", told, most == "down_proj")
    tokens = {m: _massive_tokens(census, m) for m in ("base", "causal")}
    told = f"{tokens['base']} and {tokens['causal']} tokens above 50 x"
    add("Massive outliers on more tokens than in the autoregressive twin", told, tokens["base"] > tokens["causal"])
    return found


def _peak(census: list[dict[str, Any]], model: str, key: str) -> dict[str, float]:
    """Return the largest ``key`` of every kind of layer, over layers and shares of masks."""
    rows = [r for r in census if r["model"] == model]
    return {kind: max(r[key] for r in rows if r["linear"] == kind) for kind in dict.fromkeys(r["linear"] for r in rows)}


def _massive_tokens(census: list[dict[str, Any]], model: str) -> int:
    return sum(r["n_massive_tokens"] for r in census if r["model"] == model and r["t"] == 0.0)


def _census_table(census: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found: dict[tuple, list[dict[str, Any]]] = {}
    for row in census:
        found.setdefault((row["model"], row["linear"], row["t"]), []).append(row)
    return [
        {
            "model": model,
            "linear": kind,
            "masked": t,
            "largest": max(r["max"] for r in rows),
            "to the median token": max(r["token_ratio"] for r in rows),
            "to the median channel": max(r["channel_ratio"] for r in rows),
            "normal channels (10 x)": sum(r["n_normal_channels"] for r in rows),
            "massive tokens (50 x)": f"{sum(r['n_massive_tokens'] for r in rows)} of {sum(r['tokens'] for r in rows)}",
        }
        for (model, kind, t), rows in found.items()
    ]


def _calibration_rows(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for config in grid.MASKED_CONFIGS:
        for model in dict.fromkeys(c["model"] for c in cells if c["calib"] == "masked"):
            wanted = {"model": model, "method": config.method, "bits": config.bits}
            clean, masked = (
                {"drop": _mean_drop(cells, **wanted, calib=k), "rise": _bound(cells, **wanted, calib=k)}
                for k in ("clean", "masked")
            )
            rows.append(
                {"model": model, "method": f"{config.method} {config.bits}"}
                | {"clean: mean drop, %": clean["drop"], "masked: mean drop, %": masked["drop"]}
                | {"clean: bound rises by": clean["rise"], "masked: bound rises by": masked["rise"]}
            )
    return rows


def _notes(cells: list[dict[str, Any]], sizes: grid.Sizes, settings: Settings) -> list[str]:
    seconds: Mapping[tuple, float] = {
        (c["model"], c["method"], c["bits"], c["calib"], c["seed"]): c["seconds"] for c in cells
    }
    seeds = len({c["seed"] for c in cells})
    asked = sizes.questions * seeds
    return [
        f"Models: width {settings.width}, {settings.blocks} blocks, {settings.steps} steps on tinyshakespeare and "
        f"solved tasks; instruct: {settings.tuning_steps} steps more with questions never masked; the autoregressive "
        f"twin had {settings.twin_steps} steps. The paper: LLaDA-8B and Dream-7B.",
        f"Scores are means over {seeds} seeds (calibration, rotations, questions): {sizes.cloze * seeds} passages of "
        f"the cloze with {sizes.mc_num} draws of masks (right answers), {asked} questions of every other task (right "
        "characters: models of this size seldom write a whole answer right). Differences of a few per cent say "
        "nothing; the bound, nats a character of held-out text, is finer.",
        "Drop: (float - quantized) / float, of scores averaged over seeds. Float and quantized models answer the same "
        f"questions and see the same masks; the {len(seconds)} quantized and scored models took "
        f"{sum(seconds.values()):.0f} CPU seconds, and are kept in the cache folder between runs.",
        "Settings: groups of 64 for weights alone (the paper 128, a whole row here); SmoothQuant with asymmetric "
        "weights and inputs per token; QuaRot with a search of clips, keys and values not rounded; DuQuant with "
        f"{sizes.duquant_steps} greedy steps (the paper 256) and its clips of 0.8 and 0.9 at 4 bits. Attention "
        "probabilities, embeddings and head stay in floating point.",
        "massive: in every block two hidden channels of the MLP hold values up to 300 times the median token's "
        "largest, on line ends, and cancel in the output. Its float scores are its own reference.",
        "Where an ordering does not appear, the census says why: rotations help against values far above the rest of "
        "their token, and a network of this size grows few of them.",
    ]
