"""Rank one table by the command of Skerry and by the published ``outrank`` package, each as a process of its own.

Both read the same CSV file from disk, and both are charged the CPU seconds of their whole process, start and imports
among them. The package runs under the interpreter that SKERRY_OUTRANK_PYTHON names, else under the current one.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Ranked", "by_package", "by_skerry"]


@dataclass
class Ranked:
    """What one run gave.

    Attributes
    ----------
    scores : dict of str to float
        Of each column against the target.
    pairs : dict of frozenset of str to float
        Of pairs, where asked for.
    cpu, wall : float
        Seconds of the whole process.
    inside : float
        CPU seconds of reading and ranking alone, where the process tells them.
    problem : str
        Why there is no result; empty if there is one.
    """

    scores: dict[str, float] = field(default_factory=dict)
    pairs: dict[frozenset[str], float] = field(default_factory=dict)
    cpu: float = 0.0
    wall: float = 0.0
    inside: float = 0.0
    problem: str = ""

    @property
    def order(self) -> list[str]:
        """Columns, best first."""
        return sorted(self.scores, key=lambda v: -self.scores[v])


def _timed(command: list[str], timeout: float, folder: str) -> tuple[Any, float, float]:
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, cwd=folder)
    except subprocess.TimeoutExpired:
        done = None
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - start
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def by_skerry(path: Path, target: str, *options: str, timeout: float = 900) -> Ranked:
    """Run ``skerry rank``; compiled loops must be in the cache already (run it once before)."""
    code = "from skerry.app.cli import main; main()"
    command = [sys.executable, "-c", code, "rank", str(path), "--target", target, "--json", *options]
    done, cpu, wall = _timed(command, timeout, str(path.parent))
    if done is None or done.returncode:
        return Ranked(cpu=cpu, wall=wall, problem="stopped" if done is None else done.stderr.strip()[-160:])
    found = json.loads(done.stdout)
    pairs = {frozenset((r["a"], r["b"])): r["score"] for r in found.get("pairs", [])}
    scores = {r["feature"]: r["score"] for r in found["ranking"]}
    return Ranked(scores, pairs, cpu, wall, found["cpu_seconds"])


def by_package(path: Path, target: str, *, pairs: bool = False, timeout: float = 300) -> Ranked:
    """Run the package on ``path``, which must be named ``data.csv``."""
    import polars as pl

    python = os.environ.get("SKERRY_OUTRANK_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import outrank"], capture_output=True, check=False).returncode:
        return Ranked(problem="not installed")
    with tempfile.TemporaryDirectory() as out:
        arguments = {
            "task": "ranking", "data_path": str(path.parent), "data_source": "csv-raw",
            "heuristic": "MI-numba-randomized", "target_ranking_only": str(not pairs), "subsampling": "1",
            "minibatch_size": "16384", "num_threads": "2", "label_column": target, "output_folder": out,
            "disable_tqdm": "True",
        }  # fmt: skip
        command = [python, "-m", "outrank", *(part for k, v in arguments.items() for part in (f"--{k}", v))]
        done, cpu, wall = _timed(command, timeout, out)
        if done is None:
            return Ranked(cpu=cpu, wall=wall, problem=f"stopped after {timeout:.0f} s")
        found = Path(out) / "pairwise_ranks.tsv"
        if not found.is_file():
            said = (done.stderr.strip().splitlines() or ["no message"])[-1][:160]
            return Ranked(cpu=cpu, wall=wall, problem=f"failed: {said}")
        table = pl.read_csv(found, separator="\t", quote_char=None)
    ranked = Ranked(cpu=cpu, wall=wall)
    for a, b, score in table.select("FeatureA", "FeatureB", "Score").iter_rows():
        first, second = (v.rsplit("-(", 1)[0] for v in (a, b))
        ranked.pairs[frozenset((first, second))] = float(score)
        if target in (first, second) and first != second:
            ranked.scores[second if first == target else first] = float(score)
    return ranked
