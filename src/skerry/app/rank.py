"""``skerry rank``: which columns carry signal about a target, and which are noise or broken."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skerry.app.console import progress, quiet_warnings, usable_engine, use_threads

if TYPE_CHECKING:
    from skerry.rank import OutRank

__all__ = ["rank"]

NARROW = 60  # columns of a terminal that has no room for more than the score
_CHOICES = {
    "correction": ("permutation", "expected", "shift", "none"),
    "mode": ("auto", "cumulative", "batch-median"),
    "normalize": ("min-max", "target-entropy"),
    "transforms": ("default", "fw"),
}


def rank(
    path: Annotated[str, typer.Argument(help="CSV, TSV, Parquet, Arrow, JSONL, or a folder of the outrank tool.")],
    target: Annotated[str, typer.Option(help="The column that the others are ranked against.")],
    pairwise: Annotated[bool, typer.Option(help="Score all pairs of columns too.")] = False,
    interaction_order: Annotated[int, typer.Option(min=1, max=4, help="2 crosses pairs of columns.")] = 1,
    max_combinations: Annotated[int, typer.Option(min=1, help="Crosses counted in a block of rows.")] = 32_768,
    three_mr: Annotated[bool, typer.Option("--3mr", help="Order by relevance, redundancy and relation.")] = False,
    controls: Annotated[bool, typer.Option(help="Rank control columns of pure noise along.")] = True,
    heuristic: Annotated[str, typer.Option(help="information, or a heuristic of the outrank tool.")] = "information",
    correction: Annotated[str, typer.Option(help="permutation, expected, shift or none.")] = "permutation",
    permutations: Annotated[int, typer.Option(min=1, help="Draws of chance.")] = 3,
    mode: Annotated[str, typer.Option(help="auto, cumulative or batch-median.")] = "auto",
    batch_rows: Annotated[int, typer.Option(min=1, help="Rows of a mini-batch.")] = 16_384,
    normalize: Annotated[str | None, typer.Option(help="min-max or target-entropy.")] = None,
    transforms: Annotated[str | None, typer.Option(help="Rank transforms of numbers too: default or fw.")] = None,
    sub_feature: Annotated[list[str] | None, typer.Option(help="A->B or A<->B; may be repeated.")] = None,
    multi_value: Annotated[list[str] | None, typer.Option(help="A column of lists (x,y,z); may be repeated.")] = None,
    reference: Annotated[Path | None, typer.Option(help="JSON of the features a model already has.")] = None,
    missing: Annotated[str, typer.Option(help="Symbols that mean no value, with commas between.")] = ",{}",
    rare: Annotated[int, typer.Option(min=0, help="Values seen at most so often are rare.")] = 1,
    row_quality: Annotated[bool, typer.Option(help="Report on rows too (in --out).")] = False,
    subsample: Annotated[int, typer.Option(min=1, help="Read every k-th row.")] = 1,
    engine: Annotated[str, typer.Option(help="local, or ray: columns are encoded by Ray Data.")] = "local",
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
    usable_engine(engine)
    chosen = {"correction": correction, "mode": mode, "normalize": normalize, "transforms": transforms}
    for name, value in chosen.items():
        if value is not None and value not in _CHOICES[name]:
            raise typer.BadParameter(f"--{name} {value!r}: use {', '.join(_CHOICES[name])}")
    with quiet_warnings() as warned, progress("reading") as update:
        from skerry.rank import OutRank
        from skerry.rank.surrogates import HEURISTICS

        if heuristic not in HEURISTICS:
            raise typer.BadParameter(f"--heuristic {heuristic!r}: use {', '.join(HEURISTICS)}")
        wall, cpu = time.perf_counter(), time.process_time()
        ranker = OutRank(
            heuristic=heuristic,
            **chosen,
            n_permutations=permutations,
            batch_rows=batch_rows,
            interaction_order=interaction_order,
            max_combinations=max_combinations,
            pairwise=pairwise,
            controls=controls,
            sub_features=tuple(sub_feature or ()),
            multi_value=tuple(multi_value or ()),
            reference=reference,
            missing=tuple(missing.split(",")),
            rare=rare,
            row_quality=row_quality,
            subsampling=subsample,
            random_state=seed,
        ).fit(path, target=target, engine=engine, on_progress=update)
        steps = ranker.rank_3mr() if three_mr else getattr(ranker, "steps_3mr_", None)
        seconds = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    warned += _continuous(ranker)
    if out is not None:
        ranker.write(out)
    if as_json:
        sys.stdout.write(json.dumps(_payload(ranker, steps, warned) | seconds, default=str) + "\n")
        return
    _print(ranker, top)
    if steps is not None:
        typer.echo("3MR order: " + ", ".join(str(s["feature"]) for s in steps[:top]))
    for line in [*ranker.anomalies_, *warned]:
        typer.echo(f"note: {line}")
    if out is not None:
        typer.echo(f"tables: {out}")


def _continuous(ranker: OutRank) -> list[str]:
    """Tell of columns of numbers that hardly repeat: what their order says is not seen by counting values."""
    rows = ranker.quality_.filter(
        (ranker.quality_["numeric"] == 1.0) & (ranker.quality_["cardinality"] > ranker.n_rows_ / 2)
    )
    names = [n for n in rows["feature"].to_list() if n != ranker.target_]
    if not names or ranker.n_rows_ < 50:
        return []
    shown = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
    return [
        f"numbers that hardly repeat in {shown}: values are counted here, their order is "
        "not used; skerry.rank.MutualInformationScreen ranks continuous columns"
    ]


def _payload(ranker: OutRank, steps: list[dict[str, Any]] | None, warned: list[str]) -> dict[str, Any]:
    payload = {
        "rows": ranker.n_rows_,
        "target": ranker.target_,
        "mode": ranker.mode_,
        "target_entropy": ranker.target_entropy_,
        "ranking": ranker.ranking_.to_dicts(),
        "controls": ranker.controls_.to_dicts(),
        "quality": ranker.quality_.to_dicts(),
        "notes": [*ranker.anomalies_, *warned],
    }
    if hasattr(ranker, "pairs_"):
        payload["pairs"] = ranker.pairs_.to_dicts()
    if steps is not None:
        payload["3mr"] = steps
    return payload


def _print(ranker: OutRank, top: int) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    ranking = ranker.ranking_
    title = f"{ranker.n_rows_:,} rows, {ranking.height:,} columns ranked against {ranker.target_}"
    console.print(Text(title), style="bold", soft_wrap=True)
    columns = ["score", "z", "q_value", "cardinality", "coverage"]
    if console.width < NARROW:
        columns = ["score"]
    if ranking["gain"].null_count() < ranking.height and console.width >= NARROW:
        columns.insert(3, "gain")
    if ranking["z"].null_count() == ranking.height:
        columns = [c for c in columns if c not in ("z", "q_value")]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("feature", *columns):
        table.add_column(name, justify="left" if name == "feature" else "right", overflow="fold")
    for row in ranking.head(top).to_dicts():
        noise = row["above_control"] is False
        table.add_row(Text(str(row["feature"])), *(_cell(row[k]) for k in columns), style="dim" if noise else "")
    console.print(table)
    below = int((ranking["above_control"] == False).sum())  # noqa: E712 - null where there are no controls
    if below:
        console.print(f"{below:,} of them are below the best column of pure noise", soft_wrap=True)


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
