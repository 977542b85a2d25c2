"""The labelled series that the series studies run on, in one form: a train part, a test part, labels of the test part.

The files lie under ``series/`` of the data folder: subsets of NAB, SMD, ASD, MSL, SMAP, SKAB and the UCR anomaly
archive. Nothing is downloaded. Where a set has no train part of its own, the start of each series that its authors
set aside for learning is taken:

* NAB: the probation, the first 15 % but at most 750 steps (Lavin and Ahmad, 2015);
* SKAB: the first 400 steps of each run;
* UCR: as the file says.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from skerry.core.errors import DataError, ParameterError, nearest

__all__ = ["SERIES_GROUPS", "LabelledSeries", "labelled_series"]


@dataclass(frozen=True, eq=False)
class LabelledSeries:
    """One series of a benchmark.

    Attributes
    ----------
    group : str
        The set: ``nab``, ``smd``, ``asd``, ``msl``, ``smap``, ``skab`` or ``ucr``.
    name : str
    train : ndarray of shape (T0, c), float64
        Ordinary as far as the authors know. In SKAB one run (other-2) is anomalous there for 296 steps.
    test : ndarray of shape (T, c), float64
    label : ndarray of shape (T,), bool
        The anomalous steps of ``test``.
    channels : list of str
    time : ndarray of shape (T,), datetime64[us], or None
        The stamps of ``test`` where the set has them.
    blame : dict of (start, stop) to tuple of int
        The channels that the authors blame for an anomaly, counted from 0 (SMD, ASD); steps of ``test``.
    kinds : dict of (start, stop) to str
        What else they say of it (ASD: metric or temporal; NAB: the step marked by hand).
    """

    group: str
    name: str
    train: NDArray[np.float64]
    test: NDArray[np.float64]
    label: NDArray[np.bool_]
    channels: list[str]
    time: NDArray[np.datetime64] | None = None
    blame: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)
    kinds: dict[tuple[int, int], str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return (
            f"<LabelledSeries {self.group}/{self.name}: {len(self.train):,} + {len(self.test):,} steps x "
            f"{self.test.shape[1]} channels, {self.label.mean():.1%} anomalous>"
        )

    @property
    def has_anomaly(self) -> bool:
        """Whether the test part holds both ordinary and anomalous steps, as measures need."""
        return bool(self.label.any() and not self.label.all())


def labelled_series(
    data: Path, groups: str | Iterable[str] | None = None, *, names: Iterable[str] | None = None
) -> Iterator[LabelledSeries]:
    """Yield the series of some sets, one at a time, in order of their names.

    Parameters
    ----------
    data : Path
        The data folder, which holds ``series/``.
    groups : str or iterable of str, optional
        Of ``nab``, ``smd``, ``asd``, ``msl``, ``smap``, ``skab``, ``ucr``; all by default.
    names : iterable of str, optional
        Only these series.

    Raises
    ------
    DataError
        If a file is missing or damaged; the message names it. Raised when the series is reached.
    ParameterError
        For an unknown group, at once.
    """
    chosen = [groups] if isinstance(groups, str) else list(groups) if groups is not None else list(SERIES_GROUPS)
    for group in chosen:
        if group not in SERIES_GROUPS:
            raise ParameterError(f"unknown group of series {group!r}; {nearest(str(group), SERIES_GROUPS)}")
    wanted = None if names is None else frozenset(names)
    folder = Path(data) / "series"

    def each() -> Iterator[LabelledSeries]:
        for group in chosen:
            yield from SERIES_GROUPS[group](folder, wanted)

    return each()


def _files(folder: Path, pattern: str, wanted: frozenset[str] | None) -> list[Path]:
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise DataError(f"{folder / pattern}: no such file; is the data folder the right one (--data, SKERRY_DATA)?")
    return [p for p in paths if wanted is None or p.stem in wanted]


def _arrays(path: Path, *keys: str) -> dict[str, NDArray]:
    """Read the named arrays, each once."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {k: archive[k] for k in (keys or archive.files)}
    except KeyError as error:
        raise DataError(f"{path}: {error.args[0]}") from None
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: not a whole .npz of plain arrays ({error})") from None


def _table(path: Path):
    import polars as pl

    try:
        return pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from None


def _matrix(x: NDArray) -> NDArray[np.float64]:
    x = np.ascontiguousarray(x, dtype=np.float64)
    return x[:, None] if x.ndim == 1 else x


def _numbered(c: int) -> list[str]:
    return [f"x{j}" for j in range(c)]


# ---- one set each --------------------------------------------------------------------------------------------


