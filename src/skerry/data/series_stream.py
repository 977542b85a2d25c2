"""Series from a stream of text: CSV or JSON lines, taken in bytes as they come, in constant memory.

A line is a row. What is known of the columns is settled on the first ``head_rows`` lines: the header (or none), the
separator, the time column and how it is written, the channels. After that every complete line becomes a step of
numbers, NaN where there is none; a line that cannot be read is counted and told, never fatal. The last line waits
until its line break comes.
"""

from __future__ import annotations

import csv
import re
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skerry.core.errors import DataError
from skerry.data.encoder_values import parse_numbers
from skerry.data.series_cells import TRUTH, is_number, json_object, text_series, typed
from skerry.data.series_columns import choose_time, pick_channels
from skerry.data.stamps import MISSING_STAMP, StampFormat, stamp_columns
from skerry.data.stream_clock import told_count
from skerry.data.table_csv_head import SEPARATORS

__all__ = ["SeriesStream", "StreamRows"]

MAX_LINE = 1 << 20  # bytes; a longer line is no row of a series
MAX_CELL = 100_000  # characters
DATE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}")


@dataclass
class StreamRows:
    """Rows that were complete.

    Attributes
    ----------
    values : ndarray of shape (n, c), float64
    time : ndarray of shape (n,), int64 (microseconds since 1970) or float64 (plain numbers), or None
        As of :class:`~skerry.data.stamps.StampFormat`; None where rows are steps.
    """

    values: NDArray[np.float64]
    time: NDArray | None


