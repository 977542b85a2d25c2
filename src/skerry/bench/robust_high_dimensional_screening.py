"""Part one of the robust high-dimensional study: does mutual information find columns that act nonlinearly?

y = x1^2 + 1.5 |x2| + 0.5 x3 + 0.5 e among columns of noise; once as it is, once as two classes cut at its median.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import time

import numpy as np
from sklearn.feature_selection import mutual_info_classif, mutual_info_regression

from skerry.rank.mutual_information_screen import mutual_information

__all__ = ["screening"]

PEER_COLUMNS = 200  # the published package takes tens of milliseconds a column


def screening(n, p, seed, progress):
    """Return (rows for the continuous outcome, rows for two classes, notes)."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, p))
    y = X[:, 0] ** 2 + 1.5 * np.abs(X[:, 1]) + 0.5 * X[:, 2] + 0.5 * rng.normal(size=n)
    classes = (y > np.median(y)).astype(int)
    status = _status()
    continuous = [_row(name, score, X, y, progress) for name, score in _methods(seed, False)]
    binary = [_row(name, score, X, classes, progress) for name, score in _methods(seed, True)]
    if status == "run":
        continuous.append(_row("fastHDMI, continuous", _published(False), X[:, :PEER_COLUMNS], y, progress))
        binary.append(_row("fastHDMI, binary", _published(True), X[:, :PEER_COLUMNS], classes, progress))
    else:
        continuous.append({"estimator": "fastHDMI", "status": status})
        binary.append({"estimator": "fastHDMI", "status": status})
    seen = min(PEER_COLUMNS, p)
    note = f"its ranks are among the first {seen} columns" if status == "run" else status
    version = f" {importlib.metadata.version('fastHDMI')}" if status == "run" else ""
    notes = [f"fastHDMI{version}: {note}; `bandwidth as published` is our code at the bandwidth that it really uses."]
    return continuous, binary, notes


def _methods(seed, binary):
    def ours(**options):
        return lambda A, t: mutual_information(A, t, **options)

    for name in ("fftkde", "binning", "knn", "pearson"):
        yield f"skerry {name}", ours(estimator=name)
    yield "skerry fftkde, Sheather-Jones", ours(bandwidth="sheather-jones")
    yield "skerry fftkde, bandwidth as published", ours(bandwidth="official")
    peer = mutual_info_classif if binary else mutual_info_regression
    yield f"scikit-learn {peer.__name__}", lambda A, t: peer(A, t, random_state=seed, n_jobs=1)


def _status():
    if importlib.util.find_spec("fastHDMI") is None:
        return "not installed"
    try:
        importlib.import_module("fastHDMI")
    except ImportError as error:
        return f"not run: {error}"
    return "run"


def _published(binary):
    def score(A, t):
        from fastHDMI import MI_binary_continuous, MI_continuous_continuous

        if binary:
            return [MI_binary_continuous(t.astype(float), column, 1.0) for column in A.T]
        return [MI_continuous_continuous(column, t, 1.0) for column in A.T]

    return score


def _row(name, score, X, y, progress):
    progress(f"screening: {name}")
    score(X[:, :4], y)  # compiled before the clock starts
    started, cpu = time.perf_counter(), time.process_time()
    scores = np.asarray(score(X, y), dtype=float)
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    rank = [1 + int(np.sum(scores > scores[j])) for j in range(3)]
    signals = ("x1^2", "|x2|", "x3")
    return {
        "estimator": name,
        "columns": X.shape[1],
        **{f"rank {s}": r for s, r in zip(signals, rank, strict=True)},
        "worst rank": max(rank),
        **{f"MI {s}": float(scores[j]) for j, s in enumerate(signals)},
        "MI noise, median": float(np.median(scores[3:])),
        "ms per column": 1e3 * wall / X.shape[1],
        "CPU ms per column": 1e3 * cpu / X.shape[1],
        "status": "run",
    }
