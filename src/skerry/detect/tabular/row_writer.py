"""The file of scored rows that ``skerry detect --out`` writes: one row per row of the source, with its reasons."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from skerry.core.errors import DataError

__all__ = ["RowWriter"]


class RowWriter:
    """Write the scored rows batch by batch, beside the target, and rename at the end.

    Parameters
    ----------
    path : Path
        ``.parquet`` or ``.csv``.

    Raises
    ------
    DataError
        If the path has another suffix or cannot be written; an older file of that name is then untouched.
    """

    def __init__(self, path: Path) -> None:
        if path.suffix not in (".parquet", ".csv"):
            raise DataError(f"{path}: --out must end in .parquet or .csv")
        self.path = path

    def spare(self, files: Iterable[Path]) -> None:
        """Refuse to write over one of ``files``, those that are read."""
        for file in files:
            if self.path.exists() and file.exists() and self.path.samefile(file):
                raise DataError(f"{self.path}: is the table that is read, and would be replaced; choose another --out")

    def __enter__(self) -> Self:
        from skerry.core.files import atomic_write

        self._stack = ExitStack()
        self._file = self._stack.enter_context(atomic_write(self.path))
        self._parquet: Any = None
        self._header = True
        return self

    def write(self, start: int, s: NDArray, p: NDArray, flagged: NDArray, text: dict[int, tuple[str, ...]]) -> None:
        """Append the rows from ``start`` on: scores, p-values and decisions of shape (n,), reasons by row."""
        import polars as pl

        rows = np.arange(start, start + s.size)
        reasons = pl.repeat("", s.size, dtype=pl.String, eager=True)
        if text:
            reasons = reasons.scatter([r - start for r in text], ["; ".join(t) for t in text.values()])
        frame = pl.DataFrame({"row": rows, "score": s, "p_value": p, "outlier": flagged, "reasons": reasons})
        if self.path.suffix == ".csv":
            frame.write_csv(self._file, include_header=self._header)
            self._header = False
            return
        import pyarrow.parquet as pq

        batch = frame.to_arrow()
        if self._parquet is None:
            self._parquet = pq.ParquetWriter(self._file, batch.schema, compression="zstd")
        self._parquet.write_table(batch)

    def __exit__(self, *error: Any) -> None:
        try:
            if self._parquet is not None:
                self._parquet.close()  # writes the footer, for which the disk may be too full
        except BaseException:
            self._parquet.is_open = False  # or its destructor tries again, and tells of it on stderr
            if error[0] is None:
                self._stack.__exit__(*sys.exc_info())
                raise
        self._stack.__exit__(*error)
