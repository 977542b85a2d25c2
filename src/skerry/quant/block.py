"""What happens to one block: observe its inputs, transform its groups, solve its layers, report what each cost.

Every transform is fitted on the block as the earlier ones left it, and is undone with an error if it changed what the
block computes; the solvers see the inputs that the already quantized blocks before it give.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from skerry.core.errors import ModelError
from skerry.quant.activation import TokenDynamic
from skerry.quant.architectures.base import Architecture
from skerry.quant.calibration import BlockInputs, live, mask_of, output_of, run_model
from skerry.quant.formats.float4 import Float4
from skerry.quant.groups import Group
from skerry.quant.linear import PreparedLinear, QuantizedLinear
from skerry.quant.mixed import FloatTwin
from skerry.quant.numerics import AffineGrid, signal_to_noise
from skerry.quant.parts import FloatTensor, ModelTransform, Solved
from skerry.quant.probe import GroupContext, probe_of
from skerry.quant.recipe import Recipe
from skerry.quant.report import LayerReport, QuantizationReport
from skerry.quant.statistics import LayerStatistics, StatisticsCollector
from skerry.quant.streams import HiddenStates

__all__ = ["TOLERANCE", "Block", "block_of", "quantize_block", "relative_error", "rounding_error"]

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9, torch.bfloat16: 1e-2, torch.float16: 2e-3}
ROUNDINGS = 8  # of a matrix: a transform and its inverse take about log2(channels) steps


@dataclass
class Block:
    """A block with the calls it gets; for a model without blocks, the model and its batches."""

    name: str
    module: nn.Module
    run: Callable[[int], Tensor]
    count: int
    masks: list[Tensor | None]
    exact: HiddenStates | None = None  # what the float model would give, beside what arrives
    runner: Callable[[nn.Module, HiddenStates], Callable[[int], Tensor]] | None = None
    threads: int = field(default_factory=torch.get_num_threads)

    def steady(self) -> None:
        """Give torch its threads back: compiled kernels change them under it, and products round by their number."""
        torch.set_num_threads(self.threads)


def block_of(
    model: nn.Module, name: str, batches: list[Any], inputs: BlockInputs | None, streams: list[HiddenStates]
) -> Block:
    """Return the block ``name`` and how it is called on the hidden states; without these, the model on its batches.

    A second stream holds the float model's hidden states.
    """
    module = model.get_submodule(name)
    if inputs is None or not streams:
        masks = [mask_of(batch) for batch in batches]
        return Block(name, module, lambda b: output_of(run_model(model, batches[b])), len(batches), masks)

    def runner(called: nn.Module, states: HiddenStates) -> Callable[[int], Tensor]:
        def run(b: int) -> Tensor:
            with torch.no_grad():
                found = called(states[b], *inputs.arguments[b], **inputs.keywords[b])
            return found[0] if isinstance(found, tuple) else found

        return run

    exact = streams[1] if len(streams) > 1 else None
    return Block(name, module, runner(module, streams[0]), len(streams[0]), inputs.masks, exact, runner)


def quantize_block(
    model: nn.Module,
    block: Block,
    index: int,
    architecture: Architecture,
    recipe: Recipe,
    report: QuantizationReport,
    check: bool,
    random_state: int,
    states: HiddenStates | None,
) -> None:
    """Transform and quantize one block in place, write its lines of the report, make the next block's inputs."""
    groups = _groups(model, block, architecture)
    for transform in recipe.transforms:
        if isinstance(transform, ModelTransform):
            continue
        contexts = [_context(model, group, recipe, index, random_state) for group in groups]
        block.steady()
        found, output = _observe(block, groups, contexts, transform.needs)
        apply = [partial(transform.apply, *of) for of in zip(groups, found, contexts, strict=True)]
        told = _transformed(block, groups, transform, apply, output if check else None)
        for group, facts in zip(groups, told, strict=True):
            if facts:
                report.transforms.append({"transform": type(transform).__name__, "group": group.name, **facts})
    outputs = twin = None
    block.steady()
    if block.exact is not None and block.runner is not None:
        twin = FloatTwin(block.module, block.name, partial(block.runner, states=block.exact))
    if recipe.propagate == "float" and states is not None:
        outputs = [block.run(b) for b in range(block.count)]
    whole = recipe.sequential == "block" or not recipe.looks_at_inputs
    for part in [groups] if whole else [[g] for g in groups]:
        contexts = [_context(model, group, recipe, index, random_state) for group in part]
        block.steady()
        needs = {"sample"} | _needs(recipe, part)
        found, _ = _observe(block, part, contexts, needs, twin, model, probed=_wants_probe(recipe, part))
        for group, context, statistics in zip(part, contexts, found, strict=True):
            block.steady()
            if twin is not None:
                twin.correct(group)
            _solve_group(model, group, context, statistics, recipe, report)
    if recipe.operands is not None and (facts := recipe.operands.quantize(block.module, block.run, block.masks)):
        report.transforms.append({"transform": type(recipe.operands).__name__, "group": block.name, **facts})
    block.steady()
    if states is not None:
        for b in range(block.count):
            states[b] = block.run(b) if outputs is None else outputs[b]
            if twin is not None and block.exact is not None:
                block.exact[b] = twin.run(b)


