"""Seconds and memory of fit + score beside PyOD, scikit-learn and faiss, each case in a process of its own.

Data: five Gaussian blobs and 1 % uniform outliers; real tables are in :mod:`skerry.bench.tabular_speed_real`. Per case:
first call in the fresh process (400 rows: import, compilation or cache), then fit and score of all rows once; CPU and
wall seconds; peak memory above the level just before fit, the input not counted. Cases over the limit say so.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

LIMIT = 30  # wall seconds for one case
SIZES = [(10_000, 10), (10_000, 50), (100_000, 10), (100_000, 50), (1_000_000, 10)]
QUICK = [(2_000, 10)]
NOTES = [
    f"Every case runs in a fresh process and is stopped at {LIMIT} s of wall time.",
    "CPU seconds are user + system over all threads. Memory is read from the kernel's high-water mark.",
    "faiss computes the distances to 6 neighbours in float32 and no score.",
]
# method: {library: (module, class, arguments)}
METHODS: dict[str, dict[str, tuple[str, str, dict[str, Any]]]] = {
    "isolation forest": {
        "skerry": ("skerry.detect", "IsolationForest", {"random_state": 0}),
        "pyod": ("pyod.models.iforest", "IForest", {"random_state": 0}),
        "scikit-learn": ("sklearn.ensemble", "IsolationForest", {"random_state": 0}),
    },
    "hbos": {"skerry": ("skerry.detect", "HBOS", {}), "pyod": ("pyod.models.hbos", "HBOS", {})},
    "ecod": {"skerry": ("skerry.detect", "ECOD", {}), "pyod": ("pyod.models.ecod", "ECOD", {})},
    "copod": {"skerry": ("skerry.detect", "COPOD", {}), "pyod": ("pyod.models.copod", "COPOD", {})},
    "pca": {"skerry": ("skerry.detect", "PCA", {}), "pyod": ("pyod.models.pca", "PCA", {})},
    "loda": {
        "skerry": ("skerry.detect", "LODA", {"random_state": 0}),
        "pyod": ("pyod.models.loda", "LODA", {}),
    },
    "inne": {
        "skerry": ("skerry.detect", "INNE", {"random_state": 0}),
        "pyod": ("pyod.models.inne", "INNE", {"random_state": 0}),
    },
    "robust covariance": {
        "skerry": ("skerry.detect", "RobustCovariance", {"random_state": 0}),
        "pyod": ("pyod.models.mcd", "MCD", {"random_state": 0}),
    },
    "knn": {
        "skerry": ("skerry.detect", "KNN", {}),
        "pyod": ("pyod.models.knn", "KNN", {}),
        "faiss": ("faiss", "IndexFlatL2", {}),
    },
    "lof": {"skerry": ("skerry.detect", "LOF", {}), "pyod": ("pyod.models.lof", "LOF", {})},
    "ensemble": {"skerry": ("skerry.detect", "Ensemble", {"random_state": 0})},
}
CASE = r"""
import json, sys, time, threading, warnings, importlib, resource
warnings.simplefilter("ignore")
import numpy as np
module, name, arguments, n, d, path = json.loads(sys.argv[1])
if path:
    X = np.ascontiguousarray(np.load(path)["X"], dtype=np.float64)
else:
    rng = np.random.default_rng(0)
    centres = rng.uniform(-10, 10, size=(5, d))
    X = centres[rng.integers(0, 5, n)] + rng.normal(size=(n, d))
    X[rng.choice(n, n // 100, replace=False)] = rng.uniform(-15, 15, size=(n // 100, d))
def run(X):
    if module == "faiss":
        faiss = importlib.import_module(module)
        Z = X.astype(np.float32)
        index = faiss.IndexFlatL2(Z.shape[1]); index.add(Z)
        return index.search(Z, 6)[0][:, -1]
    model = getattr(importlib.import_module(module), name)(**arguments).fit(X)
    for method in ("anomaly_score", "decision_function"):
        if hasattr(model, method):
            return getattr(model, method)(X)
started = time.perf_counter()
run(X[:400])
first = time.perf_counter() - started
status = lambda key: next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(key)) / 1024
try:
    open("/proc/self/clear_refs", "w").write("5")
except OSError:
    pass
before = status("VmRSS")
wall, cpu = time.perf_counter(), time.process_time()
run(X)
print(json.dumps({"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall, "first": first,
                  "mib": max(0.0, status("VmHWM") - before)}))
"""


def run(quick: bool, data: Path, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    rows = measure([(n, d, None) for n, d in (QUICK if quick else SIZES)], progress)
    at = [r for r in rows if r["n"] == max(x["n"] for x in rows) and r["d"] == 10]
    return {
        "title": "Speed and memory on tables",
        "claim": f"CPU time of PyOD over ours at n = {at[0]['n']:,}, d = 10: {ratios(at)}.",
        "table": rows,
        "notes": NOTES,
    }


def measure(cases: list[tuple[int, int, Path | None]], progress: Callable[[str], None]) -> list[dict[str, Any]]:
    """Return a row for every method and case: rows and columns of blobs, or of the table at the path."""
    rows: list[dict[str, Any]] = []
    over: set[tuple[str, str, int]] = set()  # too slow at some n: not tried at a larger one of the same width
    for n, d, path in cases:
        for method, libraries in METHODS.items():
            row: dict[str, Any] = {"method": method, "table": path.stem if path else "blobs", "n": n, "d": d}
            for library, (module, name, arguments) in libraries.items():
                if path is None and (method, library, d) in over:
                    row[f"{library} CPU s"] = f"> {LIMIT} s"
                    continue
                progress(f"{method}, {library}, {row['table']}, {n} x {d}")
                found = _case(module, name, arguments, n, d, path)
                if isinstance(found, str):
                    row[f"{library} CPU s"] = found
                    if found.startswith(">") and path is None:
                        over.add((method, library, d))
                    continue
                row[f"{library} CPU s"], row[f"{library} MiB"] = found["cpu"], found["mib"]
                row[f"{library} wall s"], row[f"{library} first call s"] = found["wall"], found["first"]
            rows.append(row)
    return rows


def ratios(rows: list[dict[str, Any]]) -> str:
    """Return "method 3.1x, ..." of the rows where PyOD and ours have a figure."""
    found = [
        f"{r['method']} {r['pyod CPU s'] / r['skerry CPU s']:.1f}x"
        for r in rows
        if isinstance(r.get("pyod CPU s"), float) and isinstance(r.get("skerry CPU s"), float)
    ]
    return ", ".join(found) or "no peer"


def _case(
    module: str, name: str, arguments: dict[str, Any], n: int, d: int, path: Path | None = None
) -> dict[str, float] | str:
    case = json.dumps([module, name, arguments, n, d, None if path is None else str(path)])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    try:
        done = subprocess.run(
            [sys.executable, "-c", CASE, case],
            capture_output=True,
            text=True,
            timeout=LIMIT,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"> {LIMIT} s"
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["failed"])[-1]
        return "not installed" if "ModuleNotFoundError" in last else last[:60]
    return json.loads(done.stdout.strip().splitlines()[-1])
