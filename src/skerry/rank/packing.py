"""A batch of rows as OutRank counts it: each column as the list of its different values and a place in it for each row.

This is the part of the work that needs no other batch: it is done where the rows are read, on this machine or on those
of a Ray cluster; joining the lists is what is left to do. Follows the stream of OutRank (Škrlj & Mramor, RecSys 2023).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skerry.rank.quality import packed, row_quality

__all__ = ["Pack", "Packed"]


@dataclass(frozen=True)
class Packed:
    """One batch.

    Attributes
    ----------
    names : list of str
    rows : int
    columns : list of (ndarray of shape (rows,), pyarrow array of text)
        As :func:`skerry.rank.quality.packed` gives them.
    report : dict of str to ndarray of shape (rows,)
        On rows, where asked for; else empty.
    """

    names: list[str]
    rows: int
    columns: list[tuple[NDArray[np.integer], Any]]
    report: dict[str, NDArray[np.float32]] = field(default_factory=dict)


@dataclass(frozen=True)
class Pack:
    """Packs batches; every ``subsampling``-th row of the table is kept.

    Attributes
    ----------
    target : str
    subsampling : int, default 1
    row_quality : bool, default False
        Report on rows too.

    Examples
    --------
    >>> import polars as pl
    >>> batch = Pack("y", subsampling=2)(1, pl.DataFrame({"x": ["a", "b", "c", "b"], "y": [0, 1, 0, 1]}))
    >>> batch.rows, batch.columns[0][1].to_pylist(), batch.columns[0][0].tolist()
    (2, ['b'], [0, 0])
    """

    target: str
    subsampling: int = 1
    row_quality: bool = False

    def __call__(self, start: int, frame: Any) -> Packed:
        """Pack a polars frame whose first row is number ``start`` of the table."""
        first = -start % self.subsampling
        if self.subsampling > 1:
            frame = frame.gather_every(self.subsampling, first) if first < frame.height else frame.clear()
        return self.whole(frame.to_arrow())

    def whole(self, table: Any) -> Packed:
        """Pack all rows of a pyarrow table."""
        import polars as pl

        names, report = table.column_names, {}
        if self.row_quality:
            last = [c for c in names if c == self.target]
            report = row_quality(pl.from_arrow(table.select([c for c in names if c != self.target] + last)))
        return Packed(names, table.num_rows, [packed(table.column(c)) for c in names], report)