def _solve_group(
    model: nn.Module,
    group: Group,
    context: GroupContext,
    statistics: LayerStatistics,
    recipe: Recipe,
    report: QuantizationReport,
) -> None:
    for name, layer in group.consumers.items():
        started = time.perf_counter()
        weight, solver, activation = recipe.parts_for(name, group.role)
        if isinstance(weight, AffineGrid) and not recipe.strict_groups:
            kept, weight = weight, weight.for_shape((layer.out_features, layer.in_features))
            if weight is not kept:
                report.notes.append(f"{name}: one scale a row, groups of {kept.group_size} do not divide its inputs")
        elif isinstance(weight, AffineGrid):
            weight.group_of((layer.out_features, layer.in_features), name)
        if activation is not None:
            activation = _fitting(activation, layer.in_features, name, recipe, report).calibrated(statistics)
        W = layer.weight.detach()
        if weight is None and activation is None and not layer.before:
            model.set_submodule(name, layer.plain())
            continue
        if weight is None:
            solved = Solved(FloatTensor(W.clone()))
        elif solver is None:
            solved = Solved(_stored(weight, W, name))
        elif hasattr(solver, "solve_in"):  # wants the probe: the error of the whole parent
            solved = solver.solve_in(W.float(), statistics, weight, group=group, layer=name, context=context)
        else:
            solved = solver.solve(W.float(), statistics, weight, name=name)
        quantized = QuantizedLinear(solved, activation, layer.bias, tuple(layer.before))
        quantized.train(False)
        report.layers.append(_layer_report(name, layer, quantized, statistics, time.perf_counter() - started))
        model.set_submodule(name, quantized)


def _stored(weight: Any, W: Tensor, name: str) -> Any:
    try:
        return weight.quantize(W.float())
    except ModelError as error:
        raise ModelError(f"{name}: {error}; leave the layer out (skip) or choose other bits") from None


def _fitting(activation: Any, channels: int, name: str, recipe: Recipe, report: QuantizationReport) -> Any:
    """Return the quantizer, or one scale a token where its groups do not divide the channels."""
    size = getattr(activation, "group_size", None)
    if not size or channels % size == 0 or recipe.strict_groups:
        return activation
    report.notes.append(f"{name}: inputs get one scale a token, groups of {size} do not divide its {channels} channels")
    return TokenDynamic(activation.bits, activation.symmetric)


def _layer_report(
    name: str, layer: PreparedLinear, quantized: QuantizedLinear, statistics: LayerStatistics, seconds: float
) -> LayerReport:
    noise = float("nan")
    if statistics.sample is not None:
        X = statistics.sample[:512]
        exact = X @ layer.weight.float().T
        rounded = X if quantized.activation is None else quantized.activation.fake(X)
        solved = quantized.solved
        stored = solved.weight.dequantize()
        if solved.sparse is not None:
            stored = stored + solved.sparse.dense()
        given = rounded @ stored.T
        if solved.low_rank is not None:
            given = given + X @ solved.low_rank.dense().T
        noise = signal_to_noise(exact, given)
    out, inputs = quantized.out_features, quantized.in_features
    return LayerReport(
        name=name,
        shape=(out, inputs),
        nbytes=quantized.nbytes,
        bits_per_weight=8 * quantized.solved.nbytes / (out * inputs),
        signal_to_noise=noise,
        objective=quantized.solved.objective,
        seconds=seconds,
        info=dict(quantized.solved.info),
    )


