"""Cardinality-aware ranking beside the published package: planted columns, seconds, and real tables.

The synthetic table is the brief's: 20 columns each of 2, 10, 100, 1,000 and 10,000 values (Zipf 1.05); a
binary
target from columns f3, f25, f45 and the exclusive or of f5 and f6. The package runs as its own process,
found by
SKERRY_OUTRANK_PYTHON or in the current interpreter, on the same rows.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

PLANTED = ("f3", "f25", "f45")
PEER_TIMEOUT = 300  # seconds


def planted_table(n: int, seed: int) -> Any:
    """Return the synthetic table of n rows as a polars frame of strings; about 22 % of labels are 1."""
    import polars as pl

    rng = np.random.default_rng(seed)
    columns = {}
    for group, card in enumerate((2, 10, 100, 1_000, 10_000)):
        weight = 1.0 / np.arange(1, card + 1) ** 1.05
        for t in range(20):
            columns[f"f{20 * group + t}"] = rng.choice(card, n, p=weight / weight.sum())
    drive = 0.6 * columns["f3"] + 0.6 * np.sin(columns["f25"]) + 0.5 * np.sin(1.7 * columns["f45"])
    drive = drive + 1.2 * (columns["f5"] ^ columns["f6"])
    low, high = -20.0, 20.0
    for _ in range(60):  # the intercept that gives the positive rate
        middle = (low + high) / 2
        low, high = (middle, high) if np.mean(1 / (1 + np.exp(-drive - middle))) < 0.22 else (low, middle)
    columns["label"] = (rng.random(n) < 1 / (1 + np.exp(-drive - low))).astype(np.int64)
    return pl.DataFrame({name: values.astype(str) for name, values in columns.items()})


def _ranks(names: list[str], wanted: tuple[str, ...]) -> str:
    return ", ".join(str(names.index(w) + 1) if w in names else "-" for w in wanted)


def _ours(frame: Any, target: str, **options: Any) -> tuple[Any, float, float]:
    from skerry.rank.outrank import OutRank

    OutRank(**options).fit(frame, target=target)  # compile, or load from the cache, for the same sizes
    cpu, wall = time.process_time(), time.perf_counter()
    ranker = OutRank(**options).fit(frame, target=target)
    return ranker, time.process_time() - cpu, time.perf_counter() - wall


def _peer(frame: Any, target: str, timeout: float) -> tuple[list[str] | None, float, float, str]:
    """Run the package, target only; return its order, CPU and wall seconds, and what went wrong if
    anything did."""
    import polars as pl

    python = os.environ.get("SKERRY_OUTRANK_PYTHON", sys.executable)
    probe = subprocess.run([python, "-c", "import outrank"], capture_output=True, check=False)
    if probe.returncode:
        return None, 0.0, 0.0, "not installed"
    with tempfile.TemporaryDirectory() as folder:
        frame.write_csv(Path(folder) / "data.csv")
        out = Path(folder) / "out"
        command = [
            python,
            "-m",
            "outrank",
            "--task",
            "ranking",
            "--data_path",
            folder,
            "--data_source",
            "csv-raw",
        ]
        command += [
            "--heuristic",
            "MI-numba-randomized",
            "--target_ranking_only",
            "True",
            "--subsampling",
            "1",
        ]
        command += ["--minibatch_size", "16384", "--num_threads", "2", "--label_column", target]
        command += ["--output_folder", str(out), "--disable_tqdm", "True"]
        before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, cwd=folder)
        except subprocess.TimeoutExpired:
            return None, 0.0, timeout, f"stopped after {timeout:.0f} s"
        after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - wall
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        path = out / "pairwise_ranks.tsv"
        if not path.is_file():
            return (
                None,
                cpu,
                wall,
                "failed: " + (done.stderr.strip().splitlines() or ["no message"])[-1][:160],
            )
        pairs = pl.read_csv(path, separator="\t", quote_char=None)
        scores = {}
        for a, b, s in pairs.select("FeatureA", "FeatureB", "Score").iter_rows():
            a, b = (v.rsplit("-(", 1)[0] for v in (a, b))
            if target in (a, b) and a != b:
                scores[b if a == target else a] = float(s)
        return sorted(scores, key=lambda v: -scores[v]), cpu, wall, ""


def _row(method: str, ranks: str, cpu: float, wall: float) -> dict[str, object]:
    return {
        "method": method,
        "ranks of f3, f25, f45": ranks,
        "CPU s": round(cpu, 2) if cpu else None,
        "wall s": round(wall, 2) if wall else None,
    }


def run(quick: bool, data: Path, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Run the study."""
    import polars as pl
    from scipy.stats import spearmanr

    n = 20_000 if quick else 100_000
    frame = planted_table(n, seed)
    table, notes = [], []
    cpus: dict[str, float] = {}
    for correction in ("none", "shift", "expected", "permutation"):
        ranker, cpu, wall = _ours(frame, "label", correction=correction)
        names = ranker.ranking_["feature"].to_list()
        table.append(_row(f"Skerry, {correction}", _ranks(names, PLANTED), cpu, wall))
        cpus[correction] = cpu
        progress(f"Skerry, {correction}: ranks {table[-1]['ranks of f3, f25, f45']}, {cpu:.2f} CPU s")
    ours = names
    ranker, cpu, wall = _ours(frame, "label", pairwise=True)
    table.append(_row(f"Skerry, all {ranker.pairs_.height:,} pairs", "", cpu, wall))
    progress(f"all pairs: {cpu:.2f} CPU s")
    ranker, cpu, wall = _ours(frame, "label", interaction_order=2)
    names = ranker.ranking_["feature"].to_list()
    crosses = [v for v in names if " AND " in v]
    xor = crosses.index("f5 AND f6") + 1
    table.append(_row(f"Skerry, {len(crosses):,} crosses (f5 AND f6 is {xor})", _ranks(names, PLANTED), cpu, wall))
    progress(f"crosses: {cpu:.2f} CPU s, the planted pair is number {xor}")
    order, cpu, wall, problem = _peer(frame, "label", 50 if quick else PEER_TIMEOUT)
    if order is None:
        table.append({"method": f"outrank ({problem})"})
        notes.append(f"The package outrank was {problem}; pip install outrank 'xxhash<4', SKERRY_OUTRANK_PYTHON.")
        beside = "the published package did not give a result in this run"
    else:
        table.append(_row("outrank, MI-numba-randomized", _ranks(order, PLANTED), cpu, wall))
        beside = f"the published package {_ranks(order, PLANTED)} in {cpu:.1f} CPU s"
    progress(beside)
    real = []
    folder = data / "categorical"
    for name, target in (("adult", "income"), ("nsl_kdd_train20", "label")):
        path = folder / f"{name}.parquet"
        if not path.is_file():
            notes.append(f"{name}.parquet is absent: left out.")
            continue
        rows = pl.read_parquet(path).with_columns(pl.all().cast(pl.String).fill_null(""))
        ranker, cpu, wall = _ours(rows, target)
        mine = ranker.ranking_["feature"].to_list()
        row = {"table": name, "rows": rows.height, "top 3": ", ".join(mine[:3]), "CPU s": round(cpu, 2)}
        if not quick and not problem:
            order, peer_cpu, _, wrong = _peer(rows, target, PEER_TIMEOUT)
            row["outrank CPU s"] = round(peer_cpu, 2)
            row["outrank top 3"] = ", ".join(order[:3]) if order else wrong
            if order:
                both = [v for v in mine if v in order]
                row["rank agreement"] = round(float(spearmanr(range(len(both)), [order.index(v) for v in both])[0]), 3)
        real.append(row)
        progress(f"{name}: {row}")
    found = _ranks(ours, PLANTED)
    claim = (
        f"On {n:,} rows of 100 columns the planted columns rank {found} in "
        f"{cpus['permutation']:.2f} CPU s; {beside}; "
        f"the cross of f5 and f6 is number {xor} of {len(crosses):,}."
    )
    notes.append("Seconds include encoding and the quality report, after compilation; the package's, its start.")
    return {
        "title": "Cardinality-aware feature ranking",
        "table": table,
        "tables": {"real tables": real},
        "claim": claim,
        "notes": notes,
    }
