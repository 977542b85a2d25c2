"""Quantizable Transformers (arXiv 2306.12929) at laboratory size: clipped softmax and gates beside softmax attention.

Reported together, as the paper does: loss, largest infinity norm, mean kurtosis of the recorded tensors, and the loss
at static W8A8; and at 4 bits, since 8 lose nothing at this size. Causal characters; ``--preset encoders`` adds masked
bytes and a vision transformer, where the clip belongs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from skerry.core.errors import ParameterError, nearest

_THREE = ("Adam", "Adam, gate", "Adam, clip")
_CAUSAL = dict.fromkeys((*_THREE, "Adam, softmax + 1", "Adam, ReLU attention"), 3)
PLANS: dict[str, dict[str, dict[str, int]]] = {
    "cpu": {"backcopy": _CAUSAL},
    "encoders": {
        "backcopy": _CAUSAL,
        "masked": dict.fromkeys((*_THREE, "Adam, gate from 0.25", "Adam, clip 2", "Adam, clip 4"), 3),
        "images": dict.fromkeys(_THREE, 3),
    },
}
NAMES = {
    "backcopy": "Bigram-Backcopy, causal",
    "masked": "Masked bytes of WikiText-2, an encoder",
    "images": "CIFAR-10, a vision transformer",
}
KEYS = ("loss", "max inf norm", "avg kurtosis", "excess kurtosis", "floor", "sink, mean head", "sink, best head",
        "value drain", "W8A8 static", "W6A6 t", "W4A4 k", "W4A4 t")  # fmt: skip


def run(
    quick: bool,
    data: Path,
    seed: int,
    progress: Callable[[str], None],
    preset: str = "cpu",
    seeds: int | None = None,
    budget: str | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    from skerry.bench import train_tables as tables
    from skerry.bench.train_runs import kept

    if preset not in PLANS:
        raise ParameterError(f"unknown preset {preset!r}: {nearest(preset, PLANS)}")
    plan = {"backcopy": dict.fromkeys(("Adam", "Adam, gate", "Adam, clip"), 1)} if quick else PLANS[preset]
    states, found = tables.run_plan(plan, quick, data, seed, progress, seeds, budget, device)
    progress("infinity norms and kurtosis of the recorded tensors")
    for job in found:
        found[job] |= kept(states[job], "recorded", lambda job=job: _recorded(job, data, states[job]))
    parts = {s: {j: v for j, v in found.items() if j.setting == s} for s in NAMES}
    parts = {s: f for s, f in parts.items() if f}
    told = []
    for setting, f in parts.items():

        def say(key: str, f: dict = f) -> str:
            return ", ".join(
                f"{short} {tables.spread(f, name, key)}"
                for short, name in (("softmax", "Adam"), ("gate", "Adam, gate"), ("clip", "Adam, clip"))
            )

        told.append(
            f"{NAMES[setting]}: loss {say('loss')}; max inf norm {say('max inf norm')}; avg kurtosis (Gaussian 3) "
            f"{say('avg kurtosis')}; mass on the first token, mean head, {say('sink, mean head')}; lost at static W8A8 "
            f"{say('W8A8 static')}, at W4A4 per tensor {say('W4A4 t')} nats."
        )
    tables_shown = {
        NAMES[s]: tables.main_rows(f, KEYS + (("accuracy",) if s == "images" else ())) for s, f in parts.items()
    }
    return {
        "title": "Quantizable Transformers: heads that can do nothing",
        "claim": " ".join(told),
        "table": tables_shown.pop(NAMES["backcopy"]),
        "tables": tables_shown | {"Expectations": tables.expectations(_expectations(parts, tables))},
        "notes": [
            "Infinity norm and kurtosis are the paper's: per sequence, plain (a Gaussian gives 3), over FFN layers, "
            "norms, attention outputs and blocks. Excess kurtosis is another paper's, beside its floor.",
            "Norms of hundreds and failures at 8 bits do not form at this size: what shows is whether heads park on "
            "the first token, and what 4 bits cost.",
            "Static W8A8: one asymmetric scale a layer, running minimum and maximum over 16 batches; inputs of linear "
            "layers only (the paper also quantizes softmax, norms and embeddings).",
            "Clip: alpha 3 (clip 2 and clip 4: that alpha); gate: linear, one for each head, from 0.5 or from 0.25.",
        ],
    }


def _recorded(job: Any, data: Path, state: dict[str, Any]) -> dict[str, float]:
    import torch

    from skerry.bench.train_runs import load_model
    from skerry.train.metrics import OutlierProbe

    model, task = load_model(job, data, state)
    with torch.no_grad(), OutlierProbe(model, "skerry-gpt") as probe:
        for x, _ in task.validation(8, 16):
            model(x)
    return {"max inf norm": probe.max_inf_norm, "avg kurtosis": probe.avg_kurtosis}


def _expectations(parts: dict[str, dict], tables: Any) -> list[tuple]:
    a = parts["backcopy"]

    def ratio(f: dict, name: str, key: str) -> float:
        return tables.mean(f, name, key) / tables.mean(f, "Adam", key)

    rows = [
        tables.expected("Causal: mean sink of the gate to softmax's, below 0.6",
                        ratio(a, "Adam, gate", "sink, mean head"), lambda v: v < 0.6),
        tables.expected("Causal: value drain of the gate to softmax's, above 3", ratio(a, "Adam, gate", "value drain"),
                        lambda v: v > 3),
        tables.expected("Causal: W4A4 per tensor of the gate to softmax's, below 0.7", ratio(a, "Adam, gate", "W4A4 t"),
                        lambda v: v < 0.7),
        tables.expected("Causal: the clip does not help at W4A4 (above 1)", ratio(a, "Adam, clip", "W4A4 t"),
                        lambda v: v > 1),
        tables.expected("Causal: the gate leaves residual outliers (above half)",
                        ratio(a, "Adam, gate", "excess kurtosis"), lambda v: v > 0.5),
        tables.expected("Causal: losses of gate and softmax within 0.02 nats",
                        abs(tables.mean(a, "Adam, gate", "loss") - tables.mean(a, "Adam", "loss")), lambda v: v < 0.02),
        tables.expected("Causal: nothing is lost at static W8A8 (nats, worst)",
                        max(v["W8A8 static"] for v in a.values()), lambda v: v < 0.02),
    ]  # fmt: skip
    for setting, told in (("masked", "Encoder"), ("images", "Images")):
        b = parts.get(setting)
        for name in ("Adam, gate", "Adam, clip") if b else ():
            short = name.removeprefix("Adam, ")
            rows += [
                tables.expected(f"{told}: max inf norm of the {short} to softmax's, below 1",
                                ratio(b, name, "max inf norm"), lambda v: v < 1),
                tables.expected(f"{told}: the {short} loses no more than softmax at W4A4 per tensor (nats)",
                                tables.mean(b, name, "W4A4 t") - tables.mean(b, "Adam", "W4A4 t"), lambda v: v <= 0),
            ]  # fmt: skip
    return rows
