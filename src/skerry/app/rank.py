"""``skerry rank``: which columns carry signal about a target, and which are noise or broken."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from skerry.app.console import quiet_warnings, use_threads

__all__ = ["rank"]


def rank(
    path: Annotated[str, typer.Argument(help="CSV, TSV, Parquet, Arrow, JSONL, or a folder of the outrank tool.")],
    target: Annotated[str, typer.Option(help="The column that the others are ranked against.")],
    pairwise: Annotated[bool, typer.Option(help="Score all pairs of columns too.")] = False,
    interaction_order: Annotated[int, typer.Option(min=1, max=4, help="2 crosses pairs of columns.")] = 1,
    three_mr: Annotated[bool, typer.Option("--3mr", help="Order by relevance, redundancy and relation.")] = False,
    controls: Annotated[bool, typer.Option(help="Rank control columns of pure noise along.")] = True,
    correction: Annotated[str, typer.Option(help="permutation, expected, shift or none.")] = "permutation",
    subsample: Annotated[int, typer.Option(min=1, help="Read every k-th row.")] = 1,
    top: Annotated[int, typer.Option(min=1, help="Columns to print.")] = 20,
    out: Annotated[Path | None, typer.Option(help="Folder for the ranking, pairs and quality tables.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: all cores.")] = None,
) -> None:
    """Rank the columns of a table by what they tell about a target, corrected for chance.

    Example: `skerry rank clicks.parquet --target label`
    """
    use_threads(threads)
    if correction not in ("permutation", "expected", "shift", "none"):
        raise typer.BadParameter(f"--correction {correction!r}: use permutation, expected, shift or none")
    with quiet_warnings() as warned:
        from skerry.rank import OutRank

        ranker = OutRank(
            correction=correction,
            interaction_order=interaction_order,
            pairwise=pairwise or three_mr,
            controls=controls,
            subsampling=subsample,
            random_state=seed,
        ).fit(path, target=target)
        steps = ranker.rank_3mr() if three_mr else None
    ranking = ranker.ranking_
    if out is not None:
        ranker.write(out)
    if as_json:
        payload = {"rows": ranker.n_rows_, "target": target, "ranking": ranking.to_dicts(), "notes": warned}
        if pairwise:
            payload["pairs"] = ranker.pairs_.to_dicts()
        if steps is not None:
            payload["3mr"] = steps if isinstance(steps, list) else steps.to_dicts()
        sys.stdout.write(json.dumps(payload, default=str) + "\n")
        return
    _print(ranker, ranking.head(top), target)
    if steps is not None:
        rows = steps if isinstance(steps, list) else steps.to_dicts()
        typer.echo("3MR order: " + ", ".join(str(r["feature"]) for r in rows[:top]))
    for line in [*ranker.anomalies_, *warned]:
        typer.echo(f"note: {line}")
    if out is not None:
        typer.echo(f"tables: {out}")


def _print(ranker: object, ranking: object, target: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    console.print(f"{ranker.n_rows_:,} rows, {ranker.ranking_.height} columns ranked against {target}", style="bold")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("feature", "score", "z", "q_value", "cardinality", "coverage"):
        table.add_column(name, justify="left" if name == "feature" else "right")
    for row in ranking.to_dicts():
        noise = row.get("above_control") is False
        table.add_row(
            Text(str(row["feature"])),
            *(_cell(row.get(k)) for k in ("score", "z", "q_value", "cardinality", "coverage")),
            style="dim" if noise else "",
        )
    console.print(table)


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
