"""The laboratory of outlier-safe training: which parts grow outliers, which do not, and what low bits then cost.

Tables of the laboratory note: Bigram-Backcopy, where all variants reach the same loss and differ only in their
outliers, and a byte model, where they do not. Runs are kept in the user's cache and resumed from there; the replicas of
the papers share them. The default preset, ``cpu``, is written as ``train``, any other as ``train-PRESET``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from skerry.core.errors import ParameterError, nearest

_EVERY = (
    "Adam; OSP; Adam, gate; Muon; SGD; Adam, SSNorm; Muon, SSNorm; Muon, EmbProj; ROOT; Adam, GatedNorm; Adam, gate, "
    "GatedNorm; Adam, PreAffine; Adam, clip; Adam, softmax + 1; Adam, ReLU attention; Adam, no BOS; Adam, DyT; Adam, "
    "stream clipped at 10"
).split("; ")
_BYTES = (
    "Adam; OSP; Muon; ROOT; Adam, gate; Adam, clip; Adam, lr 1e-2; Adam, lr 5e-4; Adam, LayerNorm; Adam, SSNorm; Adam, "
    "GatedNorm; Adam, PreAffine"
).split("; ")
# Preset to setting to variant to the number of seeds.
PRESETS: dict[str, dict[str, dict[str, int]]] = {
    "cpu-quick": {"backcopy": dict.fromkeys(("Adam", "OSP", "Adam, gate", "SGD"), 1)},
    "cpu": {
        "backcopy": dict.fromkeys(_EVERY, 3),
        "bytes": dict.fromkeys(("Adam", "OSP", "Muon", "Adam, gate", "Adam, clip"), 3),
    },
    "bytes": {"bytes": dict.fromkeys(_BYTES, 3)},
    "encoders": {
        "masked": dict.fromkeys(("Adam", "Adam, gate", "Adam, clip"), 3),
        "images": dict.fromkeys(("Adam", "Adam, gate", "Adam, clip", "Muon", "ROOT"), 3),
    },
    "gpu60m": {
        "bytes-60m": dict.fromkeys(("Adam", "Muon", "OSP", "Adam, gate", "Adam, GatedNorm", "Adam, PreAffine"), 2)
    },
}
NAMES = {
    "backcopy": "Bigram-Backcopy",
    "bytes": "Bytes of WikiText-2",
    "bytes-60m": "Bytes of all texts, 38 million parameters",
    "masked": "Masked bytes of WikiText-2",
    "images": "CIFAR-10, a vision transformer",
}

# In the pictures, where more ran: all at once cannot be told apart.
DRAWN = ("Adam", "Adam, gate", "Adam, GatedNorm", "Adam, no BOS", "Muon", "Muon, EmbProj", "OSP", "SGD")


def run(
    quick: bool,
    data: Path,
    seed: int,
    progress: Callable[[str], None],
    preset: str = "cpu",
    variants: str | None = None,
    seeds: int | None = None,
    budget: str | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    from skerry.bench import train_tables as tables

    if preset not in PRESETS:
        raise ParameterError(f"unknown preset {preset!r}: {nearest(preset, PRESETS)}")
    plan = PRESETS["cpu-quick" if quick and preset == "cpu" else preset]
    seeds = 1 if quick and seeds is None else seeds
    if variants is not None:
        names = [v.strip() for v in variants.split(";") if v.strip()]
        plan = {setting: {v: max(of.values()) for v in names} for setting, of in plan.items()}
    states, found = tables.run_plan(plan, quick, data, seed, progress, seeds, budget, device)

    by_setting = {s: {j: v for j, v in found.items() if j.setting == s} for s in plan}
    curves_of = {s: {j: v for j, v in states.items() if j.setting == s} for s in plan}
    shown: dict[str, Any] = {}
    for setting, rows in by_setting.items():
        shown[NAMES[setting]] = tables.main_rows(rows, tables.MAIN + (("accuracy",) if setting == "images" else ()))
        shown[f"{NAMES[setting]}: nats lost at low bits"] = tables.gap_rows(rows)
    first = next(iter(plan))
    table = shown.pop(NAMES[first])
    checks = [row for row in _expectations(by_setting) if row[2] is not None]  # None: a variant of another preset
    if checks:
        shown["Expectations of the laboratory note"] = tables.expectations(checks)
    cut = [f"{j.setting}, {j.variant}, seed {j.seed}: {s['steps']} of {j.config.steps} steps"
           for j, s in states.items() if s["steps"] < j.config.steps]  # fmt: skip
    notes = [
        "Excess kurtosis is that of Outlier-Safe Pre-Training, relu'd for each token: its floor, what Gaussian noise "
        "of this width gives, stands beside it. sd: standard deviation over seeds, where there are several.",
        "Gaps are nats on the same validation batches: weights rounded per output channel, activations absmax, one "
        "dynamic scale for a tensor (t) or a token (k), static: one asymmetric scale from 16 batches. 'in' is what "
        "norms feed, 'ao' the attention's output projection, 'ffn' the second layer of the FFN; these three round "
        "activations alone.",
        f"Training took {tables.cpu_minutes(found):.0f} minutes of one core each in all, contended; the time below "
        "is that of this command alone: runs that the cache has are not trained again.",
        *([f"Stopped by the budget: {'; '.join(cut)}."] if cut else []),
    ]
    if first == "backcopy":
        notes.append(
            "No BOS is another distribution of data: its loss compares with no other row. "
            "Bigram-Backcopy: 3 layers of 64, two heads, 16 x 48 characters a step, constant learning rate 3e-3 (SGD "
            "0.05), no decay, 2000 steps. Bytes: 4 layers, 16 x 64 bytes, cosine, decay 0.1, 1000 steps."
        )
    return {
        "title": "Training without outliers: the laboratory",
        "file": "train" if preset == "cpu" else f"train-{preset}",
        "claim": _claim(by_setting),
        "table": table,
        "tables": shown,
        "notes": notes,
        "curves": {
            s: {key: tables.history(of, key) for key in ("loss", "excess kurtosis", "peak", "sink, mean head")}
            for s, of in curves_of.items()
        },
        "pictures": _pictures(curves_of, first),
    }


def _claim(by_setting: dict[str, dict]) -> str:
    from skerry.bench.train_tables import mean, spread

    told = []
    for setting, found in by_setting.items():

        def say(key: str, *names: str, found: dict = found) -> str:
            return ", ".join(f"{n} {spread(found, n, key)}" for n in names)

        ran = {job.variant for job in found}
        names = [n for n in ("Adam", "Muon", "OSP", "SGD", "Adam, gate") if n in ran]
        if names:
            told.append(
                f"{NAMES[setting]}: excess kurtosis {say('excess kurtosis', *names)}, at a floor of "
                f"{mean(found, names[0], 'floor'):.2g}; loss {say('loss', *names)}; mass on the first token, mean "
                f"head, {say('sink, mean head', *names)}; lost at W4A4 per tensor {say('W4A4 t', *names)}."
            )
    return "Means over seeds, least and largest in brackets. " + " ".join(told)


def _expectations(by_setting: dict[str, dict]) -> list[tuple]:
    from skerry.bench.train_tables import expected, mean

    rows: list[tuple] = []
    a = by_setting.get("backcopy", {})
    if a:
        adam, osp, gate = "Adam", "OSP", "Adam, gate"
        losses = [mean(a, n, "loss") for n in (adam, osp, gate)]
        rows += [
            expected("Backcopy: excess kurtosis of Adam above 4", mean(a, adam, "excess kurtosis"), lambda v: v > 4),
            expected("Backcopy: excess kurtosis of OSP below 0.5", mean(a, osp, "excess kurtosis"), lambda v: v < 0.5),
            expected("Backcopy: Muon between the two", mean(a, "Muon", "excess kurtosis"),
                     lambda v: mean(a, osp, "excess kurtosis") < v < mean(a, adam, "excess kurtosis")),
            expected("Backcopy: SGD has no outlier dimensions (below 1)", mean(a, "SGD", "excess kurtosis"),
                     lambda v: v < 1),
            expected("Backcopy: mean sink of the gate to Adam's, below 0.6",
                     mean(a, gate, "sink, mean head") / mean(a, adam, "sink, mean head"), lambda v: v < 0.6),
            expected("Backcopy: value drain of the gate to Adam's, above 3",
                     mean(a, gate, "value drain") / mean(a, adam, "value drain"), lambda v: v > 3),
            expected("Backcopy: the gate leaves residual outliers (above half of Adam's)",
                     mean(a, gate, "excess kurtosis") / mean(a, adam, "excess kurtosis"), lambda v: v > 0.5),
            expected("Backcopy: mean sink of OSP above 0.25: sinks need no outliers", mean(a, osp, "sink, mean head"),
                     lambda v: v > 0.25),
            expected("Backcopy: losses of Adam, OSP and gate within 0.02 nats", max(losses) - min(losses),
                     lambda v: v < 0.02),
            expected("Backcopy: without BOS mean sink below 0.15", mean(a, "Adam, no BOS", "sink, mean head"),
                     lambda v: v < 0.15),
            expected("Backcopy: without BOS outliers as before (above 4)", mean(a, "Adam, no BOS", "excess kurtosis"),
                     lambda v: v > 4),
            expected("Backcopy: ReLU attention has no sink (below 0.01)",
                     mean(a, "Adam, ReLU attention", "sink, best head"), lambda v: v < 0.01),
            expected("Backcopy: DyT collapses at this learning rate (loss above 3)", mean(a, "Adam, DyT", "loss"),
                     lambda v: v > 3),
        ]  # fmt: skip
    b = by_setting.get("bytes", {})
    if b:
        rows += [
            expected("Bytes: OSP at the floor (below 0.3)", mean(b, "OSP", "excess kurtosis"), lambda v: v < 0.3),
            expected("Bytes: Adam above three floors", mean(b, "Adam", "excess kurtosis") / mean(b, "Adam", "floor"),
                     lambda v: v > 3),
            expected("Bytes: Muon ahead of Adam at equal steps (nats)",
                     mean(b, "Adam", "loss") - mean(b, "Muon", "loss"), lambda v: v > 0.05),
            expected("Bytes: OSP loses more than Adam at W4A4 per tensor (nats)",
                     mean(b, "OSP", "W4A4 t") - mean(b, "Adam", "W4A4 t"), lambda v: v > 0),
            expected("Bytes: most of OSP's loss is the FFN's hidden activation",
                     mean(b, "OSP", "A4 t, ffn") / mean(b, "OSP", "W4A4 t"), lambda v: v > 0.5),
            expected("Bytes: where norms feed, OSP loses no more than Adam",
                     mean(b, "OSP", "A4 t, in") - mean(b, "Adam", "A4 t, in"), lambda v: v <= 0.01),
            expected("Bytes: the FFN Hadamard takes more than half of OSP's loss per tensor",
                     mean(b, "OSP", "W4A4 t, FFN Hadamard") / mean(b, "OSP", "W4A4 t"), lambda v: v < 0.5),
            expected("Bytes: quantized loss per token, OSP ahead of Adam (nats)",
                     mean(b, "Adam", "W4A4 k, loss") - mean(b, "OSP", "W4A4 k, loss"), lambda v: v > 0),
            expected("Bytes: every variant loses below 0.01 nats at W8A8 per tensor",
                     max((v["W8A8 t"] for v in b.values()), default=float("nan")), lambda v: v < 0.01),
            expected("Bytes: Adam's kurtosis at a rate of 1e-2 to that at 3e-3, above 1.5",
                     mean(b, "Adam, lr 1e-2", "excess kurtosis") / mean(b, "Adam", "excess kurtosis"),
                     lambda v: v > 1.5),
            expected("Bytes: at a rate of 5e-4 no outliers (Adam's kurtosis to its floor, below 1.2)",
                     mean(b, "Adam, lr 5e-4", "excess kurtosis") / mean(b, "Adam", "floor"), lambda v: v < 1.2),
            *(expected(f"Bytes: {name} gains nothing in loss beyond 0.03 nats (its gain)",
                       mean(b, "Adam", "loss") - mean(b, f"Adam, {name}", "loss"), lambda v: v < 0.03)
              for name in ("GatedNorm", "PreAffine", "SSNorm", "clip")),
        ]  # fmt: skip
    for setting in ("masked", "images"):
        c = by_setting.get(setting, {})
        for variant in ("Adam, gate", "Adam, clip") if c else ():
            said = f"{NAMES[setting]}: {variant.removeprefix('Adam, ')} beside softmax"
            rows += [
                expected(f"{said}, loss within 0.05 nats", mean(c, variant, "loss") - mean(c, "Adam", "loss"),
                         lambda v: abs(v) < 0.05),
                expected(f"{said}, loses no more at W4A4 per tensor (nats)",
                         mean(c, variant, "W4A4 t") - mean(c, "Adam", "W4A4 t"), lambda v: v <= 0),
            ]  # fmt: skip
    seen = by_setting.get("images", {})
    if seen:
        ahead = mean(seen, "ROOT", "accuracy") - mean(seen, "Muon", "accuracy")
        rows.append(
            expected("CIFAR-10, a vision transformer: ROOT at least as accurate as Muon", ahead, lambda v: v >= 0)
        )
    return rows


def _pictures(curves_of: dict[str, dict], first: str) -> dict[str, str]:
    from skerry.bench.curves import curves
    from skerry.bench.train_tables import history
    from skerry.deep.outlier_metrics import gaussian_floor

    of = curves_of[first]
    if len({job.variant for job in of}) > len(DRAWN):
        of = {job: state for job, state in of.items() if job.variant in DRAWN}
    floor = ("floor: Gaussian noise", gaussian_floor(next(iter(of)).config.dim))
    sinks = history(of, "sink, mean head")
    return {
        "kurtosis": curves(
            f"{NAMES[first]}: excess kurtosis of the residual stream", history(of, "excess kurtosis"), "step",
            "excess kurtosis", log=True, level=floor,
        ),
        "loss": curves(
            f"{NAMES[first]}: loss on validation batches",
            {k: v for k, v in history(of, "loss").items() if v and v[-1][1] < 2.5 and "no BOS" not in k},
            "step", "nats",
        ),
        "sinks": curves(f"{NAMES[first]}: attention on the first token, mean head", sinks, "step", "probability"),
    }  # fmt: skip
