"""The labelled tables that the table studies run on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from skerry.core.errors import DataError

__all__ = ["adbench_tables", "apart_tables"]

Labelled = tuple[str, NDArray[np.float64], NDArray[np.int64]]


def adbench_tables(data: Path, *, max_rows: int | None = None, seed: int = 0) -> list[Labelled]:
    """Return ``(name, X, y)`` of every development table, those in ``data/adbench``, columns scaled to 0..1.

    Parameters
    ----------
    data : Path
    max_rows : int, optional
        Larger tables are cut to a uniform sample of this many rows (the share of anomalies is kept by stratum).
    seed : int, default 0

    Raises
    ------
    DataError
        If the folder holds no table.
    """
    paths = sorted((data / "adbench").glob("*.npz"), key=lambda p: int(p.stem.split("_")[0]))
    if not paths:
        raise DataError(f"{data}: no adbench/*.npz there; see --data")
    return [_table(p.stem.split("_", 1)[1], p, max_rows, seed) for p in paths]


def apart_tables(data: Path, *, max_rows: int | None = None, seed: int = 0) -> list[Labelled]:
    """Return ``(name, X, y)`` of the tables kept apart from development: features of images and of texts.

    They lie in ``data/adbench_cv`` and ``data/adbench_nlp``; arguments and errors are those of :func:`adbench_tables`.
    """
    found = {folder: sorted((data / folder).rglob("*.npz")) for folder in ("adbench_cv", "adbench_nlp")}
    if not any(found.values()):
        raise DataError(f"{data}: no adbench_cv/*/*.npz and no adbench_nlp/*.npz there; see --data")
    named = [(str(p.relative_to(data / folder).with_suffix("")), p) for folder, paths in found.items() for p in paths]
    return [_table(name, p, max_rows, seed) for name, p in named]


def _table(name: str, path: Path, max_rows: int | None, seed: int) -> Labelled:
    with np.load(path, allow_pickle=False) as z:
        X, y = np.asarray(z["X"], dtype=np.float64), np.asarray(z["y"], dtype=np.int64).ravel()
    if max_rows is not None and len(X) > max_rows:
        rng = np.random.default_rng(seed)
        n_bad = max(1, round(max_rows * y.mean()))
        keep = np.r_[
            rng.choice(np.flatnonzero(y == 1), n_bad, replace=False),
            rng.choice(np.flatnonzero(y == 0), max_rows - n_bad, replace=False),
        ]
        keep.sort()
        X, y = X[keep], y[keep]
    low, span = X.min(axis=0), np.ptp(X, axis=0)
    return name, np.ascontiguousarray((X - low) / np.where(span > 0, span, 1)), y
