"""The command ``skerry``: one file per sub-command; this one joins them and turns errors into one line.

Exit codes: 0 done, 1 bad input, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import os
import sys

import typer

from skerry.app.bench import bench
from skerry.app.detect import detect
from skerry.app.diagnose import diagnose
from skerry.app.papers import papers
from skerry.app.quantize import quantize
from skerry.app.rank import rank

__all__ = ["app", "main"]

INTERRUPTED = "interrupted; nothing half-written was left"

app = typer.Typer(
    name="skerry",
    help="Outliers, end to end: find them, rank features, run networks in few bits, and see why.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.command()(detect)
app.command()(rank)
app.command()(diagnose)
app.command()(quantize)
app.command()(papers)
app.add_typer(bench, name="bench")


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and stop."),
) -> None:
    if version:
        from skerry import __version__

        typer.echo(f"skerry {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Run the command; a user's mistake ends in one line on stderr, never in a traceback."""
    try:
        app(standalone_mode=True)
    except KeyboardInterrupt:
        _fail(INTERRUPTED, 130)
    except SystemExit as stop:
        if stop.code == 130:  # typer's way to say the same, without a word
            _fail(INTERRUPTED, 130)
        raise
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except MemoryError:
        _fail("out of memory: use a smaller --sample-rows or fewer columns", 1)
    except Exception as error:
        if os.environ.get("SKERRY_DEBUG"):
            raise
        from skerry.core.errors import SkerryError

        if isinstance(error, (SkerryError, OSError)):
            _fail(str(error), 1)
        _fail(
            f"{type(error).__name__}: {error} (this is a defect of skerry; SKERRY_DEBUG=1 shows where it arose)",
            1,
        )


def _fail(message: str, code: int) -> None:
    line = " ".join(message.split())
    print(f"skerry: error: {line}", file=sys.stderr)
    sys.exit(code)
