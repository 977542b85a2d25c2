"""A uniform sample of a table that is read once, whatever its size (Vitter 1985's reservoir, in batches)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from skerry.core.errors import DataError, ParameterError
from skerry.data.table import Table

if TYPE_CHECKING:
    import polars as pl

__all__ = ["reservoir_sample"]


def reservoir_sample(table: Table, n: int, seed: int | None) -> tuple[pl.DataFrame, NDArray[np.int64]]:
    """Return a uniform sample of at most ``n`` rows and their positions, in one pass.

    Each row draws a uniform key and the ``n`` smallest keys are kept (a reservoir in batches), so the
    sample does not depend on the batch size.
    """
    import polars as pl

    if n < 1:
        raise ParameterError(f"a sample needs at least one row, got n={n}")
    rng = np.random.default_rng(seed)
    kept: pl.DataFrame | None = None
    keys, rows = np.empty(0), np.empty(0, dtype=np.int64)
    start, bar = 0, np.inf
    for frame in table.batches():
        key = rng.random(frame.height)
        take = np.flatnonzero(key < bar)
        if take.size:
            part = frame[take]
            kept = part if kept is None else pl.concat([kept, part])
            keys, rows = np.r_[keys, key[take]], np.r_[rows, start + take]
            if keys.size > n:
                best = np.sort(np.argpartition(keys, n - 1)[:n])
                kept, keys, rows = kept[best], keys[best], rows[best]
            if keys.size == n:
                bar = keys.max()
        start += frame.height
    if kept is None:
        raise DataError(f"{table.name}: has a header but no rows")
    return kept.rechunk(), rows
