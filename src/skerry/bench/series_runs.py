"""Run methods on series in worker processes under a CPU limit, keep every result at once, go on after interruptions.

A method's results lie in one file of JSON lines in the cache folder (``SKERRY_CACHE``, else
``~/.cache/skerry``). A line counts only while the method's code or its package's version is the one it was
made with; half a line, as an interruption leaves it, counts as none.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["AEON_PYTHON", "Case", "Method", "Runs", "our_methods", "peer_methods"]

HERE = Path(__file__).parent
AEON_PYTHON = "SKERRY_AEON_PYTHON"
STRIKES = 2  # series over the limit after which a method is not tried on those that are at least as large
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "POLARS_MAX_THREADS"), "1"
)


@dataclass(frozen=True)
class Case:
    """A series on disk, as a worker reads it.

    Attributes
    ----------
    key : str
        ``group/name``, and what was cut off, if anything.
    path : Path
        An ``.npz`` with ``train`` and ``test``.
    size : int
        Values in both parts.
    """

    key: str
    path: Path
    size: int


@dataclass(frozen=True)
class Method:
    """A method of a methods file, the interpreter it runs under, and what its results depend on."""

    name: str
    file: Path
    python: str
    version: str
    problem: str = ""


def _digest(*paths: Path) -> str:
    whole = hashlib.sha256()
    for path in sorted(paths):
        whole.update(path.read_bytes())
    return whole.hexdigest()[:12]


def our_methods(names: list[str]) -> list[Method]:
    """Return the methods of :mod:`skerry.bench.series_methods` by name; a peer that is not installed says so."""
    file, root = HERE / "series_methods.py", HERE.parent
    tabular = [root / "detect/tabular" / f"{n}.py" for n in ("pca", "reference_neighbours", "isolation_forest")]
    core = [root / "core" / f"{n}.py" for n in ("series_detector", "threshold")]
    names_of_series = ("ensemble", "channel_components", "switch_surprise", "forecast", "half_space_trees",
                       "matrix_profile", "seasonal_residual", "spectral_residual", "themis", "windowed",
                       "convolutional_bank", "self_similarity")  # fmt: skip
    own = _digest(*(root / "detect/series" / f"{n}.py" for n in names_of_series), *tabular, *core)
    out = []
    for name in names:
        package = name.split()[0]
        version, problem = own, ""
        if package in ("pyod", "stumpy"):
            try:
                version = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                problem = "not installed"
        elif package == "baseline":
            version = _digest(file)
        out.append(Method(name, file, sys.executable, version, problem))
    return out


def peer_methods() -> list[Method]:
    """Return aeon's detectors under the interpreter that SKERRY_AEON_PYTHON names, else under the current one."""
    file, python = HERE / "series_aeon.py", os.environ.get(AEON_PYTHON, sys.executable)
    names = re.findall(r'^    "(aeon [^"]+)":', file.read_text(), flags=re.MULTILINE)
    code = "import importlib.metadata as m; print(m.version('aeon'), m.version('pyod'))"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False, timeout=60)
        version = done.stdout.strip() if done.returncode == 0 else ""
    except (OSError, subprocess.TimeoutExpired):
        version = ""
    problem = "" if version else "not installed"
    return [Method(name, file, python, version, problem) for name in names]


@dataclass
class Runs:
    """Results of methods on cases, from the cache or made now.

    Attributes
    ----------
    cache, work : Path
        Where results are kept, and where scores of the moment are written.
    limit : float
        CPU seconds for fitting and scoring one series.
    seed : int
    progress : callable
    deadline : float
        Of ``time.monotonic()``; no series is begun after it. What is done is kept, and a later run goes on.
    """

    cache: Path
    work: Path
    limit: float
    seed: int
    progress: Callable[[str], None] = lambda text: None
    deadline: float = math.inf

    def run(
        self,
        method: Method,
        cases: list[Case],
        measure: Callable[[str, NDArray, NDArray | None], dict[str, Any]],
    ) -> dict[str, dict[str, Any]]:
        """Return key -> result: ``cpu``, ``wall`` and what ``measure(key, scores, flags)`` gives, or ``problem``."""
        done: dict[str, dict[str, Any]] = {}
        if method.problem:
            return done
        path = self.cache / f"{re.sub(r'[^A-Za-z0-9]+', '-', method.name).strip('-')}.jsonl"
        stamp = f"{method.version} seed {self.seed}"
        known = {r["key"]: r for r in _lines(path) if r.get("stamp") == stamp}
        todo = []
        for case in sorted(cases, key=lambda c: (c.size, c.key)):
            old = known.get(case.key)
            if old is None or (old.get("problem") == "over the limit" and old["limit"] < self.limit):
                todo.append(case)
            else:
                done[case.key] = old
        strikes = [c for c in cases if done.get(c.key, {}).get("problem") == "over the limit"]
        path.parent.mkdir(parents=True, exist_ok=True)
        while todo:
            if len(strikes) >= STRIKES and (least := sorted(c.size for c in strikes)[STRIKES - 1]) <= todo[-1].size:
                for case in [c for c in todo if c.size >= least]:
                    done[case.key] = {"problem": "not tried, over the limit on smaller ones", "limit": self.limit}
                todo = [c for c in todo if c.size < least]
                continue
            if time.monotonic() >= self.deadline:
                break
            for case, result in self._served(method, todo, measure):
                if "absent" in result:
                    done.update({c.key: {"problem": result["absent"]} for c in todo})
                    return done
                result |= {"key": case.key, "stamp": stamp, "limit": self.limit}
                done[case.key] = result
                with path.open("a") as file:
                    file.write(json.dumps(result) + "\n")
                todo = todo[1:]
                if result.get("problem") == "over the limit":
                    strikes.append(case)
        return done

    def _served(self, method: Method, cases: list[Case], measure: Callable) -> Iterator[tuple[Case, dict[str, Any]]]:
        """Yield results until the cases end or the worker does."""
        command = [method.python, str(HERE / "series_worker.py"), str(method.file), method.name, str(self.seed)]
        worker = subprocess.Popen(
            [*command, str(self.limit)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | ONE_THREAD,
        )
        assert worker.stdin and worker.stdout
        target = self.work / f"{abs(hash(method.name))}.npz"
        try:
            ready = worker.stdout.readline()
            told = json.loads(ready) if ready else {"absent": "over 120 CPU s on the 900 steps of the first call"}
            if "absent" in told:
                yield cases[0], told
                return
            for case in cases:
                if time.monotonic() > self.deadline:
                    return
                self.progress(f"{method.name}: {case.key}")
                try:
                    worker.stdin.write(f"{case.path}\t{target}\n")
                    worker.stdin.flush()
                    line = worker.stdout.readline()
                except BrokenPipeError:
                    line = ""
                if not line:
                    code = worker.wait()
                    over = code in (-signal.SIGXCPU, -signal.SIGKILL)
                    yield case, {"problem": "over the limit" if over else f"the process ended with {code}"}
                    return
                result = json.loads(line)
                if "problem" not in result:
                    with np.load(target) as z:
                        result |= measure(case.key, z["scores"], z["flags"] if "flags" in z.files else None)
                yield case, result
        finally:
            worker.kill()
            worker.wait()


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue
