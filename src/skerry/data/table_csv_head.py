"""What the first lines of a text table tell: its encoding, its separator and the names of its columns."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from pathlib import Path

from skerry.core.errors import DataError
from skerry.data.table import unique_names

__all__ = ["CsvHead", "read_head"]

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
HEAD_BYTES = 1 << 20
BLOCK = 1 << 20  # bytes; a row must fit in a block


@dataclass
class CsvHead:
    """How to read a text table.

    Attributes
    ----------
    columns : list of str
        Unique; a column without a name is called by its place.
    separator : str
    encoding : "utf8" or "latin-1"
    lines : int
        Lines that the names take: more than one where a quoted name holds a line break.
    block : int
        Bytes to read together.
    notes : list of str
        What a person should know.
    """

    columns: list[str]
    separator: str
    encoding: str
    lines: int
    block: int
    notes: list[str] = field(default_factory=list)


def read_head(path: Path, separator: str | None, name: str) -> CsvHead:
    """Look at the first MiB of a text table.

    Parameters
    ----------
    path : Path
    separator : str or None
        None: the one that cuts all lines into the same number of fields.
    name : str
        Stands for the table in messages.

    Raises
    ------
    DataError
        If the file is empty, binary or UTF-16, names no columns, names two alike, or has no rows.
    """
    with path.open("rb") as file:
        raw = file.read(HEAD_BYTES)
        more = bool(file.read(1))
    if not raw.strip():
        raise DataError(f"{name}: the file is empty")
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{name}: is UTF-16 text; save it as UTF-8")
    if b"\x00" in raw[:4096]:
        raise DataError(f"{name}: is binary, not text; check its suffix")
    notes: list[str] = []
    whole = raw[: max(raw.rfind(b"\n"), raw.rfind(b"\r")) + 1] if more else raw
    text, encoding = _decoded(whole or raw, notes)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    used = separator or _sniffed(text, notes)
    rows = csv.reader(io.StringIO(text, newline="\n"), delimiter=used)
    try:
        first = [c.strip() for c in next(rows)]
        lines = rows.line_num
        second = next(rows, None)
    except csv.Error as error:
        raise DataError(f"{name}: not a table of text ({error})") from None
    if not any(first):
        raise DataError(f"{name}: the first line is blank; it must name the columns")
    if second is None and not more:
        raise DataError(f"{name}: has a header but no rows")
    if len(first) == 1:
        _doubt(text, first[0], separator, name, notes)
    unique_names(first, name)
    block = max(BLOCK, 4 * max(map(len, text.splitlines())))
    return CsvHead(_named(first), used, encoding, lines, block, notes)


def _decoded(raw: bytes, notes: list[str]) -> tuple[str, str]:
    try:
        return raw.decode("utf-8-sig"), "utf8"
    except UnicodeDecodeError:
        notes.append("not UTF-8; read as Latin-1")
        return raw.decode("latin-1"), "latin-1"


def _named(first: list[str]) -> list[str]:
    taken = set(first)
    out = []
    for i, c in enumerate(first):
        name = c or f"column_{i}"
        while not c and name in taken:
            name += "_"
        taken.add(name)
        out.append(name)
    return out


def _doubt(text: str, only: str, separator: str | None, name: str, notes: list[str]) -> None:
    """Tell of a separator that was probably meant where only one column was found."""
    if separator is not None:
        better = _separator(text)
        if better not in (None, separator):
            raise DataError(f"{name}: no {separator!r} in the first line; it looks separated by {better!r}")
        return
    other = _unexpected(text)
    if other is not None:
        notes.append(f"only one column, {only!r}, was found; if {other!r} separates columns, replace it by a comma")


def _separator(head: str) -> str | None:
    """Return the separator that cuts all first lines into the same number (the larger the better) of fields."""
    text = "\n".join(head.splitlines()[:50])
    widths: dict[str, int] = {}
    for s in SEPARATORS:
        try:
            found = {len(row) for row in csv.reader(io.StringIO(text), delimiter=s) if row}
        except csv.Error:
            continue
        if len(found) == 1 and min(found) > 1:
            widths[s] = min(found)
    return max(widths, key=lambda s: widths[s]) if widths else None


def _unexpected(head: str) -> str | None:
    """Return a character that might separate columns although no reader expects it."""
    lines = [line for line in head.splitlines()[:50] if line.strip()]
    often = {c: {line.count(c) for line in lines} for c in "^~: " if c in lines[0]}
    return next((c for c, counts in often.items() if len(counts) == 1), None)


def _sniffed(head: str, notes: list[str]) -> str:
    first = head.splitlines()[0]
    # rows of unequal length: believe the header, and let the reader name the row
    best = _separator(head) or max(SEPARATORS, key=first.count)
    if best != ",":
        notes.append(f"columns are separated by {SEPARATORS[best]}")
    return best
