"""``skerry detect``: the rows of a table that do not belong, and why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skerry.app.console import hand_out, progress, quiet_warnings, usable_engine, use_threads
from skerry.app.detect_table import print_findings

if TYPE_CHECKING:
    from skerry.detect.series.series_model import SeriesModel
    from skerry.detect.tabular.pipeline import TableModel

__all__ = ["detect"]


def _reading(words: str) -> Any:
    return typer.Option(help=words, rich_help_panel="How a series is read")


def _events(words: str, **limits: Any) -> Any:
    return typer.Option(help=words, rich_help_panel="Events of a series", **limits)


def detect(
    context: typer.Context,
    path: Annotated[str, typer.Argument(help="CSV, TSV, Parquet (file, folder, glob), Arrow, JSONL, NPY, NPZ, or -")],
    detector: Annotated[str, typer.Option(help="ensemble, isolation-forest, knn, lof, ecod ...")] = "ensemble",
    threshold: Annotated[
        str,
        typer.Option(help="auto, contamination:0.01, extreme:1e-3, conformal:0.05 ..."),
    ] = "auto",
    label: Annotated[str | None, typer.Option(help="0/1 column kept out of the features; metrics are printed.")] = None,
    reference: Annotated[str | None, typer.Option(help="Rows or series known to be normal: fit on them.")] = None,
    out: Annotated[Path | None, typer.Option(help="Scores of all rows, .parquet or .csv.")] = None,
    report: Annotated[Path | None, typer.Option(help="A self-contained HTML page.")] = None,
    top: Annotated[int, typer.Option(min=0, help="Flagged rows to print.")] = 10,
    save_model: Annotated[Path | None, typer.Option(help="Save the fitted model (data only, no code).")] = None,
    model: Annotated[Path | None, typer.Option(help="Score with a saved model instead of fitting.")] = None,
    explain: Annotated[bool, typer.Option(help="Word the reasons of the flagged rows.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same result.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: all cores.")] = None,
    sample_rows: Annotated[int, typer.Option(min=2, help="Larger tables are fitted on a sample.")] = 200_000,
    engine: Annotated[str, typer.Option(help="local, or ray: rows are scored by Ray Data.")] = "local",
    kind: Annotated[str, typer.Option(help="table, series, or auto: a steady time column makes a series.")] = "auto",
    time: Annotated[str | None, _reading("The time column (by default it is found); '' takes rows as steps.")] = None,
    by: Annotated[list[str] | None, _reading("The column that tells several series apart; once for each.")] = None,
    channel: Annotated[str | None, _reading("Of a long table: the column that names the channels.")] = None,
    value: Annotated[str | None, _reading("Of a long table: the column of their values.")] = None,
    time_zone: Annotated[str | None, _reading("The zone of a local clock, such as Europe/Paris.")] = None,
    time_format: Annotated[str | None, _reading("How stamps are written: %d.%m.%Y %H:%M, s, ms ...")] = None,
    step: Annotated[str | None, _reading("A grid that the series is put on: 1s, 5min, 1h ...")] = None,
    order: Annotated[str, _reading("What a clock that goes back means: auto, sort, keep or error.")] = "auto",
    duplicates: Annotated[str, _reading("Rows of one stamp: auto, mean, first, last or error.")] = "auto",
    train_share: Annotated[float | None, _events("Learn from this first share alone.")] = None,
    merge_gap: Annotated[int, _events("Unflagged steps inside one event.", min=0)] = 32,
    min_length: Annotated[int, _events("Steps of the shortest event.", min=1)] = 1,
    cooldown: Annotated[int, _events("Silent steps after an event.", min=0)] = 0,
    follow: Annotated[bool, _events("Tell events of - or of a growing file at once.")] = False,
    state: Annotated[Path | None, _events("With --follow: saved here, and resumed from here.")] = None,
    warmup: Annotated[int, _events("With --follow: rows learned from first.", min=20)] = 500,
) -> None:
    """Find the rows of a table, or the moments of a series, that do not belong, and say why.

    Example: `skerry detect payments.csv --threshold contamination:0.01 --report findings.html`

    Example: `skerry detect sensors.csv --kind series --merge-gap 30 --out scores.csv`

    Example: `skerry detect readings.csv --channel sensor --value reading --time-zone Europe/Paris`

    Example: `skerry detect january.csv --kind series --save-model pump.skerry`, later `skerry detect february.csv
    --model pump.skerry`

    Example: `skerry detect sensor.csv --kind series --follow --state sensor.state`
    """
    use_threads(threads)
    if kind not in ("auto", "table", "series"):
        raise typer.BadParameter(f"--kind must be auto, table or series, got {kind!r}")
    usable_engine(engine)
    how = {
        "time": time, "by": by, "channel": channel, "value": value, "time_zone": time_zone,
        "time_format": time_format, "step": step, "order": None if order == "auto" else order,
        "duplicates": None if duplicates == "auto" else duplicates,
    }  # fmt: skip
    how = {option: given for option, given in how.items() if given not in (None, [])}
    if follow:
        from skerry.app.detect_follow import follow as follow_stream

        if kind == "table":
            raise typer.BadParameter("--follow follows a series: leave --kind table out")
        _check_outputs(state, source=path)
        alarm = {"merge_gap": merge_gap, "min_length": min_length, "cooldown": cooldown}
        idle = {
            "--out": out,
            "--report": report,
            "--model": model,
            "--save-model": save_model,
            "--reference": reference,
        }
        idle |= {f"--{option.replace('_', '-')}": given for option, given in how.items() if option != "time"}
        for option, given in (idle | {"--train-share": train_share}).items():
            if given is not None:
                raise typer.BadParameter(f"{option} does nothing with --follow; leave it out")
        named = getattr(context.get_parameter_source("detector"), "name", "") != "DEFAULT"
        follow_stream(path, detector if named else None, threshold, as_json, seed, time, label, alarm, state, warmup)
        return
    if state is not None:
        raise typer.BadParameter("--state goes with --follow")
    from skerry.core.errors import ParameterError
    from skerry.core.series_threshold import in_order, parse_series_threshold

    try:  # usage mistakes are told before any data are read
        ordered = in_order(parse_series_threshold(threshold))
        kinds = _kinds_of(detector, "series" if ordered and kind == "auto" else kind)
    except ParameterError as error:
        raise typer.BadParameter(str(error)) from None
    _check_outputs(out, report, save_model, source=path)
    words = ""
    fitted = None if model is None else _saved(model, kind)
    if fitted is not None and type(fitted).__name__ == "SeriesModel":
        kind, words = "series", words if kind == "series" else f"{model} is a model of series"
    elif fitted is not None:
        kind = "table"
    if ordered and kind == "table":
        raise typer.BadParameter(f"threshold {threshold!r} needs the order of time: it works on series alone")
    if kind == "auto" and ordered:
        kind, words = "series", f"threshold {threshold} is one of series"
    if kind == "auto":
        if kinds == ["series"]:
            words = f"{detector} is a detector of series"
        elif "series" in kinds:
            words = _time_words(path, how)
        kind = "series" if words else "table"
        if words and engine != "local":
            kind, words = "table", ""  # only rows are spread over machines
    if kind == "series":
        from skerry.app.detect_series import detect_series

        if engine != "local":
            raise typer.BadParameter("--engine works on tables; add --kind table")
        if sum(given is not None for given in (reference, model, train_share)) > 1:
            raise typer.BadParameter("--reference, --model and --train-share exclude each other")
        alarm = {"merge_gap": merge_gap, "min_length": min_length, "cooldown": cooldown}
        detect_series(
            path, detector, threshold, label, out, report, top, explain, as_json, seed, how, train_share, alarm,
            words, reference, fitted, save_model,
        )  # fmt: skip
        return
    with quiet_warnings() as warned, progress("scoring") as update:
        from skerry.core.persistence import save
        from skerry.detect.tabular.pipeline import find_outliers

        if fitted is not None and threshold != "auto":
            fitted.detector_.set_threshold(threshold)
        keep: list[TableModel] = []
        findings = find_outliers(
            path,
            detector=detector,
            threshold=threshold,
            label=label,
            reference=reference,
            model=fitted,
            explain=explain,
            top=top,
            out=out,
            sample_rows=sample_rows,
            engine=engine,
            random_state=seed,
            on_progress=update,
            on_fitted=keep.append,
        )
        if save_model is not None:
            save(keep[0], save_model)
    findings.notes.extend(warned)
    hand_out(findings, lambda: print_findings(findings, explain), as_json, scores=out, report=report, model=save_model)


def _saved(path: Path, kind: str) -> TableModel | SeriesModel:
    """Return the model of a file, which must be one of the kind that was asked for.

    Raises
    ------
    ModelError
        If it is none, or is of the other kind.
    """
    from skerry.core.errors import ModelError
    from skerry.core.persistence import load
    from skerry.detect.series.series_model import SeriesModel
    from skerry.detect.tabular.pipeline import TableModel

    found = load(path)
    if not isinstance(found, (TableModel, SeriesModel)):
        raise ModelError(f"{path}: holds a {type(found).__name__}, not a model saved by skerry detect")
    holds = "series" if isinstance(found, SeriesModel) else "table"
    if kind not in ("auto", holds):
        raise ModelError(f"{path}: is a model of kind {holds}; leave --kind {kind} out")
    if isinstance(found, SeriesModel):
        try:
            found.check()
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from None
    return found


def _kinds_of(detector: str, kind: str) -> list[str]:
    """Return the kinds of data that a detector of this name is for, of those that ``kind`` allows.

    Raises
    ------
    ParameterError
        If there is none.
    """
    from skerry.core.errors import ParameterError
    from skerry.detect.series.registry import make_series_detector
    from skerry.detect.tabular.registry import make_detector

    found, first = [], None
    for name, make in (("table", make_detector), ("series", make_series_detector)):
        if kind in ("auto", name):
            try:
                make(detector)
                found.append(name)
            except ParameterError as error:
                first = first or error
    if not found:
        assert first is not None
        raise first
    return found


def _time_words(path: str, how: dict[str, str]) -> str:
    """Return why a file is to be read as a series, "" if it is a table; ``how``: options of reading one."""
    if how:
        return f"--{next(iter(how)).replace('_', '-')} speaks of series"
    if path == "-":
        return ""  # a pipe cannot be read twice
    from skerry.data.series import find_time_column

    found = find_time_column(path)
    if found is None or not found.steady:
        return ""
    return f"column {found.name!r} holds steady times; --kind table looks at each row alone"


def _check_outputs(*paths: Path | None, source: str) -> None:
    from skerry.core.errors import DataError

    for path in paths:
        if path is not None and not path.absolute().parent.is_dir():
            raise DataError(f"{path}: the folder {path.absolute().parent} does not exist; create it first")
        if path is not None and path.is_dir():
            raise DataError(f"{path}: is a folder; give a file name")
        if path is not None and path.exists() and Path(source).is_file() and path.samefile(source):
            raise DataError(f"{path}: is the file that is read, and would be replaced; choose another name")
