"""Folders that the published ``outrank`` tool reads, and text tables with lines of the wrong width.

Four layouts (OutRank, Škrlj & Mramor, RecSys 2023): ``data.csv`` alone; ``data.csv`` with ``dataset_desc.json``;
``data.vw.gz`` with ``vw_namespace_map.csv``; ``raw_data/0_header/header.csv`` with part files. A bad line is never
fatal: it is counted, and the first five are shown.
"""

from __future__ import annotations

import csv
import gzip
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from skerry.core.errors import DataError, SkerryWarning

__all__ = ["declared_numbers", "is_outrank_folder", "read_outrank_folder", "read_ragged"]

SHOWN = 5  # bad lines that are told, each cut to WIDTH characters
WIDTH = 60

Lines = Iterator[tuple[str, list[str] | None, str]]  # place, fields (None: unreadable), text to show


def is_outrank_folder(path: object) -> bool:
    """Return whether ``path`` is a folder in one of the four layouts."""
    if not isinstance(path, (str, Path)) or not Path(path).is_dir():
        return False
    files = ("data.csv", "data.vw.gz", "raw_data/0_header/header.csv")
    return any((Path(path) / name).is_file() for name in files)


def declared_numbers(path: object) -> frozenset[str] | None:
    """Return the columns that the folder's description declares to be floats; None if it has no description.

    ``type`` containing "float" in ``dataset_desc.json``; ``f32`` in ``vw_namespace_map.csv``.
    """
    if not is_outrank_folder(path):
        return None
    folder = Path(str(path))
    if (folder / "dataset_desc.json").is_file():
        return frozenset(str(f["name"]) for f in _description(folder) if "float" in str(f.get("type", "")).lower())
    if (folder / "vw_namespace_map.csv").is_file() and not (folder / "data.csv").is_file():
        return frozenset(r[1] for r in _namespaces(folder) if len(r) > 2 and r[2] == "f32")
    return None


def read_outrank_folder(path: str | Path, rows: int = 65_536) -> Iterator[Any]:
    """Yield polars frames of text of at most ``rows`` rows from a folder of the tool.

    ``data.csv`` (with ``dataset_desc.json`` for names and types, if there); ``data.vw.gz`` with
    ``vw_namespace_map.csv`` (lines ``id,name[,f32]``): Vowpal-Wabbit lines ``label |A v1 v2 |B v3``, the values of a
    namespace joined by ``-``; or ``raw_data``: the tab-separated names in ``0_header/header.csv``, the rows in all
    files (also ``.gz``) under ``1_train``. Lines of another width are counted, and a warning shows the first five.

    Parameters
    ----------
    path : str or Path
    rows : int, default 65536

    Raises
    ------
    DataError
        If a file is missing, empty or damaged.
    """
    folder = Path(path)
    if (folder / "data.csv").is_file():
        names, lines = _csv_lines(folder)
    elif (folder / "data.vw.gz").is_file():
        names, lines = _vw_lines(folder)
    else:
        names, lines = _raw_lines(folder)
    return _frames(str(folder), names, lines, rows)


def read_ragged(path: str | Path, rows: int = 65_536) -> Iterator[Any]:
    """Yield polars frames of text from a CSV or TSV file (also ``.gz``) that has lines of the wrong width.

    Raises
    ------
    DataError
        If the file is empty or damaged.
    """
    from skerry.data.tables import MISSING_TEXT

    source = Path(path)
    with _open(source) as file:
        head = file.readline()
    separator = max(",;\t|", key=head.count)
    missing = set(MISSING_TEXT)
    lines = _parsed(source, separator)
    header = next(lines)[1]
    if not header:
        raise DataError(f"{source}: the first line does not name the columns")
    cleaned = (
        (place, None if row is None else ["" if v in missing else v for v in row], text) for place, row, text in lines
    )
    return _frames(str(source), [h.strip() for h in header], cleaned, rows)


