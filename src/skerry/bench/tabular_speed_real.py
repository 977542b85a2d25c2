"""The speed study on real tables: see :mod:`skerry.bench.tabular_speed`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from skerry.bench.tabular_speed import NOTES, QUICK, measure, ratios
from skerry.core.errors import DataError

REAL = ("1_ALOI", "24_mnist", "25_musk", "32_shuttle")


def run(quick: bool, data: Path, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    paths = [path for name in REAL if (path := data / "adbench" / f"{name}.npz").is_file()]
    if not paths:
        raise DataError(f"none of the tables {', '.join(REAL)} is in {data / 'adbench'}")
    cases: list[tuple[int, int, Path | None]] = [(*_shape(path), path) for path in paths[-1:] if quick]
    if not quick:
        cases = [(*_shape(path), path) for path in paths]
    rows = measure(cases or [(*QUICK[0], None)], progress)
    tables = list(dict.fromkeys(r["table"] for r in rows))
    slower = [
        f"{r['method']} on {r['table']}"
        for r in rows
        if any(
            isinstance(value, float) and isinstance(r.get("skerry CPU s"), float) and value < r["skerry CPU s"]
            for key, value in r.items()
            if key.endswith(" CPU s") and key != "skerry CPU s"
        )
    ]
    largest = max((r for r in rows if r["table"] != "blobs"), key=lambda r: r["n"] * r["d"])["table"]
    return {
        "title": "Speed and memory on real tables",
        "claim": (
            f"CPU time of PyOD over ours on {largest}: {ratios([r for r in rows if r['table'] == largest])}. "
            f"A peer is faster in {len(slower)} of {len(rows)} cases of {len(tables)} tables"
            + (f": {', '.join(slower)}." if slower else ".")
        ),
        "table": rows,
        "notes": NOTES,
    }


def _shape(path: Path) -> tuple[int, int]:
    with np.load(path) as file:
        n, d = file["X"].shape
    return int(n), int(d)