def _transformed(
    block: Block, groups: list[Group], transform: Any, apply: list[Callable[[], Any]], before: Tensor | None
) -> list[Mapping[str, Any]]:
    """Apply a transform to the groups; undo it with an error if the block's output (of batch 0) is not ``before``.

    One run of the block judges all groups together; where that fails, each is judged by itself, which names the one
    that is wrong, and lets pass what only adds up to more than the tolerance.
    """

    def applied(part: list[Callable[[], Any]]) -> list[Mapping[str, Any]]:
        facts = []
        for one in part:
            block.steady()
            facts.append(one())
        return facts

    if before is None:
        return applied(apply)
    kept = _Kept(block.module)
    facts = applied(apply)
    if _changed(block, before) is None:
        return facts
    kept.restore()
    facts = []
    for group, one in zip(groups, apply, strict=True):
        before, kept = block.run(0), _Kept(block.module)
        facts += applied([one])
        if (error := _changed(block, before)) is not None:
            kept.restore()
            raise ModelError(
                f"{type(transform).__name__} changed the function of {group.name} (relative error {error:.2g}): "
                f"another layer reads {group.producer or 'its input'} or {block.name} is not as its architecture says"
            )
    return facts


def _changed(block: Block, before: Tensor) -> float | None:
    """Return the relative error of the block's output beside what it was, None where rounding explains it."""

    def run() -> Tensor:
        return live(block.run(0), block.masks[0])

    error = relative_error(live(before, block.masks[0]), run())
    fine = error <= TOLERANCE.get(before.dtype, 1e-2) or error <= rounding_error(block.module, run)
    return None if fine else error


class _Kept:
    """A block as it is, to come back to: its modules, their attributes, the values of their tensors."""

    def __init__(self, module: nn.Module) -> None:
        self._modules = [(m, *_attributes(m)) for m in module.modules()]
        self._values = [(t, t.detach().clone()) for t in (*module.parameters(), *module.buffers())]

    @torch.no_grad()
    def restore(self) -> None:
        """Undo what was done since."""
        for module, plain, held in self._modules:
            for name in _attributes(module)[0].keys() - plain.keys():
                delattr(module, name)
            vars(module).update(plain)
            for now, was in zip((module._modules, module._parameters, module._buffers), held, strict=True):
                now.clear()  # the dictionary stays: hooks and names hold on to it
                now.update(was)
        for tensor, value in self._values:
            tensor.copy_(value)


def _attributes(module: nn.Module) -> tuple[dict[str, Any], tuple[dict[str, Any], ...]]:
    """Return a module's own attributes, lists copied, and its modules, parameters and buffers by name."""
    plain = {k: list(v) if isinstance(v, list) else v for k, v in vars(module).items() if not k.startswith("_")}
    return plain, (dict(module._modules), dict(module._parameters), dict(module._buffers))


