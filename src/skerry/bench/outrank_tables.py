"""Tables for the ranking study: one with planted columns, and real ones as text.

The planted table is that of the brief: 20 columns each of 2, 10, 100, 1,000 and 10,000 values (Zipf 1.05), and a
binary label from columns f3, f25 and f45 and the exclusive or of f5 and f6.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["CARDINALITIES", "PLANTED", "planted_table", "real_tables"]

PLANTED = ("f3", "f25", "f45")
CARDINALITIES = (2, 10, 100, 1_000, 10_000)
COPIES = 20  # columns of each cardinality


def planted_table(n: int, seed: int) -> tuple[Any, NDArray[np.float64]]:
    """Return the table of n rows as a polars frame of text, and each row's true probability of label 1 (mean 0.22)."""
    import polars as pl

    rng = np.random.default_rng(seed)
    columns = {}
    for group, card in enumerate(CARDINALITIES):
        weight = 1.0 / np.arange(1, card + 1) ** 1.05
        for t in range(COPIES):
            columns[f"f{COPIES * group + t}"] = rng.choice(card, n, p=weight / weight.sum())
    drive = 0.6 * columns["f3"] + 0.6 * np.sin(columns["f25"]) + 0.5 * np.sin(1.7 * columns["f45"])
    drive = drive + 1.2 * (columns["f5"] ^ columns["f6"])
    low, high = -20.0, 20.0
    for _ in range(60):  # the intercept that gives the positive rate
        middle = (low + high) / 2
        low, high = (middle, high) if np.mean(1 / (1 + np.exp(-drive - middle))) < 0.22 else (low, middle)
    share = 1 / (1 + np.exp(-drive - low))
    columns["label"] = (rng.random(n) < share).astype(np.int64)
    return pl.DataFrame({name: values.astype(str) for name, values in columns.items()}), share


def real_tables(data: Path) -> tuple[list[tuple[str, Any, str, list[str]]], list[str]]:
    """Return name, frame of text, target, and the target's values that count as 1, of each real table; and notes.

    ``adult`` is the census table, ``nsl_kdd_train20`` the intrusion table (every attack against "normal", without
    the column ``difficulty``, which was made from the label).
    """
    import polars as pl

    found, notes = [], []
    for name, target, drop in (("adult", "income", ()), ("nsl_kdd_train20", "label", ("difficulty",))):
        path = data / "categorical" / f"{name}.parquet"
        if not path.is_file():
            notes.append(f"{name}.parquet is absent: left out.")
            continue
        frame = pl.read_parquet(path).drop(*drop, strict=False)
        frame = frame.with_columns(pl.all().cast(pl.String).fill_null("").str.strip_chars())
        values = frame[target].unique().sort().to_list()
        ones = [v for v in values if v != "normal"] if "normal" in values else values[-1:]
        found.append((name, frame, target, ones))
    return found, notes
