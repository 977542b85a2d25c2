"""Does the small encoder of Themis, trained on synthetic series alone, beat the untrained bank?

The encoder of :mod:`skerry.deep.pretrain_series`, trained here in minutes or given as a file, beside the bank of random
convolutions, an encoder of the same sizes that was never trained, and the same scorers on all of them.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from skerry.core.metrics import average_precision, roc_auc, ucr_hit, vus_pr
from skerry.data.series_sets import labelled_series
from skerry.detect.series.themis import Themis

GROUPS = ("msl", "smap", "ucr", "nab")
TRAINING = {"steps": 3_000, "length": 256, "n_kernels": 400}
SCORERS = {"spectral, k = 5": {"n_components": 5}, "spectral, k = 20": {"n_components": 20}, "mean": {"scorer": "mean"}}
QUICK_SERIES = 2


def run(quick: bool, data: Path, seed: int, progress: Callable[[str], None], encoder: str = "") -> dict[str, Any]:
    """``encoder`` is a file of ``python -m skerry.deep.pretrain_series``; without it one is trained first."""
    from skerry.deep.pretrain_series import pretrain

    with tempfile.TemporaryDirectory() as folder:
        untrained, path = Path(folder) / "untrained.safetensors", Path(encoder or Path(folder) / "trained.safetensors")
        pretrain(untrained, steps=1, seed=seed, length=64, n_kernels=1)
        took = ""
        if not encoder:
            progress("training")
            started, small = time.perf_counter(), {"steps": 20, "length": 64, "n_kernels": 4} if quick else TRAINING
            pretrain(path, seed=seed, **small, on_progress=lambda i, loss: progress(f"training: step {i}, {loss:.3f}"))
            took = f" in {time.perf_counter() - started:.0f} s on one thread"
        digest, size, training = _told(path)
        encoders = {"bank": "convolutional", "never trained": str(untrained), "trained": str(path)}
        rows, counts = _table(encoders, quick, data, seed, progress)
    wins = _wins(rows)
    better = all(w == len(SCORERS) for w in wins.values())
    told = ", ".join(f"{group.upper()} with {n} of {len(SCORERS)} scorers" for group, n in wins.items())
    verdict = "it beats the bank everywhere" if better else "so it is not shipped, and the bank stays the default"
    return {
        "title": "The trained encoder of Themis beside the bank of random convolutions",
        "claim": f"In mean AP the trained encoder is ahead of the bank on {told}: {verdict}.",
        "table": rows,
        "notes": [
            f"Trained{took}: {training}; {size:,} bytes, sha256 {digest}.",
            f"Series: {counts}. Channel 0 only, windows of 512, stride 256, one seed. Training saw no measured series.",
            "'never trained' has the same sizes and one step of training: what its random weights see.",
        ],
    }


def _told(path: Path) -> tuple[str, int, str]:
    """Return the hash and the size of a file of an encoder, and how it was trained."""
    from safetensors import safe_open

    with safe_open(str(path), "np") as file:
        training = json.loads((file.metadata() or {})["encoder"])["training"]
    content = path.read_bytes()
    return hashlib.sha256(content).hexdigest(), len(content), ", ".join(f"{k} {v}" for k, v in training.items())


def _table(
    encoders: dict[str, str], quick: bool, data: Path, seed: int, progress: Callable[[str], None]
) -> tuple[list[dict[str, Any]], str]:
    rows: dict[tuple[str, str], dict[str, Any]] = {
        (e, s): {"encoder": e, "scorer": s, "CPU s": 0.0} for e in encoders for s in SCORERS
    }
    counts = []
    for group in GROUPS:
        found: dict[tuple[str, str], list] = {key: [] for key in rows}
        for i, series in enumerate(s for s in labelled_series(data, group) if 0 < s.label.sum() < len(s.label)):
            if quick and i >= QUICK_SERIES:
                break
            progress(f"{group} {series.name}")
            keep = 1_000 if quick and 0 < series.label[:1_000].sum() < 1_000 else len(series.label)
            test, y = series.test[:keep, :1], series.label[:keep]
            for (name, scorer), row in rows.items():
                started = time.process_time()
                model = Themis(encoder=encoders[name], random_state=seed, **SCORERS[scorer])
                s = model.fit(series.train[:, :1]).anomaly_score(test)
                row["CPU s"] += time.process_time() - started
                found[name, scorer].append((roc_auc(y, s), average_precision(y, s), vus_pr(y, s), ucr_hit(y, s)))
        counts.append(f"{len(next(iter(found.values())))} of {group}")
        for key, row in rows.items():
            figures = np.array(found[key], dtype=np.float64)
            row |= dict(
                zip((f"{group} {f}" for f in ("AUROC", "AP", "VUS-PR")), figures.mean(axis=0)[:3].tolist(), strict=True)
            )
            if group == "ucr":
                row["ucr hits"] = int(figures[:, 3].sum())
    return list(rows.values()), ", ".join(counts)


def _wins(rows: list[dict[str, Any]]) -> dict[str, int]:
    """Return with how many scorers the trained encoder is ahead of the bank in AP, by group."""
    by = {(r["encoder"], r["scorer"]): r for r in rows}
    return {g: sum(by["trained", s][f"{g} AP"] > by["bank", s][f"{g} AP"] for s in SCORERS) for g in GROUPS}
