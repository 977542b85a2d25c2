"""``skerry quantize``: a model folder in, a smaller one out, and what it cost, layer by layer."""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from skerry.app.console import at_hand, progress, quiet_warnings, use_threads

__all__ = ["quantize"]


def _list(asked: bool) -> None:
    if asked:
        from skerry.quant.recipes import RECIPES

        for name, (_, what) in sorted(RECIPES.items()):
            typer.echo(f"{name:<14} {what}")
        raise typer.Exit


def quantize(
    model: Annotated[Path, typer.Argument(help="Folder with config.json and safetensors weights.")],
    recipe: Annotated[str, typer.Option(help="A name of --list, or auto: try a few and take the best.")] = "auto",
    bits: Annotated[
        str, typer.Option(help="Weights and activations: w8a8, w4a16g128, w4a4 ..., or fp8, nvfp4, mxfp4.")
    ] = "w8a8",
    calibration: Annotated[
        Path | None, typer.Option(help="Text (UTF-8, .gz), or .npy of token ids or of pixel values.")
    ] = None,
    evaluate: Annotated[
        Path | None, typer.Option(help="Such a file: its loss with the float and the small model.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="New folder for the quantized model.")] = None,
    layout: Annotated[str, typer.Option(help="auto, compressed-tensors, skerry-v1, dense, gguf or gptq.")] = "auto",
    context: Annotated[int, typer.Option(min=2, help="Tokens of a calibration window, at most the model's own.")] = 512,
    samples: Annotated[int, typer.Option(min=1, help="Calibration windows.")] = 64,
    batch: Annotated[int, typer.Option(min=1, help="Windows at a time.")] = 8,
    budget: Annotated[float, typer.Option(min=0, help="Seconds for --recipe auto to try recipes.")] = 120.0,
    plan: Annotated[bool, typer.Option("--plan", help="Say what it would take, and stop.")] = False,
    compare: Annotated[str | None, typer.Option(help="Recipes with commas between: a table, nothing is saved.")] = None,
    stream: Annotated[
        bool | None, typer.Option(help="One block in memory at a time. Default: where weights exceed half the memory.")
    ] = None,
    scratch: Annotated[Path | None, typer.Option(help="Folder for hidden states that do not fit --memory.")] = None,
    memory: Annotated[int, typer.Option(min=1, help="MiB of hidden states kept in memory.")] = 2048,
    names: Annotated[
        bool, typer.Option("--list", callback=_list, is_eager=True, help="List the recipes, and stop.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: all cores.")] = None,
) -> None:
    """Quantize a model by a recipe and save it where serving engines can load it.

    Finished blocks are kept in OUT.work until the end: after an interruption the same command goes on after them.

    Example: `skerry quantize MODEL --recipe gptq --bits w4a16g128 --calibration text.txt --out small`
    """
    use_threads(threads)
    at_hand(calibration, evaluate)
    from skerry.quant.recipes import make_recipe

    chosen_names = [n.strip() for n in compare.split(",") if n.strip()] if compare else [recipe]
    fixed = {n: make_recipe(n, bits) for n in chosen_names if n != "auto"}  # a wrong name or width is told at once
    if stream and (recipe == "auto" or compare is not None):
        raise typer.BadParameter("--stream wants one --recipe by name: several cannot be tried on half a model")
    if not plan and compare is None:
        _refuse_early(recipe, fixed, layout, calibration is not None)
    if out is None and not plan and compare is None:
        raise typer.BadParameter("give --out FOLDER for the quantized model, or --plan, or --compare a,b")
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise typer.BadParameter(f"{out} is in use; give a new folder")
    with quiet_warnings():
        from skerry.deep.model_folder import load_model_folder
        from skerry.deep.model_inputs import model_inputs
        from skerry.quant.offload import load_offloaded

        if stream is None:
            stream = recipe != "auto" and compare is None and _too_large(model)
        loaded = load_offloaded(model) if stream else load_model_folder(model)
        batches, judge = (
            [] if path is None else model_inputs(path, model, loaded, length=context, count=samples, batch=size)
            for path, size in ((calibration, batch), (evaluate, 1))
        )
        if plan:
            _show_plan(
                loaded,
                {n: fixed[n] for n in fixed} or {"rtn": make_recipe("rtn", bits)},
                batches,
                as_json,
                memory * 2**20,
            )
            return
        if compare is not None:
            _compare(loaded, fixed, batches, as_json, seed)
            return
        assert out is not None
        saving = {"folder": out, "layout": layout, "source": model}
        holding = {"scratch": scratch, "memory": memory * 2**20, "random_state": seed}
        _quantize(loaded, recipe, bits, fixed, batches, judge, saving, holding, budget, as_json)


def _refuse_early(name: str, fixed: dict[str, Any], layout: str, calibrated: bool) -> None:
    """Tell what cannot end well before a model is loaded.

    Raises
    ------
    ParameterError
        For an unknown layout, and bits that leave all in floating point or that the layout has no place for.
    DataError
        If a recipe wants to see inputs and there are none.
    """
    from skerry.core.errors import DataError, ParameterError
    from skerry.quant.checkpoint import LAYOUTS

    if layout not in LAYOUTS:
        raise ParameterError(f"--layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    if name == "auto" and not calibrated:
        raise DataError("--recipe auto needs --calibration to judge by; without data, name a recipe such as rtn")
    for recipe in fixed.values():
        if recipe.weight is None and recipe.activation is None:
            raise ParameterError("these --bits leave weights and inputs in floating point: nothing to quantize")
        if layout in ("gguf", "gptq") and recipe.activation is not None:
            raise ParameterError(f"--layout {layout} holds rounded weights only: give --bits such as w4a16 or w8a16")
        if recipe.needs_calibration and not calibrated:
            raise DataError(
                f"recipe {name!r} needs calibration data: give --calibration with text like the model's own"
            )


def _reachable(out: Path) -> None:
    """Make the folder that ``out`` will be in, before any work is done for it."""
    from skerry.core.errors import DataError

    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror}); choose another --out") from None


def _quantize(
    model: Any,
    name: str,
    bits: str,
    fixed: dict[str, Any],
    batches: list[Any],
    judge: list[Any],
    saving: dict[str, Any],
    holding: dict[str, Any],
    budget: float,
    as_json: bool,
) -> None:
    from skerry.quant.auto import choose_recipe
    from skerry.quant.checkpoint import save
    from skerry.quant.engine import quantize_model
    from skerry.quant.offload import is_offloaded
    from skerry.quant.recipes import make_recipe
    from skerry.quant.resume import discard

    found: dict[str, Any] = {}
    out = saving["folder"]
    _reachable(out)
    if name == "auto":
        choice = choose_recipe(model, bits, batches, budget=budget, progress=_say)
        name, fixed = choice.name, {choice.name: make_recipe(choice.name, bits)}
        found["auto"] = {"recipe": choice.name, "why": choice.why, "tried": choice.tried}
        _say(f"{choice.name}: {choice.why}")
    work = Path(f"{out}.work")
    shard = 2**29 if is_offloaded(model) else 2**31
    loss = _loss(model, judge)
    with progress("quantizing") as step, _interruptible(work), _said_at_once():

        def told(what: str, done: int, total: int) -> None:
            if done and not seen:
                _say(f"{done} of {total} blocks are in {work}; going on with {what or 'saving'}")
            seen.append(done)
            step(done, total)

        seen: list[int] = []
        quantized, report = quantize_model(
            model, fixed[name], calibration=batches or None, inplace=True, work_dir=work, progress=told, **holding
        )
        _sweep(out)
        saved = save(quantized, shard_bytes=shard, **saving)
        if judge:
            found["loss"] = {"float": loss, "quantized": _loss(quantized, judge)}
        discard(work)
    found |= {"recipe": name, "bits": bits, "out": str(out), "saved": saved, "report": report.to_plain()}
    if as_json:
        from skerry.bench.runner import plain

        sys.stdout.write(json.dumps(plain(found)) + "\n")
        return
    typer.echo(str(report))
    if report.bits_per_weight >= 16:
        typer.echo("  note: no smaller than weights of 16 bits; what is stored beside the codes outweighs them")
    if judge:
        _tell_loss(**found["loss"])
    typer.echo(f"{out}: {saved['bytes'] / 2**20:,.1f} MiB as {saved['layout']}")
    if saved.get("reason"):
        typer.echo(f"not as compressed-tensors: {saved['reason']}")
    if saved["copied"]:
        typer.echo(f"copied along: {', '.join(saved['copied'])}")


def _loss(model: Any, batches: list[Any]) -> float:
    from skerry.quant.comparison import language_loss

    return sum(language_loss(model, batch) for batch in batches) / max(len(batches), 1)


def _tell_loss(float: float, quantized: float) -> None:
    if not math.isfinite(float):
        typer.echo("loss: this model predicts no next tokens")
        return
    typer.echo(
        f"loss {float:.4f} -> {quantized:.4f} ({quantized - float:+.4f}), "
        f"perplexity {math.exp(float):,.2f} -> {math.exp(quantized):,.2f}"
    )


def _too_large(folder: Path) -> bool:
    """Return whether the weights of a folder would fill more than half of the memory that is free."""
    import psutil

    from skerry.quant.offload import weight_bytes

    return weight_bytes(folder) > psutil.virtual_memory().available / 2


@contextmanager
def _interruptible(work: Path) -> Iterator[None]:
    """Let SIGTERM end the command as Ctrl-C does, and say where the finished blocks are."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    kept = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except BaseException:
        if done := len(list(work.glob("block-*"))):
            _say(f"{done} finished blocks are kept in {work}: the same command goes on after them")
        raise
    finally:
        signal.signal(signal.SIGTERM, kept)


def _sweep(out: Path) -> None:
    """Remove what a killed run left while it was saving."""
    for left in out.absolute().parent.glob(f".{out.name[:100]}.*.part"):
        if re.fullmatch(r"[a-z0-9_]{8}", left.name.removesuffix(".part").removeprefix(f".{out.name[:100]}.")):
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _said_at_once() -> Iterator[None]:
    """Let Skerry's own warnings be lines on stderr when they arise."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *rest, **more: _say(str(message))
        yield


def _compare(model: Any, recipes: dict[str, Any], batches: list[Any], as_json: bool, seed: int) -> None:
    from skerry.core.errors import DataError, SkerryError
    from skerry.quant.checkpoint import layout_for
    from skerry.quant.comparison import compare
    from skerry.quant.engine import quantize_model

    if len(batches) < 2:
        raise DataError("--compare needs --calibration with text for two batches: the last one judges")
    rows = []
    for name, recipe in recipes.items():
        _say(name)
        try:
            quantized, report = quantize_model(model, recipe, calibration=batches[:-1], random_state=seed)
        except SkerryError as error:
            rows.append({"recipe": name, "note": str(error)})
            continue
        result = compare(model, quantized, batches[-1:], repetitions=2)
        layer = next(iter(report.worst(1)), None)
        rows.append(
            {
                "recipe": name,
                "bits per weight": report.bits_per_weight,
                "loss": result.quantized_loss,
                "increase": result.quantized_loss - result.loss,
                "divergence": result.divergence,
                "decibels": result.signal_to_noise,
                "worst layer": "" if layer is None else f"{layer.name} ({layer.signal_to_noise:.0f} dB)",
                "seconds": report.seconds,
                "tokens/s": result.quantized_items_per_second,
                "saved as": layout_for(quantized)[0],
            }
        )
    if as_json:
        from skerry.bench.runner import plain

        sys.stdout.write(json.dumps({"rows": plain(rows)}) + "\n")
    else:
        _table(rows, {"recipe": "", "bits per weight": ".2f", "loss": ".4f", "increase": "+.4f", "divergence": ".4f",
                      "decibels": ".1f", "seconds": ",.1f", "tokens/s": ",.0f", "saved as": ""})  # fmt: skip
        for row in rows:
            if row.get("worst layer"):
                typer.echo(f"{row['recipe']}: worst layer {row['worst layer']}")
            elif row.get("note"):
                typer.echo(f"{row['recipe']}: {row['note']}")


def _show_plan(model: Any, recipes: dict[str, Any], batches: list[Any], as_json: bool, memory: int) -> None:
    from skerry.quant.plan import plan

    found = {name: plan(model, recipe, batches, memory=memory) for name, recipe in recipes.items()}
    if as_json:
        sys.stdout.write(json.dumps(found) + "\n")
        return
    for name, rows in found.items():
        typer.echo(name)
        _table(rows, {"what": "", "MiB": ",.1f", "note": ""})


def _table(rows: list[dict[str, Any]], forms: dict[str, str]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    shown = [key for key in forms if any(_known(row.get(key)) for row in rows)]
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    for key in shown:
        table.add_column(key, justify="right" if forms[key] else "left", overflow="fold", no_wrap=key != "note")
    for row in rows:
        table.add_row(*(format(v, forms[k]) if _known(v := row.get(k)) else "" for k in shown))
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def _known(value: Any) -> bool:
    return value is not None and value == value


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
