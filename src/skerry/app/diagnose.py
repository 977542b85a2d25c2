"""``skerry diagnose``: where a network's outliers are, and which recipe they ask for."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from skerry.app.console import at_hand, quiet_warnings, use_threads

__all__ = ["diagnose"]

SHOWN = 8  # rows of a table in the terminal; the report has all


def diagnose(
    model: Annotated[Path, typer.Argument(help="Folder with config.json and safetensors weights.")],
    text: Annotated[Path, typer.Option(help="Text (UTF-8, .gz), or .npy of token ids or of pixel values.")],
    context: Annotated[int, typer.Option(min=2, help="Tokens of a window.")] = 1024,
    samples: Annotated[int, typer.Option(min=1, help="Windows.")] = 16,
    batch: Annotated[int, typer.Option(min=1, help="Windows at a time.")] = 4,
    ratio: Annotated[float, typer.Option(min=1, help="An outlier is this many times the mean of its layer.")] = 1000.0,
    intervene: Annotated[bool, typer.Option(help="Also measure the loss without the outliers.")] = False,
    report: Annotated[Path | None, typer.Option(help="HTML page with heat maps.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for everything found.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: all cores.")] = None,
) -> None:
    """Find outliers in activations, weights and attention, and recommend a recipe.

    Example: `skerry diagnose MODEL --text corpus.txt --report outliers.html`
    """
    use_threads(threads)
    at_hand(text)
    with quiet_warnings():
        from skerry.core.files import atomic_write
        from skerry.deep.model_folder import load_model_folder
        from skerry.deep.model_inputs import model_inputs
        from skerry.deep.token_text import load_tokenizer
        from skerry.quant.comparison import language_loss
        from skerry.quant.diagnose import intervene as intervention
        from skerry.quant.diagnose import outliers

        loaded = load_model_folder(model)
        batches = model_inputs(text, model, loaded, length=context, count=samples, batch=batch)
        found = outliers(loaded, batches, tokenizer=load_tokenizer(model), act_eta=ratio)
        plain = found.to_plain()
        if intervene:
            plain["intervention"] = {
                "baseline_loss": sum(language_loss(loaded, b) for b in batches) / len(batches),
                "zero_loss": intervention(loaded, found, "zero", batches=batches),
                "mean_loss": intervention(loaded, found, "mean", batches=batches),
            }
    if out is not None:
        with atomic_write(out) as file:
            file.write((json.dumps(plain, indent=1) + "\n").encode())
    if report is not None:
        from skerry.report.diagnose_html import write_diagnosis

        write_diagnosis(found, report, losses=plain.get("intervention"))
    if as_json:
        sys.stdout.write(json.dumps(plain) + "\n")
        return
    _print(plain)
    for path in (out, report):
        if path is not None:
            typer.echo(f"written: {path}")


def _print_features(console: Any, emergent: dict[str, Any]) -> None:
    from rich.table import Table

    features = emergent["features"]
    if not features:
        console.print(f"emergent features: no channel passes {emergent['threshold']:g} in enough layers and tokens")
        return
    more = f", the {SHOWN} loudest of {len(features)}" if len(features) > SHOWN else ""
    table = Table("channel", "layers", "tokens", "size", "times the rms", "one sign", title=f"emergent features{more}")
    for feature in features[:SHOWN]:
        table.add_row(
            str(feature["channel"]),
            f"{feature['layer_share']:.0%}",
            f"{feature['token_share']:.0%}",
            f"{feature['quartiles'][1]:,.1f}",
            f"{feature['loudness']:,.1f}",
            f"{feature['one_sided']:.0%}",
        )
    console.print(table)


def _print(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("layer", "largest", "mean", "times", "kurtosis", "channels", "outliers", title="residual stream")
    for row in found["activation"]["layers"]:
        table.add_row(
            row["layer"],
            f"{row['top 1']:,.4g}",
            f"{row['mean']:,.3g}",
            f"{row['ratio']:,.0f}",
            f"{row['kurtosis']:,.1f}",
            ", ".join(map(str, row["channels"])),
            str(row["outliers"]),
        )
    console.print(table)
    _print_features(console, found["emergent"])
    if found["remedies"]:
        from skerry.quant.diagnose.report import tried_in_words

        tried = tried_in_words(found["remedies"])
        if not any(tried in advice["why"] for advice in found["advice"]):
            console.print(f"tried: {tried}")
    flagged = [name for name, w in found["weight"]["modules"].items() if w["flagged"]]
    told = f"columns far above their layer's in {len(flagged)} layers: {', '.join(flagged[:5])}"
    console.print(f"weights: {told if flagged else 'no column is far above those of its layer'}")
    sinks = [row for row in found["attention"]["layers"] if row["sinks"]]
    places = sorted({place for row in sinks for place in row["sinks"]})
    where = f" at position {', '.join(map(str, places[:8]))}" if places else ""
    console.print(f"attention: sinks in {len(sinks)} of {len(found['attention']['layers'])} layers{where}")
    if "intervention" in found:
        losses = found["intervention"]
        console.print(
            f"loss {losses['baseline_loss']:.4f}; outliers set to zero {losses['zero_loss']:.4f}, "
            f"to their mean {losses['mean_loss']:.4f}"
        )
    for advice in found["advice"]:
        line = f"{advice['rule']}: {advice['why']}"
        console.print(line + (f" -> --recipe {advice['recipe']}" if advice["recipe"] else ""))
