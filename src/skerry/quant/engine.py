"""The engine: block by block, calibrate, transform, solve, store; one block's inputs are kept at a time.

For every block: the transforms run in order, each on statistics of the model as the earlier ones left it, and each
is undone with an error if it changed what the block computes; then every layer's weight is solved on statistics of
the inputs it will see (outputs of the already quantized blocks); then the block's outputs become the next inputs.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from skerry.core.errors import DataError, ModelError, SkerryWarning
from skerry.quant.architectures.base import Architecture, architecture_of
from skerry.quant.block import TOLERANCE, block_of, quantize_block, relative_error, rounding_error
from skerry.quant.calibration import as_batches, catch_inputs, live, mask_of, output_of, rows_to_run, run_model
from skerry.quant.linear import PreparedLinear
from skerry.quant.offload import bring_in, is_offloaded, settle
from skerry.quant.parts import ModelTransform
from skerry.quant.recipe import Recipe
from skerry.quant.report import QuantizationReport
from skerry.quant.resume import Start, WorkFolder, run_key
from skerry.quant.streams import HiddenStates

__all__ = ["output_of", "quantize_model"]

Progress = Callable[[str, int, int], None]


def quantize_model(
    model: nn.Module,
    recipe: Recipe,
    *,
    calibration: Any = None,
    inplace: bool = False,
    memory: int = 2**31,
    scratch: Path | None = None,
    random_state: int = 0,
    check: bool = True,
    work_dir: str | Path | None = None,
    progress: Progress = lambda what, done, total: None,
) -> tuple[nn.Module, QuantizationReport]:
    """Apply a recipe to a model.

    Parameters
    ----------
    model : Module
        A model of ``transformers``, or any with ``nn.Linear`` layers; see :mod:`skerry.quant.architectures`. Blocks
        that accelerate keeps elsewhere (see :mod:`skerry.quant.offload`) come in one at a time; what is quantized then
        stays in ``work_dir``, which the model reads from as long as it is in use.
    recipe : Recipe
    calibration : Tensor, mapping or list of them, optional
        Batches for ``model(batch)`` or ``model(**batch)``; needed if a part of the recipe looks at inputs.
    inplace : bool, default False
        Change ``model`` itself; else a copy.
    memory : int, default 2 GiB
        Bytes of hidden states kept in memory; more go to ``scratch``.
    scratch : Path, optional
        Folder for them.
    random_state : int, default 0
    check : bool, default True
        Compare the block's output before and after every transform.
    work_dir : path, optional
        Folder for the finished blocks: a run that was interrupted goes on where it was and gives the same result bit
        for bit. If weights, recipe, calibration or versions changed, it starts anew with a warning. The folder stays;
        :func:`skerry.quant.resume.discard` deletes it once the result is safe.
    progress : callable
        Called with (block, done, total).

    Returns
    -------
    model : Module
        With :class:`~skerry.quant.linear.QuantizedLinear` layers, in evaluation mode, without gradients.
    report : QuantizationReport

    Raises
    ------
    DataError
        If calibration data is missing or empty, or the work folder is in use.
    ModelError
        If a weight is not finite, nothing is left to quantize, or a transform changed the function.
    """
    started = time.perf_counter()
    if recipe.needs_calibration and calibration is None:
        raise DataError(f"recipe {recipe.name!r} needs calibration data: give some batches of the model's inputs")
    batches = [] if calibration is None else as_batches(calibration)
    if away := is_offloaded(model):
        _refuse_offloaded(recipe, inplace, work_dir)
    if not inplace:
        model = copy.deepcopy(model)
    was_training = model.training
    model.eval().requires_grad_(False)
    threads = torch.get_num_threads()
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, threads)
        work = None
        if work_dir is not None:
            key = run_key(model, recipe, batches, random_state=random_state, check=check)
            work = stack.enter_context(WorkFolder(Path(work_dir), key))
        architecture = architecture_of(model)
        if architecture.keep:
            recipe = recipe.with_skip(*architecture.keep)
        report = QuantizationReport(recipe=recipe, architecture=architecture.name)
        if architecture.check is not None and (reason := architecture.check(model)):
            report.notes.append(f"{architecture.name} without folding: {reason}")
        if not away and architecture.prepare is not None:
            architecture.prepare(model)
        names = architecture.block_names(model) if architecture.blocks else [""]
        ready = 0 if away else sum(_make_ready(model, name, recipe) for name in names)
        if not away:
            _refuse_nothing(ready, recipe)
        for transform in recipe.transforms:
            if isinstance(transform, ModelTransform):
                report.transforms.append(_whole_model(model, architecture, transform, batches, check))
        batches = rows_to_run(batches, recipe)
        inputs = None
        streams: list[HiddenStates] = []  # what arrives, and for "mixed" what the float model would give
        if batches and names[0]:
            for _ in range(2 if recipe.propagate == "mixed" else 1):
                streams.append(HiddenStates(limit=memory, folder=scratch))
                stack.callback(streams[-1].close)

            def keep(hidden: torch.Tensor) -> None:
                for stream in streams:
                    stream.append(hidden)

            inputs = catch_inputs(model, model.get_submodule(names[0]), batches, keep)
        elif recipe.propagate == "mixed":
            report.notes.append("a model without blocks has no inputs to mix: propagate='mixed' did nothing")
        first = 0
        if work is not None:
            for i in range(work.done):
                if away:
                    ready += _enter(model, names[i], architecture, recipe)
                work.restore_block(i, model, names[i], report)
                if away:
                    work.let_go(i, model, names[i])
            first = _resumed(work, names, report, streams)
        for i, name in enumerate(names[first:], first):
            progress(name or type(model).__name__, i, len(names))
            if away:
                ready += _enter(model, name, architecture, recipe)
            torch.set_num_threads(threads)
            block = block_of(model, name, batches, inputs, streams)
            start = Start(block.module, report)
            quantize_block(
                model, block, i, architecture, recipe, report, check, random_state, streams[0] if streams else None
            )
            if work is not None:
                work = _kept(work, i, model, names, report, streams, start)
            if away and work is not None:
                work.let_go(i, model, name)
        _refuse_nothing(ready, recipe)
        progress("", len(names), len(names))
    if away:
        settle(model)
    model.train(was_training)
    report.seconds += time.perf_counter() - started
    model.quantization_report = report  # type: ignore[assignment]  # what is saved tells how it was made
    return model, report


def _refuse_nothing(ready: int, recipe: Recipe) -> None:
    if not ready:
        raise ModelError(f"no linear layer is left to quantize: the recipe skips {', '.join(recipe.skip)}")


def _whole_model(
    model: nn.Module, architecture: Architecture, transform: Any, batches: list[Any], check: bool
) -> dict[str, Any]:
    before = output_of(run_model(model, batches[0])) if check and batches else None
    facts = dict(transform.apply_model(model, architecture, batches))
    if before is not None:
        mask = mask_of(batches[0])

        def run() -> Tensor:
            return live(output_of(run_model(model, batches[0])), mask)

        error, allowed = relative_error(live(before, mask), run()), 10 * TOLERANCE.get(before.dtype, 1e-2)
        if not error <= allowed and not error <= rounding_error(model, run):  # errors add up over the blocks
            raise ModelError(f"{type(transform).__name__} changed the model's function (relative error {error:.2g})")
    return {"transform": type(transform).__name__, "group": "model", **facts}


def _make_ready(model: nn.Module, block: str, recipe: Recipe) -> int:
    """Check a block's weights and let its layers be changed; return how many will be quantized."""
    count = 0
    for name, module in list(model.get_submodule(block).named_modules(prefix=block)):
        if not isinstance(module, nn.Linear):
            continue
        if not all(bool(torch.isfinite(end)) for end in module.weight.aminmax()):  # NaN comes out of both
            raise ModelError(f"{name}: its weight holds NaN or infinite values; the model file is damaged")
        if not recipe.skips(name):
            model.set_submodule(name, PreparedLinear(module))
            count += 1
    return count


