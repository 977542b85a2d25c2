"""Where the batches of a table are worked on: here, one after another, or on the machines of a Ray cluster.

Ray Data reads the row groups of Parquet files where it works; any other source is read here and handed over in
windows. Either way the results come back in the order of the rows, and the machine that asked holds one window.
"""

from __future__ import annotations

import itertools
import logging
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from skerry.core.errors import DataError, MissingExtra, ParameterError, SkerryError
from skerry.data.table import Table, first_line

if TYPE_CHECKING:
    import polars as pl

__all__ = ["ENGINES", "check_engine", "map_batches"]

ENGINES = ("local", "ray")
WINDOW = 16  # batches that are handed to Ray together
_last: list[Any] = ["", None]  # in a worker: the name of the function it got last, and the function


def check_engine(engine: str) -> None:
    """Raise ParameterError for an unknown engine, MissingExtra if Ray Data is not installed.

    >>> check_engine("local")
    """
    if engine not in ENGINES:
        raise ParameterError(f"unknown engine {engine!r}: use {' or '.join(ENGINES)}")
    if engine == "ray":
        try:
            import ray.data  # noqa: F401
        except ImportError:
            raise MissingExtra("ray", "scale") from None


def map_batches(
    table: Table, function: Callable[[int, pl.DataFrame], Any], rows: int = 65_536, engine: str = "local"
) -> Iterator[Any]:
    """Yield ``function(first row, frame)`` of every batch, in the order of the rows.

    Parameters
    ----------
    table : Table
    function : callable (int, polars.DataFrame)
        It must not depend on where the batches are cut; for "ray" it and its results must be picklable.
    rows : int, default 65536
        Most rows of a batch.
    engine : {"local", "ray"}, default "local"
        "ray" joins the cluster that RAY_ADDRESS names, or starts Ray on this machine.

    Raises
    ------
    DataError, ParameterError
        What ``function`` or the reader raised, wherever that was.
    MissingExtra
        If Ray Data is asked for and not installed.

    Examples
    --------
    >>> import numpy as np
    >>> from skerry.data.tables import open_table
    >>> list(map_batches(open_table(np.zeros((5, 1))), lambda start, frame: (start, frame.height), rows=3))
    [(0, 3), (3, 2)]
    """
    check_engine(engine)
    if engine == "local":
        start = 0
        for frame in table.batches(rows):
            yield function(start, frame)
            start += frame.height
        return
    yield from _by_ray(table, function, rows)


def _by_ray(table: Table, function: Callable[[int, pl.DataFrame], Any], rows: int) -> Iterator[Any]:
    import ray

    with _quiet_ray():
        if not ray.is_initialized():
            ray.init(log_to_driver=False, logging_level="ERROR", include_dashboard=False)
        context = ray.data.DataContext.get_current()
        before = context.execution_options.preserve_order, context.enable_progress_bars
        context.execution_options.preserve_order, context.enable_progress_bars = True, False
        packed = ray.put(ray.cloudpickle.dumps(function))
        try:
            for window in _windows(table, rows):
                found = ray.data.from_items(window, override_num_blocks=len(window)).map_batches(
                    _work, batch_size=1, fn_args=[packed, rows]
                )
                for row in found.iter_rows():
                    for kind, result in pickle.loads(row["results"]):  # made by our own workers
                        if kind == "error":
                            raise result
                        yield result
        except ray.exceptions.RayError as error:
            cause: BaseException = error
            while deeper := getattr(cause, "cause", None) or cause.__cause__:
                cause = deeper
            raise DataError(f"{table.name}: Ray could not work on it ({first_line(cause)})") from None
        finally:
            context.execution_options.preserve_order, context.enable_progress_bars = before


@contextmanager
def _quiet_ray() -> Iterator[None]:
    """Keep Ray's own talk off stderr; what goes wrong is raised."""
    loggers = [logging.getLogger(name) for name in ("ray", "ray.data")]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)


def _windows(table: Table, rows: int) -> Iterator[list[dict[str, Any]]]:
    """Yield lists of tasks: row groups to be read by the worker, or rows that were read here."""
    if table.row_groups:
        start, tasks = 0, []
        for path, group, height in table.row_groups:
            tasks.append({"start": start, "path": str(path), "group": group, "rows": b""})
            start += height
        yield tasks
        return
    start = 0
    batches = table.batches(rows)
    while frames := list(itertools.islice(batches, WINDOW)):
        tasks = []
        for frame in frames:
            tasks.append({"start": start, "path": "", "group": 0, "rows": pickle.dumps(frame, protocol=5)})
            start += frame.height
        yield tasks


def _work(task: dict[str, Any], packed: Any, rows: int) -> dict[str, list[bytes]]:
    """Run in a worker: read the rows of one task, and apply the function to each batch of them."""
    import ray

    from skerry.data.table_parquet import read_row_group

    if _last[0] != packed.hex():
        _last[:] = packed.hex(), pickle.loads(ray.get(packed))
    start, path = int(task["start"][0]), str(task["path"][0])
    found: list[tuple[str, Any]] = []
    try:
        frames = read_row_group(path, int(task["group"][0]), rows) if path else [pickle.loads(task["rows"][0])]
        for frame in frames:
            found.append(("result", _last[1](start, frame)))
            start += frame.height
    except SkerryError as error:
        found.append(("error", error))
    return {"results": [pickle.dumps(found, protocol=5)]}
