"""What a stream of values says about a column: cardinality, coverage, repetition, rarity, and what is broken.

Counts are exact until 2^18 values; beyond that the cardinality comes from a linear-counting sketch of 2^23
bits
(OutRank, Škrlj & Mramor, RecSys 2023, switches the same way). Control columns are noise of known kinds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import polars as pl

__all__ = ["ColumnStats", "control_columns"]

EXACT = 1 << 18
SKETCH = 1 << 23
REPETITIONS = (0, 1, 10, 100, 1_000, 10_000, 100_000)


class ColumnStats:
    """Values of one column, seen batch by batch.

    Parameters
    ----------
    missing : sequence of str, default ("", "{}")
        Symbols that mean "no value"; null is the empty string.
    """

    def __init__(self, missing: Iterable[str] = ("", "{}")) -> None:
        self.missing = frozenset(missing)
        self.places: dict[str, int] = {}
        self.counts = np.zeros(1024, dtype=np.int64)
        self.rows = self.absent = self.bytes = self.numeric = 0
        self.sketch: NDArray[np.bool_] | None = None

    def add(self, column: pl.Series) -> NDArray[np.int32]:
        """Count a batch and return its codes: the order of first appearance over all batches.

        Past 2^18 values a new one shares the code of its hash, 2^18 + hash mod 2^18, so memory stays bounded.
        """
        import polars as pl

        text = column.cast(pl.String).fill_null("")
        packed = text.to_arrow().dictionary_encode()
        local = packed.indices.to_numpy(zero_copy_only=False)
        values = packed.dictionary.to_pylist()
        hashes = None
        if self.sketch is not None or len(self.places) + len(values) > EXACT:
            hashes = pl.Series(values, dtype=pl.String).hash(seed=7).to_numpy()
            if self.sketch is None:
                self.sketch = np.zeros(SKETCH, dtype=np.bool_)
                known = pl.Series(list(self.places), dtype=pl.String).hash(seed=7).to_numpy()
                self.sketch[known & np.uint64(SKETCH - 1)] = True
            self.sketch[hashes & np.uint64(SKETCH - 1)] = True
        places = self.places
        lookup = np.empty(len(values), dtype=np.int32)
        for i, value in enumerate(values):
            code = places.get(value)
            if code is None:
                if len(places) < EXACT:
                    code = places[value] = len(places)
                else:
                    code = EXACT + int(hashes[i] % EXACT)
            lookup[i] = code
        tally = np.bincount(local, minlength=len(values))
        top = int(lookup.max(initial=0)) + 1
        if top > self.counts.size:
            self.counts = np.concatenate([self.counts, np.zeros(max(top, self.counts.size), dtype=np.int64)])
        np.add.at(self.counts, lookup, tally)
        self.rows += column.len()
        self.absent += int(sum(tally[i] for i, v in enumerate(values) if v in self.missing))
        self.bytes += int(text.str.len_bytes().sum() or 0)
        self.numeric += int(
            tally[pl.Series(values, dtype=pl.String).cast(pl.Float64, strict=False).is_not_null().to_numpy()].sum()
        )
        return lookup[local]

    @property
    def cardinality(self) -> int:
        """Number of distinct values, exact until 2^18, then estimated."""
        if self.sketch is None:
            return len(self.places)
        empty = max(SKETCH - int(self.sketch.sum()), 1)
        return round(-SKETCH * math.log(empty / SKETCH))

    @property
    def coverage(self) -> float:
        """Percent of rows with a value."""
        return 100.0 * (1.0 - self.absent / self.rows) if self.rows else 0.0

    def summary(self, name: str, rare: int = 1) -> dict[str, object]:
        """Return one row of the quality report; ``rare`` is the largest count of a rare value."""
        counts = self.counts[self.counts > 0]
        row: dict[str, object] = {
            "feature": name,
            "cardinality": self.cardinality,
            "coverage": self.coverage,
            "bytes": self.bytes / self.rows if self.rows else 0.0,
            "majority": float(counts.max() / self.rows) if counts.size else 0.0,
            "rare_values": int((counts <= rare).sum()),
            "numeric": self.numeric / max(self.rows - self.absent, 1),
        }
        return row | {f"seen_over_{k}": int((counts > k).sum()) for k in REPETITIONS}

    def anomalies(self, name: str) -> list[str]:
        """Return what is wrong with the column by itself, as sentences."""
        held = self.rows - self.absent
        if held == 0:
            return [f"{name} is broken: it has no value in any row"]
        if self.cardinality == 1:
            return [f"{name} is constant"]
        found = []
        if self.coverage < 5:
            found.append(f"{name} is nearly empty: {self.coverage:.2g} % of rows have a value")
        share = self.numeric / held
        if 0.9 <= share < 1 and self.rows >= 100:
            found.append(f"{name} may be broken: {held - self.numeric} values are text, the rest numbers")
        if any("\ufffd" in value for value in self.places):
            found.append(f"{name} may be broken: it has characters that could not be decoded")
        if self.cardinality > 0.95 * self.rows and self.rows >= 100 and share < 0.5:
            found.append(f"{name} looks like an identifier: {self.cardinality} values in {self.rows} rows")
        return found


def control_columns(n: int, seed: int, start: int = 0) -> dict[str, Sequence]:
    """Return columns of noise of length n: constant, gaussian, uniform, five cardinalities, and the row
    number."""
    rng = np.random.default_rng([seed, start])
    out: dict[str, Sequence] = {
        "constant": np.zeros(n, dtype=np.int32),
        "gaussian": np.floor(rng.standard_normal(n) * 10).astype(np.int32) + 100,
        "uniform": np.floor(rng.random(n) * 1000).astype(np.int32),
    }
    for k in (2, 100, 2_000, 10_000, 50_000):
        out[f"random-{k}"] = rng.integers(0, k, n, dtype=np.int32)
    out["row"] = np.arange(start, start + n, dtype=np.int32)
    return out
