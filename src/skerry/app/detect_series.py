"""``skerry detect --kind series``: the moments that do not belong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skerry.app.console import hand_out, progress, quiet_warnings

if TYPE_CHECKING:
    from skerry.core.series_findings import SeriesFindings
    from skerry.detect.series.series_model import SeriesModel

__all__ = ["as_options", "detect_series"]

OPTIONS = ("time", "by", "channel", "value", "time_zone", "time_format", "step", "order", "duplicates", "train_share")
MANY = 50  # events beyond which a person is told how to have fewer


def detect_series(
    path: str,
    detector: str,
    threshold: str,
    label: str | None,
    out: Path | None,
    report: Path | None,
    top: int,
    explain: bool,
    as_json: bool,
    seed: int,
    how: dict[str, Any],
    train_share: float | None,
    alarm: dict[str, int],
    words: str,
    reference: str | None = None,
    model: SeriesModel | None = None,
    save_model: Path | None = None,
) -> None:
    """Run the search and print it; ``how`` is the file read, ``words`` say why it is taken for a series."""
    from skerry.core.errors import DataError, ParameterError
    from skerry.core.events import AlarmRule

    if model is not None and threshold != "auto":
        model.set_threshold(threshold)
    keep: list[SeriesModel] = []

    with quiet_warnings() as warned, progress("series") as update:
        from skerry.detect.series.pipeline import find_events

        reading = dict(how)
        if reading.get("time") == "":
            reading["time"] = False
        if "step" in reading:
            reading["step"] = _number(reading["step"])
        try:
            findings = find_events(
                path,
                detector=detector,
                threshold=threshold,
                alarm=AlarmRule(**alarm),
                train_share=train_share,
                reference=reference,
                model=model,
                label=label,
                out=out,
                top=top,
                explain=explain,
                random_state=seed,
                on_progress=update,
                on_fitted=None if save_model is None else keep.append,
                **reading,
            )
        except (DataError, ParameterError) as error:
            raise type(error)(as_options(str(error))) from None
        if save_model is not None:
            from skerry.core.persistence import save

            save(keep[0], save_model)
    if words:
        findings.notes.insert(0, f"read as a series: {words}")
    findings.notes.extend(warned)
    findings.notes = [as_options(note) for note in findings.notes]
    hand_out(findings, lambda: _print(findings, explain), as_json, scores=out, report=report, model=save_model)


def as_options(text: str) -> str:
    """Return a message that names arguments of ``read_series`` as one that names those of the command.

    >>> as_options("say time= if it is another, or order='keep'; time=False: rows are steps")
    "say --time if it is another, or --order keep; --time '': rows are steps"
    """

    def option(found: re.Match) -> str:
        given = "''" if found[2] == "False" else (found[2] or "").strip("'")
        return f"--{found[1].replace('_', '-')}" + (f" {given}" if given else "")

    return re.sub(rf"(?<![\w-])({'|'.join(OPTIONS)})=('[^']*'|False)?", option, text)


def _number(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def _print(findings: SeriesFindings, explain: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(soft_wrap=False, highlight=False)
    many = len(findings.series) > 1
    channels = len(findings.series[0].channels)
    what = f"{len(findings.series)} series" if many else f"{channels} channel{'s' if channels > 1 else ''}"
    console.print(Text(f"{findings.source}: {findings.steps:,} steps, {what}"))
    for note in findings.notes:
        console.print(Text(f"  {note}"), style="dim")
    console.print(
        Text(
            f"{findings.n_events:,} event{'s' if findings.n_events != 1 else ''} by {findings.detector}, threshold "
            f"{findings.threshold_rule}, {findings.seconds:.2f} s"
        ),
        style="bold",
    )
    if findings.events:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in [*(["series"] if many else []), "from"]:
            table.add_column(name, no_wrap=name == "from", overflow="fold")  # names that begin alike stay apart
        for name in ("steps", "score", "p"):
            table.add_column(name, justify="right")
        if explain:
            table.add_column("why", overflow="fold")
        for e in findings.events:
            cells = [*([e.series] if many else []), e.first]
            cells += [f"{e.stop - e.start}", f"{e.score:.4g}", f"{e.p_value:.2g}"]
            table.add_row(*(Text(c) for c in cells), *([Text("\n".join(e.reasons))] if explain else []))
        console.print(table)
        if len(findings.events) < findings.n_events:
            console.print(f"... and {findings.n_events - len(findings.events):,} more", style="dim")
    if findings.n_events > MANY:
        console.print(
            "many to read: --threshold extreme:1e-5 keeps the rarest, --cooldown N is silent for N steps after each",
            style="dim",
        )
    if findings.metrics:
        m = findings.metrics
        console.print(f"AUROC {m['auroc']:.4f}   average precision {m['average_precision']:.4f}")