def _enter(model: nn.Module, name: str, architecture: Architecture, recipe: Recipe) -> int:
    """Bring a block in from where accelerate keeps it, in the form described; return the layers to quantize."""
    block = model.get_submodule(name)
    bring_in(block)
    if architecture.prepare is not None:
        holder = nn.ModuleDict({"block": block})  # the description changes all blocks of what it is given
        architecture.prepare(holder)
        model.set_submodule(name, holder["block"])
    return _make_ready(model, name, recipe)


def _refuse_offloaded(recipe: Recipe, inplace: bool, work_dir: Any) -> None:
    whole = [type(t).__name__ for t in recipe.transforms if isinstance(t, ModelTransform)]
    if whole:
        raise ModelError(f"{whole[0]} changes all blocks at once: this recipe needs the whole model in memory")
    if not inplace or work_dir is None:
        raise ModelError("a model with offloaded weights is quantized with inplace=True and a work_dir for the result")


def _resumed(work: WorkFolder, names: list[str], report: QuantizationReport, streams: list[HiddenStates]) -> int:
    """Read the hidden states that an earlier run left, and say so; return the blocks that it finished."""
    if work.anew:
        warnings.warn(f"{work.path}: starting anew, {work.anew}", SkerryWarning, stacklevel=4)
        report.notes.append(f"started anew: {work.anew}")
    if 0 < work.done < len(names) and streams:
        for i, tensor in enumerate(work.read_states(work.done)):
            stream, b = divmod(i, len(streams[0]))
            streams[stream][b] = tensor.to(streams[stream][b].device)
    if work.done:
        report.notes.append(f"resumed: {work.done} of {len(names)} blocks came from {work.path}")
    return work.done


def _kept(
    work: WorkFolder,
    index: int,
    model: nn.Module,
    names: list[str],
    report: QuantizationReport,
    streams: list[HiddenStates],
    start: Start,
) -> WorkFolder | None:
    """Keep a finished block; return the folder, or None where the block cannot be rebuilt and nothing is kept."""
    if reason := start.changed(model.get_submodule(names[index])):
        report.notes.append(f"an interruption would lose this run: {names[index]}.{reason}")
        return None
    if streams and index + 1 < len(names):
        work.save_states(index + 1, chain(*streams))
    work.save_block(index, model, names[index], report, start)
    return work