class SeriesStream:
    """Turn bytes into rows of a series.

    Parameters
    ----------
    time : str, False or None
        The time column; None: it is found, or rows are steps. False: rows are steps.
    leave_out : tuple of str
        Columns that are no channels.
    head_rows : int, default 100
        Rows on which the columns are settled; none is returned before.
    name : str
        Stands for the stream in messages.
    state : dict, optional
        What :meth:`state` of an earlier stream returned: this one goes on from there.
    again : bool, default True
        With ``state``: the stream may send again what was read already, as ``tail`` does. Rows up to the last stamp
        read are then passed over, and so is the header; an unfinished last line is joined to the first only if that
        is no whole row.

    Attributes
    ----------
    channels : list of str
        Empty until they are settled.
    time_zone : str or None
        "UTC" where the stamps say so.
    n_rows, n_unreadable : int
        Rows returned or waiting; lines left out.
    notes : list of str
        What there is to tell; the caller takes them away.

    Raises
    ------
    DataError
        If the stream is no text, has no channel, or its time column cannot be told.

    Examples
    --------
    >>> stream = SeriesStream(head_rows=2)
    >>> stream.feed(b"ts,load\\n2024-01-01 00:00,1.5\\n2024-01-01 00:01,")  # the last line is not complete
    >>> rows = stream.feed(b"2.5\\n")
    >>> rows.values[:, 0], stream.channels
    (array([1.5, 2.5]), ['load'])
    """

    _KEPT = (
        "kind", "separator", "columns", "header", "head", "time_name", "channels", "n_rows", "n_lines", "n_unreadable",
        "n_text", "last_time", "settled",
    )  # fmt: skip

    def __init__(
        self,
        time: str | bool | None = None,
        leave_out: tuple[str, ...] = (),
        head_rows: int = 100,
        name: str = "stream",
        state: dict[str, Any] | None = None,
        again: bool = True,
    ) -> None:
        self.time, self.leave_out, self.head_rows, self.name = time, leave_out, head_rows, name
        self.kind, self.separator, self.header = "", ",", ""
        self.columns: list[str] = []
        self.head: list[str] = []  # lines that wait until the columns are settled
        self.settled = False
        self.time_name: str | None = None
        self.form: StampFormat | None = None
        self.channels: list[str] = []
        self.n_rows = self.n_lines = self.n_unreadable = self.n_text = 0
        self.last_time: float | int | None = None
        self.carry = b""
        self.left: bytes | None = None  # the unfinished line of a stream that was cut
        self.again = self.told_again = False
        self.strange: set[str] = set()  # keys told of
        self.notes: list[str] = []
        if state is not None:
            self._resume(state, again)

    def state(self) -> dict[str, Any]:
        """Return all that is remembered, as plain values."""
        out = {name: getattr(self, name) for name in self._KEPT}
        form = None if self.form is None else asdict(self.form)
        return out | {"form": form, "carry": self.carry.decode("latin-1"), "head": list(self.head)}

    def _resume(self, state: dict[str, Any], again: bool) -> None:
        if not isinstance(state, dict) or set(state) != {*self._KEPT, "form", "carry"}:
            raise DataError("not the state of a stream of series: use what SeriesStream.state() returned")
        for field in self._KEPT:
            setattr(self, field, state[field])
        self.form = None if state["form"] is None else StampFormat(**state["form"])
        self.head = list(state["head"])
        carry = state["carry"].encode("latin-1")
        self.again = again
        if again and carry:
            self.left = carry
        else:
            self.carry = carry

    def restart(self) -> None:
        """Expect a file anew: an unfinished line is left out, and so are rows up to the last stamp."""
        if self.carry:
            self.notes.append("the last line has no line break and was not read: it may be unfinished")
        self.carry, self.left, self.again = b"", None, True

    @property
    def time_zone(self) -> str | None:
        """The zone in which the stamps are told, None where it is not known."""
        return None if self.form is None else self.form.time_zone

    def feed(self, data: bytes) -> StreamRows | None:
        """Take the next bytes and return the rows that are complete now, None if there are none."""
        data = self.carry + data
        cut = data.rfind(b"\n") + 1
        self.carry = data[cut:]
        if len(self.carry) > MAX_LINE:
            raise DataError(f"{self.name}: no line break in {MAX_LINE >> 20} MiB; it is no stream of lines")
        if cut == 0:
            return None
        lines = self._lines(data[:cut])
        if self.left is not None and lines:
            left, self.left = self.left.decode("utf-8", "replace"), None
            if not self._whole(lines[0]) and self._whole(left + lines[0]):
                lines[0] = left + lines[0]
        if not self.kind and lines:
            lines = self._begin(lines)
        if not self.settled:
            return self._settle(lines)
        return self._rows(lines)

    # ---- lines -----------------------------------------------------------------------------------------------
    def _lines(self, data: bytes) -> list[str]:
        if not self.n_lines:
            if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
                raise DataError(f"{self.name}: is UTF-16 text; send it as UTF-8")
            if b"\x00" in data[:4096]:
                raise DataError(f"{self.name}: is binary, not lines of text")
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            text = data.decode("latin-1")
        lines = text.replace("\ufeff", "").split("\n")[:-1]
        self.n_lines += len(lines)
        return [line.rstrip("\r") for line in lines if line and not line.isspace()]

    def _begin(self, lines: list[str]) -> list[str]:
        """Read the first line; return those that are rows."""
        first = lines[0]
        if first.lstrip().startswith("{"):
            self.kind = "json"
            return lines
        if first.lstrip().startswith("["):
            raise DataError(f"{self.name}: one JSON object a line is expected, not a list")
        self.kind = "csv"
        self.separator = max(SEPARATORS, key=first.count)
        fields = [f.strip() for f in self._fields(first)]
        numbers = [is_number(f) for f in fields]
        places = fields == [str(i) for i in range(len(fields))] and len(fields) > 1
        if not places and all(n or DATE.match(f) or not f for n, f in zip(numbers, fields, strict=True)):
            self.columns = [f"column_{i}" for i in range(len(fields))]
            self.notes.append("the first line names no columns; they are called column_0, column_1 ...")
            return lines
        self._name_columns(fields)
        self.header = first
        return lines[1:]

    def _name_columns(self, fields: list[str]) -> None:
        twice = sorted({f for f in fields if f and fields.count(f) > 1})
        if twice:
            raise DataError(f"{self.name}: the header names {twice[0]!r} twice")
        self.columns = [f or f"column_{i}" for i, f in enumerate(fields)]

    def _fields(self, line: str) -> list[str]:
        return next(csv.reader([line], delimiter=self.separator, skipinitialspace=True), [])

    def _whole(self, line: str) -> bool:
        """Say whether a line is a row (or a header) by itself."""
        if self.kind == "json":
            return json_object(line) is not None
        return line == self.header or (line.count('"') % 2 == 0 and len(self._fields(line)) == len(self.columns))

    # ---- the head --------------------------------------------------------------------------------------------
    def _settle(self, lines: list[str]) -> StreamRows | None:
        if self.again and self.head and lines:
            lines = self._new_lines(lines)
        self.head += lines
        self.n_rows = len(self.head)
        if len(self.head) < self.head_rows:
            return None
        lines, self.head, self.n_rows = self.head, [], 0
        self._choose(lines[: self.head_rows])
        self.settled = True
        return self._rows(lines)

    def _new_lines(self, lines: list[str]) -> list[str]:
        """Pass over lines of the head that are sent again."""
        lines = [line for line in lines if line != self.header]
        if lines:
            self.again = False
            if lines[0] in self.head:
                known = self.head[self.head.index(lines[0]) :]
                same = next((i for i, (a, b) in enumerate(zip(lines, known, strict=False)) if a != b), None)
                lines = lines[min(len(lines), len(known)) if same is None else same :]
        return lines

    def _choose(self, lines: list[str]) -> None:
        import polars as pl

        if self.kind == "json":
            found = [row for line in lines if (row := json_object(line)) is not None]
            self.columns = list(dict.fromkeys(key for row in found for key in row))
            columns: list[list[Any]] = [[row.get(c) for row in found] for c in self.columns]
        else:
            rows = [f for line in lines if len(f := self._fields(line)) == len(self.columns)]
            columns = [[row[i] for row in rows] for i in range(len(self.columns))]
        if not columns or not columns[0]:
            raise DataError(f"{self.name}: none of the first {len(lines)} lines can be read; is it CSV or JSON lines?")
        frame = pl.DataFrame([typed(c, v) for c, v in zip(self.columns, columns, strict=True)])
        rest = frame.drop([c for c in self.leave_out if c in frame.columns])
        if self.time is not False and (self.time is not None or stamp_columns(rest)):
            self.time_name, self.form, words = choose_time(rest, self.name, self.time or None, None)
            self.notes.append(f"time is column {self.time_name!r} ({words})")
        elif self.time is None:
            self.notes.append("no column of dates or times: rows are steps")
        numbers, notes = pick_channels(rest, {self.time_name} - {None}, None, self.name, hint=False)
        self.channels = numbers.columns
        self.notes += [note for note in notes if note.startswith("not numbers")]
        self.notes.append(f"{len(self.channels)} channels: {', '.join(self.channels[:8])}")

    # ---- rows ------------------------------------------------------------------------------------------------
    def _rows(self, lines: list[str]) -> StreamRows | None:
        columns = self._json_columns(lines) if self.kind == "json" else self._csv_columns(lines)
        n = len(columns[0]) if columns else 0
        if not n:
            return None
        values = np.empty((n, len(self.channels)))
        for j, column in enumerate(columns[1:]):
            values[:, j] = self._numbers(column)
        time = None if self.form is None else self.form.read(typed("", columns[0]))
        if time is not None:
            known = (time != MISSING_STAMP) if time.dtype.kind == "i" else ~np.isnan(time)
            if not known.all():
                lost = int(np.flatnonzero(~known)[-1])
                self._unreadable(int((~known).sum()), f"no stamp in {columns[0][lost]!r}")
                values, time = values[known], time[known]
            values, time = self._unseen(values, time)
        if not len(values):
            return None
        self.n_rows += len(values)
        return StreamRows(values, time)

    def _csv_columns(self, lines: list[str]) -> list[list[Any]]:
        """Return the cells of the time column and of each channel."""
        out: list[list[Any]] = []
        while lines:
            at = next((i for i, line in enumerate(lines) if self._is_header(line)), len(lines))
            part = self._csv_part(lines[:at])
            out = [a + b for a, b in zip(out, part, strict=True)] if out else part
            if at < len(lines):
                self._new_header(lines[at])
            lines = lines[at + 1 :]
        return out

    def _csv_part(self, lines: list[str]) -> list[list[Any]]:
        good = [line for line in lines if len(line) < MAX_CELL and line.count('"') % 2 == 0]
        rows = list(csv.reader(good, delimiter=self.separator, skipinitialspace=True))
        if len(rows) != len(good):  # a stray quote has swallowed a line break
            rows = [self._fields(line) for line in good]
        width = len(self.columns)
        whole = [row for row in rows if len(row) == width]
        if len(whole) < len(lines):
            odd = next((f"{len(r)} fields, {width} expected" for r in reversed(rows) if len(r) != width), "open quote")
            self._unreadable(len(lines) - len(whole), odd)
        cells = list(zip(*whole, strict=True)) or [()] * width
        place = {c: i for i, c in enumerate(self.columns)}
        wanted = [self.time_name, *self.channels]
        return [list(cells[place[c]]) if c in place else [None] * len(whole) for c in wanted]

    def _is_header(self, line: str) -> bool:
        if line == self.header:
            return True
        named = self.time_name or (self.channels[0] if self.channels else "")
        if not self.header or named not in line:  # cheap, and false for nearly every row
            return False
        fields = [f.strip() for f in self._fields(line)]
        return named in fields and not any(map(is_number, fields))

    def _new_header(self, line: str) -> None:
        if line == self.header:
            return
        self._name_columns([f.strip() for f in self._fields(line)])
        self.header = line
        lost = [c for c in self.channels if c not in self.columns]
        new = [c for c in self.columns if c not in self.channels and c not in (self.time_name, *self.leave_out)]
        told = [f"gone, missing from here on: {', '.join(map(repr, lost[:8]))}"] if lost else []
        told += [f"new, left out: {', '.join(map(repr, new[:8]))}"] if new else []
        self.notes.append(f"line {self.n_lines:,}: a new header" + (f"; columns {'; '.join(told)}" if told else ""))

    def _json_columns(self, lines: list[str]) -> list[list[Any]]:
        rows = [row for line in lines if (row := json_object(line)) is not None]
        if len(rows) < len(lines):
            self._unreadable(len(lines) - len(rows), "no JSON object")
        known = {*self.columns, *self.strange}
        new = sorted({key for row in rows for key in row if key not in known})
        if new and len(self.strange) < 1000:  # a stream that makes up keys must not fill the memory
            self.strange.update(new)
            self.notes.append(f"columns new, left out: {', '.join(map(repr, new[:8]))}")
        return [[row.get(c) for row in rows] for c in [self.time_name, *self.channels]]

    def _unreadable(self, n: int, why: str) -> None:
        before, self.n_unreadable = self.n_unreadable, self.n_unreadable + n
        if any(told_count(k) for k in (10**e for e in range(16)) if before < k <= self.n_unreadable):
            lines = "1 line" if self.n_unreadable == 1 else f"{self.n_unreadable:,} lines"
            self.notes.append(f"{lines} left out, the last up to line {self.n_lines:,}: {why}")

    def _unseen(self, values: NDArray, time: NDArray) -> tuple[NDArray, NDArray]:
        """Pass over the rows that a resumed stream sends again."""
        if self.again and self.last_time is not None:
            newer = np.flatnonzero(time > self.last_time)
            start = int(newer[0]) if newer.size else len(time)
            if start and not self.told_again:
                self.notes.append("rows up to the last stamp read are passed over")
            self.told_again = not newer.size
            self.again = not newer.size
            values, time = values[start:], time[start:]
        if len(time):
            self.last_time, self.again = time[-1].item(), False
        return values, time

    def _numbers(self, column: list[Any]) -> NDArray[np.float64]:
        try:
            x = np.array(column, dtype=np.float64)
        except (ValueError, TypeError, OverflowError):
            x = self._repaired(column)
        if np.isinf(x).any():
            x = np.where(np.isinf(x), np.nan, x)
        return x

    def _repaired(self, column: list[Any]) -> NDArray[np.float64]:
        import polars as pl

        text = text_series("", column)
        number = parse_numbers(text.replace(TRUTH))
        lost = int((number.is_null() & text.is_not_null()).sum())
        before, self.n_text = self.n_text, self.n_text + lost
        if lost and any(before < 10**e <= self.n_text for e in range(16)):
            sample = text.filter(number.is_null() & text.is_not_null())[0]
            self.notes.append(f"{self.n_text:,} cells with text instead of a number ({sample!r}); counted as missing")
        return number.cast(pl.Float64).fill_null(np.nan).to_numpy().astype(np.float64, copy=True)
