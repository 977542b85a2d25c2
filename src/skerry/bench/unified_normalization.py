"""Unified Normalization (ACM MM 2022, arXiv 2208.01313) at laboratory size, beside LayerNorm, RMSNorm and batch norm.

A small ViT on CIFAR-10, clean and with a few batches thirty times too large; masked and causal bytes; the ablations
without filter and without smoothing; the fused network beside the unfused, and its time beside ``torch.nn.LayerNorm``.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from skerry.core.errors import ParameterError

_FORMAT = 1  # raise it when a training changes, so that kept runs no longer stand for it
_CLEAN = ("LayerNorm", "RMSNorm", "BatchNorm", "UnifiedNorm", "UnifiedNorm, no filter", "UnifiedNorm, no smoothing")
SIZES: dict[str, dict[str, Any]] = {
    "full": {
        "seeds": 3,
        "steps": 300,
        "dim": 64,
        "n_layers": 3,
        "text": ("LayerNorm", "BatchNorm", "UnifiedNorm", "UnifiedNorm, no filter"),
        "causal": ("UnifiedNorm",),
        "inference": {"batch": 4, "tokens": 196, "dim": 384, "n_layers": 12, "repeats": 9},
        "pair": {"batch": 32, "tokens": 196, "dim": 384, "repeats": 15},
    },
    "quick": {
        "seeds": 1,
        "steps": 30,
        "dim": 16,
        "n_layers": 1,
        "text": ("LayerNorm", "UnifiedNorm"),
        "causal": (),
        "inference": {"batch": 1, "tokens": 16, "dim": 64, "n_layers": 1, "repeats": 3},
        "pair": {"batch": 1, "tokens": 16, "dim": 64, "repeats": 3},
    },
}


def run(
    quick: bool,
    data: Path,
    seed: int,
    progress: Callable[[str], None],
    seeds: int | None = None,
    workers: int = 2,
) -> dict[str, Any]:
    import torch
    from joblib import Parallel, delayed

    from skerry.bench import unified_normalization_runs as parts
    from skerry.bench.curves import curves

    size = SIZES["quick" if quick else "full"]
    n_seeds = int(seeds or size["seeds"])
    if n_seeds < 1 or int(workers) < 1:
        raise ParameterError(f"seeds={n_seeds}, workers={workers}: give 1 or more")
    plan = (
        ("images", parts.NORMS, True),
        ("images", _CLEAN, False),
        ("text", size["text"], False),
        ("causal", size["causal"], False),
    )
    jobs = [
        (setting, name, s, planted)
        for setting, names, planted in plan
        for s in range(seed, seed + n_seeds)
        for name in names
    ]
    shape = {k: size[k] for k in ("steps", "dim", "n_layers")}
    progress(f"{len(jobs)} trainings of {size['steps']} steps")
    found: dict[tuple, dict[str, Any]] = {}
    calls = (delayed(_train)(job, data, shape, job == ("images", "UnifiedNorm", seed, True)) for job in jobs)
    for job, result in zip(jobs, Parallel(n_jobs=int(workers), return_as="generator")(calls), strict=True):
        found[job] = result
        progress(f"{', '.join(map(str, job))}: loss {result['loss']:.3f}, accuracy {result['accuracy']:.3f}")
    torch.set_num_threads(1)
    progress("seconds of inference")
    pair = parts.pair_seconds(**size["pair"])
    whole = parts.inference(**size["inference"])

    table = _tables(found, parts.NORMS)
    moments = found["images", "UnifiedNorm", seed, True]["moments"]
    lines = {
        f"{where} norm, {what}": [(k, row[i]) for k, row in enumerate(rows)]
        for where, rows in zip(("first", "last"), moments.values(), strict=True)
        for i, what in ((1, "median"), (2, "largest"))
    }
    checks = _expectations(found, pair, whole, bool(size["causal"]))
    return {
        "title": "Unified Normalization: a norm that is gone at inference",
        "claim": _claim(found, pair, whole, n_seeds),
        "table": table["images"],
        "tables": {
            "Bytes: held-out loss in nats": table["text"],
            "What the filter set aside: steps skipped of those after the warm-up": table["skips"],
            "A norm and the linear layer behind it: " + _said(size["pair"]): pair,
            "A whole vision transformer: " + _said(size["inference"]): whole,
            "Expectations": [
                {"expected": text, "measured": value, "met": "yes" if met else "no"} for text, value, met in checks
            ],
        },
        "pictures": {
            "moments": curves(
                "Second moments of channels, UnifiedNorm, bad batches", lines, "step", "mean square", log=True
            )
        },
        "notes": [
            f"Vision transformer: 8 x 8 patches of CIFAR-10 (10 000 training images), width {size['dim']}, "
            f"{size['n_layers']} layers, 64 images a step, {size['steps']} steps of AdamW (1e-3, cosine, a tenth of "
            "them warm-up of rate and statistics); accuracy on 512 held-out images: one point is five images. Bytes: "
            "WikiText-2, windows of 64, 8 a step, 3e-3. All rows share starts, batches and schedule.",
            "Bad batches: two steps after the warm-up have inputs thirty times too large. 'Just after' and '20 after': "
            "the lowest held-out accuracy one and twenty steps later, in eval(); 'shock': mean rise of the training "
            "loss in the four steps after, over the ten before.",
            "In a skipped step the running statistic still moves by a tenth of the outlier, as the paper's code has "
            "it: eval() just after a bad batch suffers from it. 'Running kept' leaves it untouched "
            "(protect_running=True).",
            "Train mode loss: the final network on held-out batches, with the statistics of each batch in place of the "
            "running ones. In the causal model those include the tokens to come: compare by eval() only.",
            "Times: one thread; calls of all rows in turn, in a changing order; medians, and the median of the ratios "
            "to LayerNorm in the same round. 'No norm' is the floor. The norm's share of a transformer's time is "
            "smaller on a processor than on a GPU, where the paper finds 31 %.",
            "The paper's tables (BLEU on IWSLT14 and WMT14, T2T-ViT-14 on ImageNet) are not part of it.",
        ],
    }  # fmt: skip


def _train(job: tuple[str, str, int, bool], data: Path, shape: dict[str, int], trace: bool) -> dict[str, Any]:
    """Train a job, or return what the cache of runs holds of it."""
    from skerry.bench import unified_normalization_runs as parts
    from skerry.bench.train_runs import kept, lab_folder

    text = json.dumps([_FORMAT, job, shape, trace, str(data.resolve())])
    folder = lab_folder(None)
    folder.mkdir(parents=True, exist_ok=True)
    setting, name, seed, planted = job
    return kept(
        {"folder": folder, "steps": shape["steps"]},
        "unified-" + hashlib.sha256(text.encode()).hexdigest()[:16],
        lambda: parts.train(setting, name, seed, planted, data, **shape, trace=trace),
    )


def _values(found: dict[tuple, dict[str, Any]], setting: str, name: str, planted: bool, key: str) -> list[float]:
    return [r[key] for (s, n, _, p), r in found.items() if (s, n, p) == (setting, name, planted) and r[key] is not None]


def _mean(values: list[float]) -> float:
    return statistics.fmean(values) if values else math.nan


def _tables(found: dict[tuple, dict[str, Any]], names: Any) -> dict[str, list[dict[str, Any]]]:
    images, text, skips = [], [], []
    for name in names:
        clean = _values(found, "images", name, False, "accuracy")
        images.append(
            {
                "norm": name,
                "accuracy": _mean(clean),
                "sd": statistics.stdev(clean) if len(clean) > 1 else None,
                "loss": _mean(_values(found, "images", name, False, "loss")),
                "train mode loss": _mean(_values(found, "images", name, False, "train mode loss")),
                **{
                    f"bad batches: {key}": _mean(_values(found, "images", name, True, key))
                    for key in ("accuracy", "loss", "just after", "20 after", "shock")
                },
                "CPU ms a step": _mean(_values(found, "images", name, False, "CPU ms")),
            }
        )
        row: dict[str, Any] = {"norm": name}
        for setting in ("text", "causal"):
            losses = _values(found, setting, name, False, "loss")
            if losses:
                row[f"{setting}, loss"] = _mean(losses)
                row[f"{setting}, sd"] = statistics.stdev(losses) if len(losses) > 1 else None
                row[f"{setting}, train mode loss"] = _mean(_values(found, setting, name, False, "train mode loss"))
        if len(row) > 1:
            text.append(row)
        runs = {k: r["skips"] for k, r in found.items() if k[1] == name and "skips" in r}
        if any(any(s.values()) for s in runs.values()):
            for kind in sorted({(s, p) for s, _, _, p in runs}):
                of = [s for k, s in runs.items() if (k[0], k[3]) == kind]
                skips.append(
                    {"norm": name, "data": f"{kind[0]}{', bad batches' if kind[1] else ''}"}
                    | {"last" if n == "norm" else n.removeprefix("blocks."): _mean([s[n] for s in of]) for n in of[0]}
                )
    keys = list(dict.fromkeys(k for row in text for k in row))
    return {"images": images, "text": [{k: row.get(k) for k in keys} for row in text], "skips": skips}


def _said(shape: dict[str, int]) -> str:
    layers = f", {shape['n_layers']} layers" if "n_layers" in shape else ""
    return f"({shape['batch']}, {shape['tokens']}, {shape['dim']}){layers}, {shape['repeats']} rounds"


def _row(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(r for r in rows if r["norm"] == name)


def _fused(found: dict[tuple, dict[str, Any]]) -> tuple[float, float]:
    changes = [r["fused"] for r in found.values() if "fused" in r]
    return max(c[0] for c in changes), max(c[1] for c in changes)


def _claim(found: dict[tuple, dict[str, Any]], pair: list, whole: list, seeds: int) -> str:
    def say(key: str, planted: bool) -> str:
        names = ("LayerNorm", "RMSNorm", "BatchNorm", "UnifiedNorm", "UnifiedNorm, no filter")
        return ", ".join(f"{n} {_mean(_values(found, 'images', n, planted, key)):.3f}" for n in names)

    fused, speed = "UnifiedNorm, fused", "speed beside LayerNorm, CPU"
    single, double = _fused(found)
    return (
        f"ViT on CIFAR-10, {seeds} seed(s), held-out accuracy: {say('accuracy', False)}. With bad batches: "
        f"{say('accuracy', True)}; one step after one: {say('just after', True)} (UnifiedNorm with its running "
        f"statistic kept {_mean(_values(found, 'images', 'UnifiedNorm, running kept', True, 'just after')):.3f}). "
        f"Fusing moves the logits by at most {single:.1e} (float64 {double:.1e}). The fused transformer runs at "
        f"{_row(whole, fused)[speed]:.3f} times LayerNorm's speed (ahead in "
        f"{_row(whole, fused)['rounds ahead of it']} rounds; no norm at all: {_row(whole, 'no norm')[speed]:.3f}), a "
        f"norm with its linear layer at {_row(pair, fused)[speed]:.3f}."
    )


def _expectations(
    found: dict[tuple, dict[str, Any]], pair: list, whole: list, causal: bool
) -> list[tuple[str, float, bool]]:
    def mean(name: str, key: str, planted: bool = False, setting: str = "images") -> float:
        return _mean(_values(found, setting, name, planted, key))

    single, double = _fused(found)
    fused, speed = "UnifiedNorm, fused", "speed beside LayerNorm, CPU"
    un, ln, bn, bare = "UnifiedNorm", "LayerNorm", "BatchNorm", "UnifiedNorm, no filter"
    behind = mean(ln, "accuracy") - mean(un, "accuracy")
    planted = mean(ln, "accuracy", True) - mean(un, "accuracy", True)
    text = mean(un, "loss", setting="text") - mean(ln, "loss", setting="text")
    rows = [
        ("fused logits equal the unfused to 1e-5 (float32)", single, single <= 1e-5),
        ("fused logits equal the unfused to 1e-10 (float64)", double, double <= 1e-10),
        ("fused transformer at least as fast as with torch.nn.LayerNorm", _row(whole, fused)[speed],
         _row(whole, fused)[speed] >= 1),
        ("fused norm and linear layer at least as fast as LayerNorm and the layer", _row(pair, fused)[speed],
         _row(pair, fused)[speed] >= 1),
        ("clean images: UnifiedNorm within two points of LayerNorm (behind it by)", behind, behind <= 0.02),
        ("bad batches: UnifiedNorm within one point of LayerNorm (behind it by)", planted, planted <= 0.01),
        ("bad batches: accuracy just after, UnifiedNorm ahead of BatchNorm",
         mean(un, "just after", True) - mean(bn, "just after", True),
         mean(un, "just after", True) > mean(bn, "just after", True)),
        ("bad batches: accuracy just after, the filter ahead of none",
         mean(un, "just after", True) - mean(bare, "just after", True),
         mean(un, "just after", True) > mean(bare, "just after", True)),
        ("bad batches: the training loss rises less with the filter than without",
         mean(bare, "shock", True) - mean(un, "shock", True), mean(bare, "shock", True) > mean(un, "shock", True)),
        ("masked bytes: UnifiedNorm within 0.05 nats of LayerNorm (behind it by)", text, text <= 0.05),
    ]  # fmt: skip
    if causal:
        gap = mean(un, "loss", setting="causal") - mean(un, "train mode loss", setting="causal")
        rows.append(("causal bytes: eval() within 0.05 nats of the training mode", gap, abs(gap) <= 0.05))
    return rows