def _frames(name: str, names: list[str], lines: Lines, rows: int) -> Iterator[Any]:
    import polars as pl

    if len(set(names)) != len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise DataError(f"{name}: two columns are named {twice!r}; rename one")
    bad: list[str] = []
    count = 0
    block: list[list[str]] = []

    def frame() -> Any:
        return pl.DataFrame(block, schema=dict.fromkeys(names, pl.String), orient="row")

    try:
        for place, line, text in lines:
            if line is None or len(line) != len(names):
                count += 1
                if len(bad) < SHOWN:
                    bad.append(f"{place} {text.strip()[:WIDTH]!r}")
                continue
            block.append(line)
            if len(block) == rows:
                yield frame()
                block = []
    except (OSError, EOFError) as error:
        raise DataError(f"{name}: {error}; the file is damaged") from None
    if block:
        yield frame()
    if count:
        message = f"{name}: {count:,} bad lines were skipped; first: {', '.join(bad)}"
        warnings.warn(message, SkerryWarning, stacklevel=2)


def _open(path: Path) -> Any:
    try:
        if path.suffix == ".gz":
            return gzip.open(path, "rt", encoding="utf-8-sig", errors="replace", newline="")
        return open(path, encoding="utf-8-sig", errors="replace", newline="")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _parsed(path: Path, separator: str) -> Lines:
    """Yield the parsed lines of a text table; blank ones are left out."""
    with _open(path) as file:
        reader = csv.reader(file, delimiter=separator)
        while True:
            try:
                row = next(reader, None)
            except csv.Error as error:
                yield f"line {reader.line_num}", None, str(error)
                continue
            if row is None:
                return
            if row:
                yield f"line {reader.line_num}", row, separator.join(row)


def _description(folder: Path) -> list[dict[str, Any]]:
    path = folder / "dataset_desc.json"
    try:
        features = json.loads(path.read_text(encoding="utf-8"))["data_features"]
        if not features or not all("name" in f for f in features):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{path}: needs a list data_features of objects with a name") from None
    return features


def _csv_lines(folder: Path) -> tuple[list[str], Lines]:
    path = folder / "data.csv"
    first = next(_parsed(path, ","), None)
    if first is None or first[1] is None:
        raise DataError(f"{path}: is empty")
    header = first[1]
    if (folder / "dataset_desc.json").is_file():
        header = [str(f["name"]) for f in _description(folder)]
    lines = _parsed(path, ",")
    if first[1] == header:
        next(lines)
    return header, lines


def _namespaces(folder: Path) -> list[list[str]]:
    try:
        text = (folder / "vw_namespace_map.csv").read_text(encoding="utf-8")
    except OSError:
        raise DataError(f"{folder}: data.vw.gz needs vw_namespace_map.csv beside it") from None
    return [r for r in csv.reader(text.splitlines()) if len(r) >= 2]


def _vw_lines(folder: Path) -> tuple[list[str], Lines]:
    spaces = {r[0]: r[1] for r in _namespaces(folder)}

    def lines() -> Lines:
        with _open(folder / "data.vw.gz") as file:
            for number, text in enumerate(file, 1):
                label, *parts = text.strip().split("|")
                row = dict.fromkeys(spaces, "")
                known = bool(label.strip()) and bool(parts)
                for part in parts:
                    space, *values = part.split() if part.strip() else [""]
                    known = known and (space in row or not space)
                    if space in row:
                        row[space] = "-".join(values)
                yield f"line {number}", [*row.values(), label.split()[0]] if known else None, text

    return [*spaces.values(), "label"], lines()


def _raw_lines(folder: Path) -> tuple[list[str], Lines]:
    first = next(_parsed(folder / "raw_data/0_header/header.csv", "\t"), None)
    if first is None or first[1] is None:
        raise DataError(f"{folder}/raw_data/0_header/header.csv: is empty")
    names = [n.strip() for n in first[1]]
    parts = sorted(
        p for p in (folder / "raw_data/1_train").rglob("*") if p.is_file() and not p.name.startswith((".", "_"))
    )
    if not parts:
        raise DataError(f"{folder}/raw_data/1_train: holds no part file")

    def lines() -> Lines:
        for part in parts:
            for at, (place, row, text) in enumerate(_parsed(part, "\t")):
                if at or row is None or [v.strip() for v in row] != names:  # a part may repeat the header
                    yield f"{part.relative_to(folder)} {place}", row, text

    return names, lines()
