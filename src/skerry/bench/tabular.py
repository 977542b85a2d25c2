"""Accuracy on labelled tables: every detector of Skerry and of PyOD, the same rows, seeds and clock.

Unsupervised, transductive protocol: fit and score all rows, labels only for the figures. Deterministic methods
run once; the others run with five seeds. Every call's CPU time counts fit and scoring of all rows once.
"""

from __future__ import annotations

import importlib
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from skerry.bench.tables import Labelled, adbench_tables
from skerry.core.metrics import average_precision, roc_auc
from skerry.detect.tabular.registry import DETECTORS, make_detector

DEFAULT = "skerry ensemble"
MAX_ROWS = 10_000
BUDGET_SECONDS = 20.0  # CPU seconds for one fit; a peer over it on some table is left out of the rest
SEEDED = {
    "ensemble",
    "isolation-forest",
    "reference-neighbours",
    "inne",
    "loda",
    "cblof",
    "robust-covariance",
}
OURS = [n for n in DETECTORS if n not in ("autoencoder", "autood")]  # these have studies of their own
PYOD = {
    "IForest": ("pyod.models.iforest", True),
    "KNN": ("pyod.models.knn", False),
    "LOF": ("pyod.models.lof", False),
    "HBOS": ("pyod.models.hbos", False),
    "ECOD": ("pyod.models.ecod", False),
    "COPOD": ("pyod.models.copod", False),
    "PCA": ("pyod.models.pca", False),
    "MCD": ("pyod.models.mcd", True),
    "INNE": ("pyod.models.inne", True),
    "CBLOF": ("pyod.models.cblof", True),
    "LODA": ("pyod.models.loda", False),
    "GMM": ("pyod.models.gmm", True),
    "OCSVM": ("pyod.models.ocsvm", False),
    "KDE": ("pyod.models.kde", False),
    "QMCD": ("pyod.models.qmcd", False),
    "Sampling": ("pyod.models.sampling", True),
}


def _our_scores(name: str) -> Callable[[np.ndarray, int], np.ndarray]:
    return lambda X, seed: make_detector(name, random_state=seed).fit_score(X)


def _pyod_scores(name: str, module: str, seeded: bool) -> Callable[[np.ndarray, int], np.ndarray]:
    cls = getattr(importlib.import_module(module), name)

    def scores(X: np.ndarray, seed: int) -> np.ndarray:
        np.random.seed(seed)  # noqa: NPY002 - LODA and others draw from the global state
        model = cls(random_state=seed) if seeded else cls()
        return model.fit(X).decision_scores_

    return scores


def _engine_scores(X: np.ndarray, seed: int) -> np.ndarray:
    """PyOD's automatic choice."""
    from pyod.utils.ad_engine import ADEngine

    np.random.seed(seed)  # noqa: NPY002
    result = ADEngine().detect(X)
    for key in ("scores", "decision_scores", "scores_train"):
        if isinstance(result, dict) and result.get(key) is not None:
            return np.asarray(result[key], dtype=float)
    raise TypeError(f"unknown result of ADEngine.detect: {type(result).__name__}")


def methods() -> tuple[dict[str, tuple[Callable[[np.ndarray, int], np.ndarray], bool]], list[str]]:
    """Return name -> (scores(X, seed), draws?), and the notes on peers that are absent."""
    found: dict[str, tuple[Callable[[np.ndarray, int], np.ndarray], bool]] = {}
    notes = []
    for name in OURS:
        found[f"skerry {name}"] = (_our_scores(name), name in SEEDED)
    for name, (module, seeded) in PYOD.items():
        try:
            found[f"pyod {name}"] = (_pyod_scores(name, module, seeded), seeded or name == "LODA")
        except (ImportError, AttributeError) as error:
            notes.append(f"pyod {name}: not installed or not importable ({type(error).__name__})")
    try:
        importlib.import_module("pyod.utils.ad_engine")
        found["pyod ADEngine"] = (_engine_scores, True)
    except ImportError:
        notes.append("pyod ADEngine: not installed")
    return found, notes


