"""What a residual sink is for, told by taking it away: its mean, zero or a clamp before each norm, and absorption.

"Outlier-Driven Rescaling" (arXiv 2601.22966). If a channel's mean in its place changes nothing while zero costs loss,
the channel is a rescaling factor that does not depend on the input. Nothing but the norms' input is touched: the
stream itself, and what the blocks add to it, stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from skerry.core.errors import ModelError, ParameterError
from skerry.deep.stream import first_tensor, stream_blocks, stream_norms

__all__ = ["Absorption", "CausalTest", "absorption_test", "causal_test"]

KINDS = ("mean", "zero", "clamp")


@dataclass(frozen=True)
class CausalTest:
    """Losses with and without some channels.

    Attributes
    ----------
    kind : str
    channels : tuple of int
    base : float
        Loss of the model as it is.
    by_norm : dict
        Change of the loss when the channels are replaced in front of that norm alone.
    total : float
        Change when they are replaced in front of all norms.
    """

    kind: str
    channels: tuple[int, ...]
    base: float
    by_norm: dict[str, float]
    total: float


@dataclass(frozen=True)
class Absorption:
    """The stream with and without the constant part of a channel.

    Attributes
    ----------
    channel : int
    peak, peak_absorbed : float
        Largest absolute value behind the blocks.
    loss_change : float
        Zero up to rounding: the norms are given the constant back.
    mean : dict
        Block name to the constant that was taken out of the stream behind it.
    """

    channel: int
    peak: float
    peak_absorbed: float
    loss_change: float
    mean: dict[str, float]


def causal_test(
    model: nn.Module,
    channels: Sequence[int],
    kind: str,
    batches: Sequence[Any],
    loss: Callable[[nn.Module, Any], Tensor],
    *,
    norms: Mapping[str, nn.Module] | None = None,
    clamp: float = 3.0,
) -> CausalTest:
    """Replace channels in front of every norm, one norm at a time and then all, and return what the loss does.

    Parameters
    ----------
    model : torch.nn.Module
    channels : sequence of int
        Those of :attr:`skerry.deep.sinks.SinkReport.residual_sinks`, or any other for comparison.
    kind : {"mean", "zero", "clamp"}
        The channel's mean over all tokens that this norm sees; zero; or clamped to ``clamp`` times the token's rms.
    batches : sequence
    loss : callable
        ``loss(model, batch)``, a scalar.
    norms : mapping of name to Module, optional
        Default: :func:`skerry.deep.stream.stream_norms`.
    clamp : float, default 3.0

    Raises
    ------
    ParameterError
        For an unknown kind or no channel.
    ModelError
        If there is no norm or no batch.

    Examples
    --------
    >>> model = nn.Sequential(nn.RMSNorm(4), nn.Linear(4, 1))
    >>> x = torch.ones(2, 3, 4)
    >>> test = causal_test(model, [1], "mean", [x], lambda m, b: m(b).square().mean())
    >>> abs(test.total) < 1e-6  # the channel is constant
    True
    """
    if kind not in KINDS or not channels:
        raise ParameterError(f"kind is {kind!r} (give one of {', '.join(KINDS)}), channels {list(channels)}")
    norms = dict(norms) if norms is not None else stream_norms(model)
    if not norms or not len(batches):
        raise ModelError("there must be a norm in the model, and a batch")
    index = torch.as_tensor(list(channels))
    with _evaluation(model):
        means = _means(model, norms, index, batches, loss) if kind == "mean" else {}

        def replaced(name: str) -> Callable:
            def hook(module: nn.Module, inputs: tuple) -> tuple:
                x = inputs[0].clone()
                if kind == "zero":
                    x[..., index] = 0.0
                elif kind == "mean":
                    x[..., index] = means[name].to(x.dtype)
                else:
                    bound = clamp * x.float().square().mean(-1, keepdim=True).sqrt().to(x.dtype)
                    x[..., index] = torch.maximum(torch.minimum(x[..., index], bound), -bound)
                return (x, *inputs[1:])

            return hook

        def measured(names: Sequence[str]) -> float:
            hooks = [norms[n].register_forward_pre_hook(replaced(n)) for n in names]
            try:
                return _loss(model, batches, loss)
            finally:
                for hook in hooks:
                    hook.remove()

        base = _loss(model, batches, loss)
        by_norm = {name: measured([name]) - base for name in norms}
        return CausalTest(kind, tuple(int(c) for c in channels), base, by_norm, measured(list(norms)) - base)


def absorption_test(
    model: nn.Module,
    channel: int,
    batches: Sequence[Any],
    loss: Callable[[nn.Module, Any], Tensor],
) -> Absorption:
    """Take the constant part of a channel out of the stream, give it back inside every norm, and compare.

    The mean behind each block leaves the stream there, and every norm in the next block (the last norms: behind the
    last block) adds it to what it reads. The network computes what it did; how much smaller the peak becomes is the
    share of the sink that does not depend on the input.

    Parameters
    ----------
    model : torch.nn.Module
        A pre-norm transformer.
    channel : int
    batches : sequence
    loss : callable
        ``loss(model, batch)``, a scalar.

    Raises
    ------
    ModelError
        If the blocks are not found.
    """
    blocks, norms = stream_blocks(model), stream_norms(model)
    names = list(blocks)
    index = torch.tensor([channel])
    with _evaluation(model):
        means = {n: float(v) for n, v in _means(model, blocks, index, batches, loss, outputs=True).items()}
        before = _Peak(blocks)
        with before:
            base = _loss(model, batches, loss)
        hooks, moved = [], 0.0
        for name in names:
            # behind this block the stream is to lack means[name]; what it lacked before stays out of its sum
            hooks.append(blocks[name].register_forward_hook(_shift_output(channel, moved - means[name])))
            inside = [n for n in norms if n.startswith(f"{name}.")]
            hooks += [norms[n].register_forward_pre_hook(_shift_input(channel, moved)) for n in inside]
            moved = means[name]
        outer = [n for n in norms if not any(n.startswith(f"{b}.") for b in names)]
        hooks += [norms[n].register_forward_pre_hook(_shift_input(channel, moved)) for n in outer]
        after = _Peak(blocks)
        try:
            with after:
                change = _loss(model, batches, loss) - base
        finally:
            for hook in hooks:
                hook.remove()
    return Absorption(channel, before.peak, after.peak, change, means)


def _shift_output(channel: int, by: float) -> Callable:
    def hook(module: nn.Module, inputs: tuple, output: Any) -> Any:
        x = first_tensor(output).clone()
        x[..., channel] += by
        return (x, *output[1:]) if isinstance(output, tuple) else x

    return hook


def _shift_input(channel: int, by: float) -> Callable:
    def hook(module: nn.Module, inputs: tuple) -> tuple:
        x = inputs[0].clone()
        x[..., channel] += by
        return (x, *inputs[1:])

    return hook


class _Peak:
    """Largest absolute value behind some blocks, over the time of a ``with``."""

    def __init__(self, blocks: Mapping[str, nn.Module]) -> None:
        self.blocks, self.peak = blocks, 0.0

    def __enter__(self) -> _Peak:
        self.hooks = [b.register_forward_hook(self._see) for b in self.blocks.values()]
        return self

    def __exit__(self, *exc: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _see(self, module: nn.Module, inputs: tuple, output: Any) -> None:
        self.peak = max(self.peak, float(first_tensor(output).detach().abs().max()))


@torch.no_grad()
def _means(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    index: Tensor,
    batches: Sequence[Any],
    loss: Callable,
    *,
    outputs: bool = False,
) -> dict[str, Tensor]:
    """Return the mean of channels over all tokens that enter (or leave) each module."""
    sums: dict[str, list] = {}

    def see(name: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple, output: Any) -> None:
            x = (first_tensor(output) if outputs else inputs[0]).detach()[..., index].double().flatten(0, -2)
            held = sums.setdefault(name, [0.0, 0])
            held[0], held[1] = held[0] + x.sum(0), held[1] + len(x)

        return hook

    hooks = [m.register_forward_hook(see(name)) for name, m in modules.items()]
    try:
        for batch in batches:
            loss(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: total / n for name, (total, n) in sums.items()}


@torch.no_grad()
def _loss(model: nn.Module, batches: Sequence[Any], loss: Callable) -> float:
    return float(sum(float(loss(model, b)) for b in batches) / len(batches))


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
