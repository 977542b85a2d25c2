"""Folders that the published ``outrank`` tool reads, and its outputs, so that two runs can be compared."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skerry.core.errors import DataError, SkerryWarning
from skerry.core.files import atomic_write
from skerry.rank.redundancy import unit_scale

if TYPE_CHECKING:
    from skerry.rank.outrank import OutRank

__all__ = ["is_outrank_folder", "read_outrank_folder", "write_results"]


def is_outrank_folder(path: object) -> bool:
    """Return whether ``path`` is a folder with ``data.csv`` or ``data.vw.gz``."""
    if not isinstance(path, (str, Path)) or not Path(path).is_dir():
        return False
    return (Path(path) / "data.csv").is_file() or (Path(path) / "data.vw.gz").is_file()


def read_outrank_folder(path: str | Path, rows: int = 65_536) -> Iterator[Any]:
    """Yield polars frames of text of at most ``rows`` rows from a folder of the tool.

    ``data.csv`` (with ``dataset_desc.json`` for the names, if there), or ``data.vw.gz`` with
    ``vw_namespace_map.csv`` (lines ``id,name[,type]``): Vowpal-Wabbit lines ``label |A v1 v2 |B v3``, the
    values
    of a namespace joined by ``-``. Lines of another width are counted and the first five are shown in a
    warning.

    Raises
    ------
    DataError
        If a file is missing, empty or not what it should be.
    """
    import warnings

    import polars as pl

    folder = Path(path)
    bad: list[int] = []
    count = 0

    def frame(names: list[str], block: list[list[str]]) -> Any:
        return pl.DataFrame(
            {n: [r[i] for r in block] for i, n in enumerate(names)}, schema=dict.fromkeys(names, pl.String)
        )

    names, lines = _csv_lines(folder) if (folder / "data.csv").is_file() else _vw_lines(folder)
    if len(set(names)) != len(names):
        raise DataError(f"{folder}: two columns have one name")
    block: list[list[str]] = []
    try:
        for number, line in lines:
            if line is None or len(line) != len(names):
                count += 1
                bad += [number] if len(bad) < 5 else []
                continue
            block.append(line)
            if len(block) == rows:
                yield frame(names, block)
                block = []
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{folder}: {error}; the file is damaged") from None
    if block:
        yield frame(names, block)
    if count:
        warnings.warn(f"{folder}: {count} bad lines were skipped, first {bad}", SkerryWarning, stacklevel=2)


def _csv_lines(folder: Path) -> tuple[list[str], Iterator[tuple[int, list[str] | None]]]:
    described = folder / "dataset_desc.json"
    with open(folder / "data.csv", encoding="utf-8", errors="replace", newline="") as file:
        header = next(csv.reader(file), None)
    if not header:
        raise DataError(f"{folder / 'data.csv'}: is empty")
    if described.is_file():
        try:
            header = [str(f["name"]) for f in json.loads(described.read_text(encoding="utf-8"))["data_features"]]
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{described}: needs a list data_features of objects with a name") from None

    def lines() -> Iterator[tuple[int, list[str] | None]]:
        with open(folder / "data.csv", encoding="utf-8", errors="replace", newline="") as file:
            for number, line in enumerate(csv.reader(file), 1):
                if line and not (number == 1 and line == header):
                    yield number, line

    return header, lines()


def _vw_lines(folder: Path) -> tuple[list[str], Iterator[tuple[int, list[str] | None]]]:
    try:
        text = (folder / "vw_namespace_map.csv").read_text(encoding="utf-8")
    except OSError:
        raise DataError(f"{folder}: data.vw.gz needs vw_namespace_map.csv beside it") from None
    spaces = {r[0]: r[1] for r in csv.reader(text.splitlines()) if len(r) >= 2}

    def lines() -> Iterator[tuple[int, list[str] | None]]:
        with gzip.open(folder / "data.vw.gz", "rt", encoding="utf-8", errors="replace") as file:
            for number, text in enumerate(file, 1):
                label, *parts = text.strip().split("|")
                if not label.strip() or not parts:
                    yield number, None
                    continue
                row = dict.fromkeys(spaces, "")
                for part in parts:
                    space, *values = part.split() if part.strip() else [""]
                    if space in row:
                        row[space] = "-".join(values)
                yield number, [*row.values(), label.split()[0]]

    return [*spaces.values(), "label"], lines()


def write_results(ranker: OutRank, folder: str | Path) -> None:
    """Write ``ranking.csv``, ``quality.csv`` and the tool's own tables of a fitted ranker to ``folder``.

    The tool's: ``feature_singles.tsv`` (min-max scaled scores), ``pairwise_ranks.tsv`` (both orders; names
    end in
    ``-(cardinality; coverage)``), ``value_repetitions.json``, ``arguments.json``.

    Raises
    ------
    DataError
        If the folder cannot be made.
    """
    import polars as pl

    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot make the folder ({error.strerror})") from None

    def table(name: str, frame: Any, separator: str) -> None:
        with atomic_write(folder / name) as file:
            frame.write_csv(file, separator=separator)

    def document(name: str, value: Any) -> None:
        with atomic_write(folder / name) as file:
            file.write(json.dumps(value, indent=1, default=str).encode())

    table("ranking.csv", ranker.ranking_, ",")
    table("quality.csv", ranker.quality_, ",")
    quality = {r["feature"]: r for r in ranker.quality_.to_dicts()}
    label = {n: f"{n}-({r['cardinality']}; {round(r['coverage'])})" for n, r in quality.items()}
    names = [label.get(n, n) for n in ranker.ranking_["feature"]]
    scaled = unit_scale(ranker.ranking_["score"].to_numpy())
    table("feature_singles.tsv", pl.DataFrame({"Feature": names, "Score": scaled}), "\t")
    if hasattr(ranker, "pairs_"):
        a, b = ([label[n] for n in ranker.pairs_[side]] for side in ("a", "b"))
        pairs = pl.DataFrame({"FeatureA": a + b, "FeatureB": b + a, "Score": [*ranker.pairs_["score"]] * 2})
        table("pairwise_ranks.tsv", pairs.unique(maintain_order=True), "\t")
    repeats = {n: {k: v for k, v in r.items() if k.startswith("seen_over_")} for n, r in quality.items()}
    document("value_repetitions.json", repeats)
    document("arguments.json", ranker.get_params())