def run(quick: bool, data: Path, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    tables = adbench_tables(data, max_rows=2_000 if quick else MAX_ROWS, seed=seed)
    return {"title": "Accuracy on the development tables", **compared(tables, quick, seed, progress)}


def compared(tables: list[Labelled], quick: bool, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Run every method on every table; return the claim, the figures of each method and table, and the notes."""
    seeds = [seed] if quick else [seed + i for i in range(5)]
    todo, notes = methods()
    _warm(todo, tables)
    figures: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    failed: dict[str, str] = {}
    for table, X, y in tables:
        progress(f"{table}: {X.shape[0]} x {X.shape[1]}")
        for name, (scores, draws) in todo.items():
            if name in failed:
                continue
            try:
                figures[name][table] = _measured(scores, X, y, seeds if draws else seeds[:1], table)
            except Exception as error:  # a peer that breaks is a result, not the end of the study
                failed[name] = f"{name}: left out after {table}: {type(error).__name__}: {str(error)[:120]}"
                figures.pop(name, None)
    rows = sorted((_summary(name, per) for name, per in figures.items()), key=lambda r: -r["mean AUROC"])
    best = [r["method"] for r in rows[:8]]
    if DEFAULT not in best:
        best.append(DEFAULT)
    most = max(len(y) for _, _, y in tables)
    return {
        "claim": _claim(rows),
        "table": rows,
        "tables": {
            "AUROC by table, the best and the default": [
                {"table": t, "n": len(y), **{n: figures[n][t]["auroc"] for n in best if n in figures}}
                for t, _, y in tables
            ]
        },
        "notes": [
            f"{len(tables)} tables, at most {most:,} rows each, columns scaled to 0..1; "
            f"{len(seeds)} seeds for methods that draw; CPU seconds are summed over tables, mean over seeds.",
            *notes,
            *failed.values(),
        ],
    }


def _measured(scores: Any, X: np.ndarray, y: np.ndarray, seeds: list[int], table: str) -> dict[str, float]:
    aurocs, aps, seconds = [], [], []
    for s in seeds:
        started = time.process_time()
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            value = np.nan_to_num(np.asarray(scores(X, s), dtype=float), nan=0.0, posinf=1e300)
        seconds.append(time.process_time() - started)
        aurocs.append(roc_auc(y, value))
        aps.append(average_precision(y, value))
        if seconds[-1] > BUDGET_SECONDS:
            raise TimeoutError(f"{seconds[-1]:.0f} CPU s on {table}")
    return {"auroc": np.mean(aurocs), "ap": np.mean(aps), "s": np.mean(seconds), "sd": np.std(aurocs)}


def _summary(name: str, per: dict[str, dict[str, float]]) -> dict[str, Any]:
    return {
        "method": name,
        "mean AUROC": np.mean([v["auroc"] for v in per.values()]),
        "mean AP": np.mean([v["ap"] for v in per.values()]),
        "median AUROC": np.median([v["auroc"] for v in per.values()]),
        "tables under 0.5": sum(v["auroc"] < 0.5 for v in per.values()),
        "seed sd": np.mean([v["sd"] for v in per.values()]),
        "CPU s": sum(v["s"] for v in per.values()),
    }


def _claim(rows: list[dict[str, Any]]) -> str:
    ours = next((r for r in rows if r["method"] == DEFAULT), None)
    if ours is None:
        return "The default gave no result."
    peers = [r for r in rows if r["method"].startswith("pyod") and r["method"] != "pyod ADEngine"]
    claim = (
        f"The default reaches mean AUROC {ours['mean AUROC']:.3f} and AP {ours['mean AP']:.3f}"
        f" in {ours['CPU s']:.1f} CPU s"
    )
    if peers:
        by_auc, by_ap = max(peers, key=lambda r: r["mean AUROC"]), max(peers, key=lambda r: r["mean AP"])
        claim += (
            f"; the best single PyOD detector {by_auc['mean AUROC']:.3f}"
            f" ({by_auc['method']}, {by_auc['CPU s']:.1f} CPU s)"
            f" and {by_ap['mean AP']:.3f} ({by_ap['method']}): {ours['mean AUROC'] - by_auc['mean AUROC']:+.3f} and"
            f" {ours['mean AP'] - by_ap['mean AP']:+.3f}"
        )
    return claim + "."


def _warm(todo: dict[str, Any], tables: list) -> None:
    """Compile and import everything once, outside the clock."""
    X = tables[0][1][:300]
    for scores, _ in todo.values():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                scores(X, 0)
        except Exception:
            continue