def _observe(
    block: Block,
    groups: list[Group],
    contexts: list[GroupContext],
    needs: set[str] | frozenset[str],
    twin: FloatTwin | None = None,
    model: nn.Module | None = None,
    probed: bool = True,
) -> tuple[list[LayerStatistics], Tensor | None]:
    """Run the block over the calibration batches.

    Returns the statistics of each group's input, and the block's output on the first batch. Where nobody asks for the
    probes, later batches run no further than the last group.
    """
    if not block.count:
        return [LayerStatistics() for _ in groups], None
    probed = probed or twin is not None  # which sets its own recordings beside the probes'
    collectors = [StatisticsCollector(needs, group.name) for group in groups]
    current: list[Tensor | None] = [None]
    calls: Counter[str] = Counter()  # of the batch that runs
    short = False  # every group is called once a batch

    def listen(collector: StatisticsCollector, layer: PreparedLinear) -> Any:
        def hook(module: nn.Module, arguments: tuple) -> None:
            x = arrived = layer.changed(arguments[0])
            mask = current[0]
            if mask is not None and x.ndim == 2 and len(x) == mask.numel():  # OPT's MLP gets its tokens in one row
                x = x.reshape(*mask.shape, -1)
            collector.update(x, mask if mask is not None and x.shape[:2] == mask.shape else None)
            if twin is not None:
                twin.meet(collector.name, arrived, mask)
            calls[collector.name] += 1
            if short and len(calls) == len(collectors):
                raise _Enough

        return layer.register_forward_pre_hook(hook)

    output = None
    with ExitStack() as stack:
        for group, collector, context in zip(groups, collectors, contexts, strict=True):
            handle = listen(collector, next(iter(group.consumers.values())))
            stack.callback(handle.remove)
            if probed:
                stack.enter_context(context.probe.listening())
        if twin is not None and model is not None:
            stack.enter_context(twin.watching(model, groups, contexts))
        for b in range(block.count):
            calls.clear()
            current[0] = block.masks[b]
            if twin is not None:
                twin.give(b, current[0])
            for context in contexts:
                context.probe.mask = current[0]
            if b:
                with suppress(_Enough):
                    block.run(b)
            else:
                output = block.run(b)
                short = not probed and len(calls) == len(collectors) == calls.total()
    return [collector.finish() for collector in collectors], output


class _Enough(Exception):
    """Stops a block whose rest is not needed."""


def _groups(model: nn.Module, block: Block, architecture: Architecture) -> list[Group]:
    if block.name:
        return architecture.block_groups(model, block.name)
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, PreparedLinear)]
    return [Group(n, {n: m}) for n, m in layers]


def _context(model: nn.Module, group: Group, recipe: Recipe, index: int, random_state: int) -> GroupContext:
    weight, _, activation = recipe.parts_for(next(iter(group.consumers)), group.role)
    if isinstance(weight, AffineGrid):
        weight = weight.for_shape((1, group.width))
    elif isinstance(weight, Float4):
        weight.refuse_width(group.width, next(iter(group.consumers)))
    size = getattr(activation, "group_size", None)
    if activation is not None and size and group.width % size:
        activation = TokenDynamic(activation.bits, activation.symmetric)
    return GroupContext(model, weight, activation, probe_of(model, group), index, random_state)


def _needs(recipe: Recipe, groups: list[Group]) -> set[str]:
    parts = [part for group in groups for name in group.consumers for part in recipe.parts_for(name, group.role)]
    return {need for part in parts for need in getattr(part, "needs", ())}


def _wants_probe(recipe: Recipe, groups: list[Group]) -> bool:
    """Return whether a solver looks at what the rounding of a whole group does, not only at its inputs."""
    return any(hasattr(recipe.parts_for(name, g.role)[1], "solve_in") for g in groups for name in g.consumers)


@torch.no_grad()
def rounding_error(module: nn.Module, run: Callable[[], Tensor]) -> float:
    """Return the relative error of the outputs that rounding may explain: that of some roundings more of every matrix.

    It is far above a dtype's own where large values cancel, as massive activations do.
    """
    matrices = [t for t in (*module.parameters(), *module.buffers()) if t.ndim > 1 and t.is_floating_point()]
    kept, exact = [t.clone() for t in matrices], run()
    generator = torch.Generator().manual_seed(0)
    for t in matrices:
        noise = torch.randn(t.shape, generator=generator).to(t)
        t.addcmul_(t, noise, value=ROUNDINGS * torch.finfo(t.dtype).eps)
    noisy = run()
    for t, was in zip(matrices, kept, strict=True):
        t.copy_(was)
    return relative_error(exact, noisy)


def relative_error(before: Tensor, after: Tensor) -> float:
    """Return ``|after - before| / |before|``."""
    before, after = before.double(), after.double()
    return float(torch.linalg.vector_norm(after - before) / torch.linalg.vector_norm(before).clamp(min=1e-30))
