"""Self-similarity of frozen embeddings on labelled series (Themis), beside plain scores of the same channel.

Channel 0 of MSL and SMAP, the UCR series and NAB, as the brief asks; every method is fitted to the train part and
scores the test part. An embedding of 16 lags goes through the same scorers, to tell what the encoder adds.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skerry.core.metrics import average_precision, roc_auc, ucr_hit, vus_pr
from skerry.data.series_sets import labelled_series
from skerry.detect.series.matrix_profile import MatrixProfile
from skerry.detect.series.self_similarity import similarity_matrix, spectral_residual
from skerry.detect.series.themis import Themis
from skerry.detect.series.windowed import Windowed

GROUPS = ("msl", "smap", "ucr", "nab")
QUICK_SERIES = 2
LAGS = 16


def _median_distance(train: NDArray, test: NDArray, seed: int) -> NDArray[np.float64]:
    return np.abs(test[:, 0] - np.nanmedian(train[:, 0]))


def _delays(train: NDArray, test: NDArray, seed: int) -> NDArray[np.float64]:
    """Spectral residual of windows whose embedding is the last 16 values."""
    x = np.nan_to_num(test[:, 0])
    n, length = len(x), min(512, len(x))
    steps = np.arange(n)
    E = np.stack([x[np.maximum(steps - lag, 0)] for lag in range(LAGS)], axis=1)
    total, seen = np.zeros(n), np.zeros(n)
    for start in np.unique(np.r_[np.arange(0, n - length + 1, max(length // 2, 1)), n - length]):
        part = slice(start, start + length)
        total[part] += spectral_residual(similarity_matrix(E[part]), 5)
        seen[part] += 1
    return total / seen


def _with(make: Callable[[int], Any]) -> Callable[[NDArray, NDArray, int], NDArray[np.float64]]:
    return lambda train, test, seed: make(seed).fit(train[:, :1]).anomaly_score(test[:, :1])


METHODS: dict[str, Callable[[NDArray, NDArray, int], NDArray[np.float64]]] = {
    "Themis spectral, k = 2": _with(lambda s: Themis(n_components=2, random_state=s)),
    "Themis spectral, k = 5": _with(lambda s: Themis(n_components=5, random_state=s)),
    "Themis spectral, k = 20": _with(lambda s: Themis(n_components=20, random_state=s)),
    "Themis mean similarity": _with(lambda s: Themis(scorer="mean", random_state=s)),
    "Themis trimmed top": _with(lambda s: Themis(scorer="top", random_state=s)),
    "Themis LOF": _with(lambda s: Themis(scorer="lof", random_state=s)),
    "16 lags, spectral, k = 5": _delays,
    "matrix profile 64": _with(lambda s: MatrixProfile()),
    "isolation forest on windows of 32": _with(lambda s: Windowed(random_state=s)),
    "distance from the median": _median_distance,
}


def run(quick: bool, data: Path, seed: int, progress: Callable[[str], None], encoder: str = "") -> dict[str, Any]:
    """``encoder`` is a file or folder that Themis takes; it is measured beside the built-in bank."""
    methods = dict(METHODS)
    if encoder:
        for k in (5, 20):
            methods[f"Themis spectral, k = {k}, {Path(encoder).name}"] = _with(
                lambda s, k=k: Themis(encoder=encoder, n_components=k, random_state=s)
            )
    found: dict[str, dict[str, list[dict[str, float]]]] = defaultdict(lambda: defaultdict(list))
    seconds: dict[str, float] = defaultdict(float)
    left_out = 0
    for group in GROUPS:
        for i, series in enumerate(labelled_series(data, group)):
            if quick and i >= QUICK_SERIES:
                break
            if not 0 < series.label.sum() < len(series.label):
                left_out += 1
                continue
            progress(f"{group} {series.name}")
            test = series.test[:2_000] if quick and series.label[:2_000].any() else series.test
            y = series.label[: len(test)]
            for name, score in methods.items():
                started = time.process_time()
                s = score(series.train, test, seed)
                seconds[name] += time.process_time() - started
                figures = {"AUROC": roc_auc(y, s), "AP": average_precision(y, s), "VUS-PR": vus_pr(y, s)}
                if group == "ucr":
                    figures["hit"] = float(ucr_hit(y, s))
                found[name][group].append(figures)
    rows = []
    for name, per in found.items():
        row: dict[str, Any] = {"method": name}
        for group, all_figures in per.items():
            for key in ("AUROC", "AP", "VUS-PR"):
                row[f"{group} {key}"] = float(np.mean([f[key] for f in all_figures]))
            if group == "ucr":
                row["ucr hits"] = int(sum(f["hit"] for f in all_figures))
        row["CPU s"] = seconds[name]
        rows.append(row)
    by_name = {r["method"]: r for r in rows}

    def told(group: str) -> str:
        ours = [by_name[f"Themis spectral, k = {k}"][f"{group} AUROC"] for k in (2, 5, 20)]
        plain = by_name["distance from the median"][f"{group} AUROC"]
        return f"{group.upper()} {ours[0]:.3f}, {ours[1]:.3f}, {ours[2]:.3f} (distance from the median {plain:.3f})"

    counts = ", ".join(f"{len(v)} of {g}" for g, v in next(iter(found.values())).items())
    return {
        "title": "Self-similarity of frozen embeddings (Themis)",
        "claim": (
            "With the built-in bank, no training and no download, mean AUROC of the spectral residual for k = 2, 5, 20 "
            f"on channel 0: {'; '.join(told(g) for g in found['distance from the median'] if g in ('msl', 'smap'))}."
        ),
        "table": rows,
        "notes": [
            f"Series: {counts}; {left_out} without both labels left out. One seed; windows of 512, stride 256.",
            "Channel 0 only, as in the paper. Labels serve the figures alone. The paper's own tables could not be "
            "read, and its encoder is Chronos: a folder of it can be given to Themis(encoder=...), none was here.",
        ],
    }
