"""Accuracy of the default on tables that had no part in its choice: features of images and texts, and the same peers.

The members of the default were chosen on the development tables of :mod:`skerry.bench.tabular`. Here are tables of
another kind, run once after the choice: few rows, many columns, strongly correlated. Nothing was changed after it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from skerry.bench.tables import apart_tables
from skerry.bench.tabular import DEFAULT, MAX_ROWS, compared

__all__ = ["run"]


def run(quick: bool, data: Path, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    tables = apart_tables(data, max_rows=500 if quick else MAX_ROWS, seed=seed)
    found = compared(tables[-3:] if quick else tables, quick, seed, progress)
    beside = [r["method"] for r in found["table"]]
    if DEFAULT in beside:
        found["claim"] += f" It is number {beside.index(DEFAULT) + 1} of {len(beside)} by mean AUROC."
    found["notes"].append(
        "The tables are not independent: most are features that two networks made of images of eight products, so the "
        "mean tells of that kind of table, not of tables at large."
    )
    return {"title": "Accuracy on tables kept apart from the choice of the default", **found}
