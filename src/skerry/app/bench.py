"""``skerry bench``: list, run and compare the studies."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from skerry.app.console import use_threads

__all__ = ["bench"]

bench = typer.Typer(help="Run the studies that back every claim.", no_args_is_help=True)


@bench.command("list")
def list_studies() -> None:
    """List the studies. Example: `skerry bench list`."""
    from skerry.bench.runner import STUDIES

    for name, what in STUDIES.items():
        typer.echo(f"{name:<26} {what}")


@bench.command()
def run(
    name: Annotated[str, typer.Argument(help="A name of `skerry bench list`.")],
    quick: Annotated[bool, typer.Option(help="A small version, under a minute.")] = False,
    data: Annotated[Path | None, typer.Option(help="Data folder; default SKERRY_DATA or ../shared/data.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for NAME.json and NAME.md.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
    preset: Annotated[str | None, typer.Option(help="Size, in studies that have several.")] = None,
    variants: Annotated[str | None, typer.Option(help="Names, separated by semicolons, in place of all.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="How many seeds.")] = None,
    budget: Annotated[str | None, typer.Option(help="Time for training, such as 25m; what is cut goes on.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, or auto for a GPU.")] = None,
    encoder: Annotated[str | None, typer.Option(help="Themis: a file or folder of an encoder.")] = None,
    model: Annotated[str | None, typer.Option(help="tint-noise: a folder of a language model to fine-tune.")] = None,
) -> None:
    """Run a study beside its peers. Example: `skerry bench run outrank --quick`.

    A study names the options that it takes when it is given another.
    """
    from skerry.bench.runner import plain, run_study, to_markdown

    given = {"preset": preset, "variants": variants, "seeds": seeds, "budget": budget, "device": device}
    given |= {"encoder": encoder, "model": model}
    options = {k: v for k, v in given.items() if v is not None}

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    result = run_study(name, quick=quick, data=data, seed=seed, out=out, progress=say, options=options)
    sys.stdout.write(json.dumps(plain(result)) + "\n" if as_json else to_markdown(result))


@bench.command()
def kernels(
    size: Annotated[int, typer.Option(min=64, max=16384, help="Inputs and outputs of the layers.")] = 2048,
    seconds: Annotated[float, typer.Option(min=0.001, max=60.0, help="For each figure.")] = 0.2,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: all cores.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Measure how fast this machine multiplies quantized layers. From then on `use_kernels` chooses by it.

    Milliseconds, the least of the repetitions; takes about 10 seconds. Example: `skerry bench kernels --size 4096`
    """
    use_threads(threads)
    import torch

    from skerry.quant.runtime.choose import BUCKETS, measure_costs

    if threads is not None:
        torch.set_num_threads(threads)
    with torch.no_grad():
        table = measure_costs(size, seconds=seconds, progress=lambda text: print(text, file=sys.stderr, flush=True))
    path = table.save()
    if as_json:
        told = {"path": str(path), "size": size, "threads": table.threads, "machine": table.machine}
        sys.stdout.write(json.dumps(told | {"milliseconds": table.entries}) + "\n")
        return
    typer.echo(f"{'weights, inputs':<34} {'kernel':<11}" + "".join(f"{f'{b} tokens':>12}" for b in BUCKETS))
    for kind in dict.fromkeys(key.rsplit("|", 1)[0] for key in table.entries):
        costs = [table.entries[f"{kind}|{b}"] for b in BUCKETS]
        for name in costs[0]:
            cells = "".join(f"{c[name]:>11.3f}{'*' if c[name] == min(c.values()) else ' '}" for c in costs)
            typer.echo(f"{kind.replace('|', ', '):<34} {name:<11}{cells}")
    typer.echo(f"* fastest; {table.machine}, {table.threads} threads, {size} x {size}; kept in {path}")


@bench.command()
def compare(old: Path, new: Path) -> None:
    """Show which figures differ between two result files."""
    from skerry.bench.runner import compare as difference

    rows = difference(old, new)
    for r in rows:
        typer.echo(f"{r['name']!s:<32} {r['figure']:<24} {r['old']!s:>12} -> {r['new']!s}")
    typer.echo(f"{len(rows)} figures differ")
