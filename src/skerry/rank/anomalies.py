"""What is wrong with the columns of a table, one sentence each: duplicate, drifting, leaking, constant, broken.

Part of the data-quality report of OutRank (Škrlj & Mramor, RecSys 2023). What a column shows by itself is found by
:class:`skerry.rank.quality.ColumnStats`; here is what needs several columns or the order of the rows.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from skerry.rank.accumulate import TargetCounts
from skerry.rank.quality import ColumnStats

__all__ = ["Watch"]

PERIODS = 10  # that the rows are cut into to see drift
FEWEST_ROWS = 1_000
DRIFT = 0.1  # share of a column's information that the period tells, above which the column drifts
UNIQUE = 0.5  # share of the rows that a column's values may number before their order of appearance proves nothing
LEAK = 0.99  # share of the target's entropy that a column tells, above which it leaks the target


class Watch:
    """Follows the codes of p columns over a stream, in memory that the rows do not change.

    Drift is measured between periods of equal length. Their length is not known before the end of the stream: it
    starts at ``period`` rows, and doubles (neighbours are merged) whenever there are 2 * ``PERIODS`` of them.

    Parameters
    ----------
    p : int
        Columns, without the target.
    period : int
        Rows of the first periods.
    twins : sequence of bool, optional
        Columns that can be another one renamed (all by default); only their codes are compared.

    Examples
    --------
    >>> watch = Watch(2, period=500)
    >>> day = np.arange(2000, dtype=np.int32) // 500
    >>> watch.add([day, np.arange(2000, dtype=np.int32) % 2])
    >>> watch.drifting(["day", "odd"], [np.log(4), np.log(2)])
    ['day drifts: its values change with the row number (the period tells 100 % of it)']
    """

    def __init__(self, p: int, period: int, twins: Sequence[bool] | None = None) -> None:
        self.digests = [hashlib.blake2b(digest_size=16) if twins is None or twins[j] else None for j in range(p)]
        self.counts = [TargetCounts() for _ in range(p)]
        self.period, self.rows = period, 0

    def add(self, columns: list[NDArray[np.int32]]) -> None:
        """Add rows: codes in order of first appearance over the stream, shape (n,) for each column."""
        n = columns[0].size if columns else 0
        while (self.rows + n - 1) // self.period >= 2 * PERIODS:
            self.period *= 2
            for counts in self.counts:
                counts.merge_targets(2)
        when = (self.rows + np.arange(n)) // self.period
        for digest, counts, codes in zip(self.digests, self.counts, columns, strict=True):
            if digest is not None:
                digest.update(np.ascontiguousarray(codes, dtype=np.int32))
            counts.add(codes, when)
        self.rows += n

    def duplicates(self, names: list[str], stats: list[ColumnStats]) -> list[str]:
        """Return the columns that are another one with its values renamed.

        Where nearly all values differ, any column is another one renamed: there the values themselves must be equal.
        """
        found: list[str] = []
        seen: dict[tuple[bytes, str], str] = {}
        for name, own, digest in zip(names, stats, self.digests, strict=True):
            if digest is None or own.cardinality < 2:
                continue
            alike = ""
            if own.cardinality > UNIQUE * self.rows:
                alike = hashlib.blake2b("\0".join(own.places).encode("utf-8", "surrogatepass")).hexdigest()
            other = seen.setdefault((digest.digest(), alike), name)
            if other != name:
                found.append(f"{name} duplicates {other} (one determines the other, value by value)")
        return found

    def drifting(self, names: list[str], entropies: list[float] | NDArray[np.float64]) -> list[str]:
        """Return the columns of which the period tells more than a tenth, what chance tells subtracted."""
        found: list[str] = []
        if self.rows < FEWEST_ROWS:
            return found
        for name, counts, entropy in zip(names, self.counts, entropies, strict=True):
            room = min(entropy, math.log(PERIODS))
            if room <= 0 or counts.information() <= DRIFT * room:  # less chance, it is less still
                continue
            told = counts.score(correction="expected", draws=0, seed=0, key=0)[0]
            if told > DRIFT * room:
                share = min(told / room, 1.0)
                found.append(
                    f"{name} drifts: its values change with the row number (the period tells {100 * share:.0f} % of it)"
                )
        return found

    @staticmethod
    def leaking(names: list[str], scores: NDArray[np.float64], target: str, entropy: float) -> list[str]:
        """Return the columns that determine the target by themselves; ``scores`` in nats."""
        return [
            f"{name} leaks {target}: it alone determines it"
            for name, score in zip(names, scores, strict=True)
            if score > LEAK * entropy
        ]
