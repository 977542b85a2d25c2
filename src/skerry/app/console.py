"""What the sub-commands share: progress on stderr, warnings as notes, findings handed out, threads."""

from __future__ import annotations

import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["at_hand", "hand_out", "progress", "quiet_warnings", "usable_engine", "use_threads"]


def at_hand(*paths: Path | None) -> None:
    """Refuse a file that is not there before anything large is loaded (DataError)."""
    from skerry.core.errors import DataError

    for path in paths:
        if path is not None and not path.is_file():
            raise DataError(f"{path}: no such file")


@contextmanager
def progress(title: str, enabled: bool = True) -> Iterator[Callable[[int, int | None], None]]:
    """Yield ``update(done, total)`` that draws a bar on stderr when stderr is a terminal."""
    if not enabled or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def quiet_warnings(enabled: bool = True) -> Iterator[list[str]]:
    """Collect Skerry's own warnings as plain lines for the notes; drop third-party chatter."""
    from skerry.core.errors import SkerryWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", SkerryWarning)
        lines: list[str] = []
        try:
            yield lines
        finally:
            lines.extend(dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, SkerryWarning)))


def hand_out(
    findings: Any,
    show: Callable[[], None],
    as_json: bool,
    *,
    scores: Path | None,
    report: Path | None,
    model: Path | None,
) -> None:
    """Write the report; print the findings as JSON, or with ``show`` and then what was written where."""
    findings.command = shlex.join(["skerry", *sys.argv[1:]])
    if report is not None:
        findings.to_html(report)
    if as_json:
        sys.stdout.write(findings.to_json() + "\n")
        return
    show()
    for kind, where in (("scores", scores), ("report", report), ("model", model)):
        if where is not None:
            print(f"{kind}: {where}")


def use_threads(n: int | None) -> None:
    """Hold every compiled loop, BLAS and polars to ``n`` threads; must run before they are imported."""
    if n is None:
        return
    for name in ("NUMBA", "OMP", "MKL", "OPENBLAS"):
        os.environ[f"{name}_NUM_THREADS"] = str(n)
    os.environ["POLARS_MAX_THREADS"] = str(n)


def usable_engine(engine: str) -> None:
    """Refuse an unknown ``--engine`` before anything is read, and one that is not installed (MissingExtra)."""
    if engine == "local":
        return
    import typer

    from skerry.core.errors import ParameterError
    from skerry.data.engine import check_engine

    try:
        check_engine(engine)
    except ParameterError as error:
        raise typer.BadParameter(f"--engine: {error}") from None
