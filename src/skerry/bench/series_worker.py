"""Score series with one method in a process of its own, under a limit of CPU seconds: the worker of the series study.

It runs as a script, also under the interpreter of a peer that has an environment of its own, so it imports NumPy and
nothing of Skerry. ``python series_worker.py METHODS.py NAME SEED LIMIT`` reads lines ``series.npz TAB scores.npz``;
for each it writes the scores and prints one line of JSON. The methods file has ``METHODS``: a dict of
``score(train, test, seed) -> scores (T,) or (scores, flags)``. A series over the limit ends the process with
SIGXCPU, and the caller starts a new one for the rest.
"""

import contextlib
import importlib.util
import json
import os
import resource
import sys
import time
import warnings

import numpy as np

WARM_SECONDS = 120  # imports and compilation, outside the clock


def cpu_seconds():
    """Return user and system seconds of this process and of those it started and that have ended."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in both)


def limit_cpu(seconds):
    """Let the kernel end the process after so many more CPU seconds."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(np.ceil(cpu_seconds() + seconds)), hard))


def load(path):
    """Return METHODS of a file."""
    spec = importlib.util.spec_from_file_location("series_methods_here", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.METHODS


def warm_series():
    """Return a short series without and with a bump, that every method can be tried on."""
    rng = np.random.RandomState(0)
    x = np.sin(np.arange(900) / 6.0)[:, None] * [1.0, 0.5] + 0.05 * rng.normal(size=(900, 2))
    x[700:720] += 2.0
    return x[:500], x[500:]


def one(score, source, target, seed):
    """Score one file; return what is told about it."""
    with np.load(source) as z:
        train, test = z["train"], z["test"]
    cpu, wall = cpu_seconds(), time.perf_counter()
    try:
        found = score(train, test, seed)
    except Exception as error:  # a peer that breaks is a result, not the end of the study
        return {"problem": f"{type(error).__name__}: {str(error).strip()[:160]}"}
    spent = {"cpu": cpu_seconds() - cpu, "wall": time.perf_counter() - wall}
    scores, flags = found if isinstance(found, tuple) else (found, None)
    scores = np.asarray(scores, dtype=np.float64).ravel()
    if scores.shape != (len(test),):
        return {"problem": f"{scores.shape[0]} scores for {len(test)} steps"}
    spent["not finite"] = int((~np.isfinite(scores)).sum())
    scores = np.nan_to_num(scores, nan=np.nanmin(np.where(np.isfinite(scores), scores, np.inf), initial=0.0))
    np.savez(target, scores=scores, **({} if flags is None else {"flags": np.asarray(flags, dtype=bool)}))
    return spent


def main(arguments):
    """Serve the lines of standard input."""
    warnings.simplefilter("ignore")
    methods, name, seed, limit = arguments[0], arguments[1], int(arguments[2]), float(arguments[3])
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a peer prints is not an answer
    sys.path[:] = [p for p in sys.path if os.path.abspath(p or ".") != os.path.dirname(os.path.abspath(__file__))]
    limit_cpu(WARM_SECONDS)
    try:
        score = load(methods)[name]
        np.random.seed(seed)  # noqa: NPY002 - some peers draw from the global state
        with contextlib.suppress(ValueError):  # too short for some: the series themselves will tell
            score(*warm_series(), seed)
    except Exception as error:
        out.write(json.dumps({"absent": f"{type(error).__name__}: {str(error).strip()[:160]}"}) + "\n")
        return
    out.write(json.dumps({"ready": True}) + "\n")
    for line in sys.stdin:
        source, target = line.rstrip("\n").split("\t")
        np.random.seed(seed)  # noqa: NPY002
        limit_cpu(limit)
        out.write(json.dumps(one(score, source, target, seed)) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
