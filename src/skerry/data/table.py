"""What every reader of tables returns: a named source of polars frames, read batch by batch, again and again."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skerry.core.errors import DataError, ParameterError

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

__all__ = ["Table", "first_line", "unique_names"]

DAMAGE = (OSError, EOFError, zlib.error, ValueError, LookupError, NotImplementedError, MemoryError)
MAX_CELLS = 1 << 23  # in one batch: wide tables come in fewer rows


class Table:
    """A named source of polars frames.

    Attributes
    ----------
    name : str
        What was opened, for messages.
    columns : list of str
    schema : dict of str to polars data type
    n_rows : int or None
        None where only a full read would tell.
    notes : list of str
        What was found out about the source, for example its separator.
    files : list of Path
        What is read from disk; empty for a table in memory or on standard input.
    row_groups : list of (str, int, int)
        File, number and rows of the parts that can be read each by itself, in the order of the rows; else empty.
    """

    def __init__(
        self,
        name: str,
        schema: dict[str, Any],
        batches: Callable[[int], Iterator[pl.DataFrame]],
        n_rows: int | None = None,
        notes: list[str] | None = None,
        arrow: Callable[[int], Iterator[pa.Table]] | None = None,
    ) -> None:
        self.name = name
        self.schema = schema
        self.columns = list(schema)
        self.n_rows = n_rows
        self.notes = notes or []
        self.files: list[Path] = []
        self.row_groups: list[tuple[str, int, int]] = []
        self._batches, self._arrow = batches, arrow

    def batches(self, rows: int = 65_536) -> Iterator[pl.DataFrame]:
        """Yield polars frames of at most ``rows`` rows; the source can be read again."""
        for frame in self._guarded(self._batches, rows):
            for start in range(0, frame.height, self._most(rows)):
                yield frame.slice(start, self._most(rows))

    def arrow_batches(self, rows: int = 65_536) -> Iterator[pa.Table]:
        """Yield the same rows as pyarrow tables, without a detour over polars where the reader is Arrow's."""
        if self._arrow is None:
            for frame in self.batches(rows):
                yield frame.to_arrow()
            return
        for table in self._guarded(self._arrow, rows):
            for start in range(0, table.num_rows, self._most(rows)):
                yield table.slice(start, self._most(rows))

    def _most(self, rows: int) -> int:
        return min(rows, max(64, MAX_CELLS // max(1, len(self.columns))))

    def _guarded(self, read: Callable[[int], Iterator[Any]], rows: int) -> Iterator[Any]:
        """Read, and tell of damage in one line with the source's name."""
        import polars as pl

        if rows < 1:
            raise ParameterError(f"batches need at least one row, got {rows}")
        try:
            yield from read(self._most(rows))
        except DataError:
            raise
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, *DAMAGE) as error:
            raise DataError(f"{self.name}: {first_line(error)}; the file is damaged or not what it seems") from None

    def read(self) -> pl.DataFrame:
        """Return the whole table as one polars frame."""
        import polars as pl

        parts = list(self.batches(1 << 20))
        return pl.concat(parts) if parts else pl.DataFrame(schema=self.schema)


def first_line(error: BaseException) -> str:
    """Return the first line of a library's message, to be quoted in ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def unique_names(columns: list[str], name: str) -> None:
    """Raise DataError if two columns share a name; ``name`` is the source."""
    seen: set[str] = set()
    for c in columns:
        if c and c in seen:
            raise DataError(f"{name}: two columns are named {c!r}; rename one")
        seen.add(c)