def _nab(folder: Path, wanted: frozenset[str] | None) -> Iterator[LabelledSeries]:
    """Numenta anomaly benchmark: one channel; a label is the window around an anomaly in which an alarm counts."""
    table = _table(folder / "nab.parquet")
    points = json.loads((folder / "nab_labels.json").read_text())
    for part in sorted(table.partition_by("name"), key=lambda p: p["name"][0]):
        name, group = part["name"][0], part["group"][0]
        if wanted is not None and name not in wanted:
            continue
        value, label = part["value"].to_numpy(), part["in_window"].to_numpy().astype(bool)
        time = part["timestamp"].to_numpy().astype("datetime64[us]")
        cut = int(min(np.floor(0.15 * value.size), 750))
        marks = [np.datetime64(p) for p in points[f"{group}/{name}.csv"]["points"]]
        kinds = {}
        for mark in marks:
            step = int(np.searchsorted(time[cut:], mark))
            kinds[step, step + 1] = "marked by hand"
        yield LabelledSeries(
            "nab", name, _matrix(value[:cut]), _matrix(value[cut:]), label[cut:], ["value"], time[cut:], kinds=kinds
        )


def _machines(group: str, last: int) -> Callable[[Path, frozenset[str] | None], Iterator[LabelledSeries]]:
    """SMD and ASD: telemetry of servers. ``last`` is what lies between the end of a span and its stop."""

    def span(text: str) -> tuple[tuple[int, int], str]:
        where, _, what = text.partition(":")
        start, _, end = where.partition("-")
        return (int(start), int(end) + last), what

    def read(folder: Path, wanted: frozenset[str] | None) -> Iterator[LabelledSeries]:
        for path in _files(folder, f"{group}/*.npz", wanted):
            z = _arrays(path)
            blame = {at: tuple(int(c) - 1 for c in what.split(",")) for at, what in map(span, z["interpretation"])}
            kinds = dict(map(span, z.get("anomaly_type", ())))
            train, test, label = _matrix(z["train"]), _matrix(z["test"]), z["label"].astype(bool)
            yield LabelledSeries(group, path.stem, train, test, label, _numbered(test.shape[1]), None, blame, kinds)

    return read


def _telemetry(group: str) -> Callable[[Path, frozenset[str] | None], Iterator[LabelledSeries]]:
    """MSL and SMAP of NASA: channel 0 is the telemetry, the others are commands as 0 and 1."""

    def read(folder: Path, wanted: frozenset[str] | None) -> Iterator[LabelledSeries]:
        for path in _files(folder, f"{group}/*.npz", wanted):
            z = _arrays(path, "train", "test", "label")
            train, test = _matrix(z["train"]), _matrix(z["test"])
            names = ["telemetry", *(f"command{j}" for j in range(1, test.shape[1]))]
            yield LabelledSeries(group, path.stem, train, test, z["label"].astype(bool), names)

    return read


def _skab(folder: Path, wanted: frozenset[str] | None) -> Iterator[LabelledSeries]:
    """SKAB: runs of a water loop, 8 sensors; each run apart."""
    for path in _files(folder / "skab", "*.parquet", None):
        if path.stem == "anomaly_free":
            continue
        table = _table(path)
        sensors = [c for c in table.columns if c not in ("datetime", "anomaly", "changepoint", "group", "run")]
        for part in table.partition_by("run", maintain_order=True):
            name = f"{path.stem}-{part['run'][0]}"
            if wanted is not None and name not in wanted:
                continue
            x, label = _matrix(part.select(sensors).to_numpy()), part["anomaly"].to_numpy().astype(bool)
            time = part["datetime"].to_numpy().astype("datetime64[us]")
            yield LabelledSeries("skab", name, x[:400], x[400:], label[400:], sensors, time[400:])


def _ucr(folder: Path, wanted: frozenset[str] | None) -> Iterator[LabelledSeries]:
    """UCR anomaly archive: one channel, one anomaly; begin and end are inclusive, as in the file's name."""
    for path in _files(folder, "ucr/*.npz", wanted):
        z = _arrays(path, "value", "train_end", "anomaly")
        cut, (begin, end) = int(z["train_end"]), z["anomaly"].tolist()
        x = _matrix(z["value"])
        label = np.zeros(len(x), dtype=bool)
        label[begin : end + 1] = True
        yield LabelledSeries("ucr", path.stem, x[:cut], x[cut:], label[cut:], ["value"])


SERIES_GROUPS: dict[str, Callable[[Path, frozenset[str] | None], Iterator[LabelledSeries]]] = {
    "nab": _nab,
    "smd": _machines("smd", last=0),  # the end of a span is its stop
    "asd": _machines("asd", last=1),  # the end is the last step
    "msl": _telemetry("msl"),
    "smap": _telemetry("smap"),
    "skab": _skab,
    "ucr": _ucr,
}
