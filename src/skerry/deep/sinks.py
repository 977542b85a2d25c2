"""Find attention sinks, residual sinks and massive activations in a transformer, and measure what each one does.

"Outlier-Driven Rescaling" (arXiv 2601.22966): a residual sink is one channel that is huge on nearly every token and
turns down the others through the norm; a massive activation is huge on the first token alone; an attention sink is a
first key that draws the probability of heads with nothing to do. :mod:`skerry.deep.sink_interventions` holds the tests
that tell what would be lost without them. Two passes over the batches, memory bounded by one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from skerry.core.errors import ModelError
from skerry.deep.outlier_metrics import FIRST_QUERY, sink_mass, value_drain
from skerry.deep.stream import call, first_tensor, stream_blocks, stream_norms, watch_attention

__all__ = [
    "AttentionSink",
    "Lever",
    "MassiveActivation",
    "ResidualSink",
    "SinkProbe",
    "SinkReport",
    "rescaling_bound",
]

_BINS = 1000


def rescaling_bound(lever: Tensor, gain_ratio: Tensor | float, largest_gain: Tensor | float = 1.0) -> Tensor:
    """Return the paper's bound on the rms of a norm's output: ``g sqrt((1 - r^2) + eps^2 r^2)``.

    Parameters
    ----------
    lever : Tensor
        r, the share of one channel in the norm of the stream.
    gain_ratio : Tensor or float
        eps, the gain of that channel over the largest gain.
    largest_gain : Tensor or float, default 1.0
        g.

    Examples
    --------
    >>> round(rescaling_bound(torch.tensor(0.995037), 0.01).item(), 4)
    0.1
    """
    r2 = torch.as_tensor(lever).square()
    return largest_gain * torch.sqrt((1 - r2).clamp_min(0.0) + (gain_ratio**2) * r2)


@dataclass(frozen=True)
class ResidualSink:
    """A channel that is huge on most tokens: its mean absolute value, that over the median channel, and how often
    it is the largest of its token (share of layers and tokens)."""

    channel: int
    mean_abs: float
    ratio: float
    argmax_share: float


@dataclass(frozen=True)
class MassiveActivation:
    """A channel that is huge on the first token alone."""

    block: str
    channel: int
    value: float
    elsewhere: float
    ratio: float


@dataclass(frozen=True)
class Lever:
    """What the strongest channel does in front of and behind one norm.

    ``mean`` and ``p99`` of ``|h_d| / ||h||`` over tokens; ``gain_ratio`` is the norm's gain there over the median gain
    (None without a vector of gains); ``contribution`` is the channel's share in the norm of the output.
    """

    norm: str
    mean: float
    p99: float
    gain_ratio: float | None
    contribution: float


@dataclass(frozen=True)
class AttentionSink:
    """One attention layer: mass on the first key of each head, the first value's size over the others' (None where
    values are unknown), and the first token's share in the heads' outputs."""

    layer: str
    mass: tuple[float, ...]
    value_drain: float | None
    contribution: float | None


@dataclass(frozen=True)
class SinkReport:
    """What :meth:`SinkProbe.run` found.

    Attributes
    ----------
    residual_sinks : list of ResidualSink
        Strongest first.
    massive : list of MassiveActivation
    levers : list of Lever
        One for each norm, of ``channel``.
    attention : list of AttentionSink
    mean_abs : Tensor of shape (d,)
        Mean absolute activation of each channel over blocks and tokens, the first token left out.
    peak, peak_first : float
        Largest absolute value of the stream without, and on, the first token.
    """

    residual_sinks: list[ResidualSink]
    massive: list[MassiveActivation]
    levers: list[Lever]
    attention: list[AttentionSink]
    mean_abs: Tensor = field(repr=False)
    peak: float
    peak_first: float

    @property
    def channel(self) -> int:
        """The channel with the largest mean absolute activation, sink or not."""
        return int(self.mean_abs.argmax())

    def top(self, k: int = 5) -> list[tuple[int, float]]:
        """Return the k channels of largest mean absolute activation, and how many medians each is."""
        order = self.mean_abs.argsort(descending=True)[:k]
        middle = self.mean_abs.median().clamp_min(1e-30)
        return [(int(j), float(self.mean_abs[j] / middle)) for j in order]


class SinkProbe:
    """Run a transformer over some batches and report its sinks.

    Parameters
    ----------
    model : torch.nn.Module
    blocks, norms : mapping of name to Module, optional
        Default: :mod:`skerry.deep.stream`'s.
    sink_ratio : float, default 6.0
        A channel whose mean absolute value is this many times the median channel's, and which is the largest of its
        token on at least a tenth of layers and tokens, is called a residual sink.
    massive_ratio, massive_absolute : float, default 1000.0, 100.0
        A first token's value above both (the first counted in medians of the block's absolute values), and ten times
        what the channel has elsewhere, is called a massive activation.

    Raises
    ------
    ModelError
        If blocks are not found.

    Examples
    --------
    A network of two blocks with a planted channel:

    >>> class Block(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.norm, self.linear = nn.RMSNorm(8), nn.Linear(8, 8)
    ...     def forward(self, x):
    ...         return x + self.linear(self.norm(x))
    >>> model = nn.Sequential(Block(), Block())
    >>> x = torch.randn(4, 10, 8, generator=torch.Generator().manual_seed(0))
    >>> x[..., 3] = 50
    >>> report = SinkProbe(model).run([x])
    >>> [s.channel for s in report.residual_sinks], report.massive
    ([3], [])
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        blocks: Mapping[str, nn.Module] | None = None,
        norms: Mapping[str, nn.Module] | None = None,
        sink_ratio: float = 6.0,
        massive_ratio: float = 1000.0,
        massive_absolute: float = 100.0,
    ) -> None:
        self.model = model
        self.blocks = dict(blocks) if blocks is not None else stream_blocks(model)
        self.norms = dict(norms) if norms is not None else stream_norms(model)
        self.sink_ratio, self.massive_ratio, self.massive_absolute = sink_ratio, massive_ratio, massive_absolute

    @torch.no_grad()
    def run(self, batches: Sequence[Any]) -> SinkReport:
        """Return the report on ``batches``, which are gone through twice.

        Parameters
        ----------
        batches : sequence
            What the model takes: see :func:`call`.

        Raises
        ------
        ModelError
            If there is no batch, or the blocks did not run.
        """
        training = self.model.training
        self.model.eval()
        try:
            stream = _Stream(self)
            with stream.hooks():
                for batch in batches:
                    call(self.model, batch)
            if not stream.count:
                raise ModelError("no batch was given, or the blocks that were named did not run")
            mean_abs = stream.total / stream.count
            second = _Second(self, int(mean_abs.argmax()))
            with second.hooks(), watch_attention(self.model, second.attend):
                for batch in batches:
                    call(self.model, batch)
        finally:
            self.model.train(training)
        middle = float(mean_abs.median().clamp_min(1e-30))
        sinks = [
            ResidualSink(int(j), float(mean_abs[j]), float(mean_abs[j]) / middle, stream.share(int(j)))
            for j in mean_abs.argsort(descending=True)[:16]
            if mean_abs[j] > self.sink_ratio * middle and stream.share(int(j)) >= 0.1
        ]
        return SinkReport(
            sinks, stream.massive(), second.levers(), second.attention(), mean_abs.cpu(), stream.peak, stream.peak_first
        )


class _Stream:
    """The first pass: sizes of channels behind every block."""

    def __init__(self, probe: SinkProbe) -> None:
        self.probe, self.count, self.peak, self.peak_first = probe, 0, 0.0, 0.0
        self.total = self.largest = None
        self.first: dict[str, list] = {}  # name: [sum |first| (d,), sequences, sum |others| (d,), tokens, medians]

    @contextmanager
    def hooks(self) -> Iterator[None]:
        handles = [block.register_forward_hook(self._see(name)) for name, block in self.probe.blocks.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _see(self, name: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple, output: Any) -> None:
            size = first_tensor(output).detach().float().abs()
            first, rest = size[:, 0], size[:, 1:]
            if self.total is None:
                self.total = torch.zeros(size.shape[-1], dtype=torch.float64, device=size.device)
                self.largest = torch.zeros(size.shape[-1], dtype=torch.int64, device=size.device)
            here = rest.double().sum((0, 1))
            self.total += here
            self.count += rest.shape[0] * rest.shape[1]
            self.largest += torch.bincount(rest.argmax(-1).flatten(), minlength=size.shape[-1])
            self.peak = max(self.peak, float(rest.max()) if rest.numel() else 0.0)
            self.peak_first = max(self.peak_first, float(first.max()))
            held = self.first.setdefault(name, [0.0, 0, 0.0, 0, []])
            held[0] = held[0] + first.double().sum(0)
            held[1] += len(first)
            held[2] = held[2] + here
            held[3] += rest.shape[0] * rest.shape[1]
            held[4].append(float(size.median()))

        return hook

    def share(self, channel: int) -> float:
        return float(self.largest[channel]) / max(self.count, 1)

    def massive(self) -> list[MassiveActivation]:
        found = []
        for name, (first, sequences, rest, tokens, medians) in self.first.items():
            value, elsewhere = first / sequences, rest / max(tokens, 1)
            middle = max(sum(medians) / len(medians), 1e-30)
            for j in value.argsort(descending=True)[:4].tolist():
                v, e = float(value[j]), float(elsewhere[j])
                if v > self.probe.massive_absolute and v > self.probe.massive_ratio * middle and v > 10 * e:
                    found.append(MassiveActivation(name, j, v, e, v / middle))
        return found


class _Second:
    """The second pass: what the strongest channel does at every norm, and where attention lies."""

    def __init__(self, probe: SinkProbe, channel: int) -> None:
        self.probe, self.channel = probe, channel
        self.shares: dict[str, Tensor] = {}
        self.sums: dict[str, list[float]] = {}
        self.heads: dict[str, list] = {}

    @contextmanager
    def hooks(self) -> Iterator[None]:
        handles = [norm.register_forward_hook(self._see(name)) for name, norm in self.probe.norms.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _see(self, name: str) -> Callable:
        def part(x: Tensor) -> Tensor:
            x = x.detach().float()
            return x[..., self.channel].abs() / torch.linalg.vector_norm(x, dim=-1).clamp_min(1e-30)

        def hook(module: nn.Module, inputs: tuple, output: Any) -> None:
            if inputs[0].shape[-1] <= self.channel:
                return
            r, out = part(inputs[0]).flatten(), part(first_tensor(output)).flatten()
            counts = torch.bincount((r * _BINS).long().clamp(0, _BINS - 1), minlength=_BINS)
            self.shares[name] = self.shares.get(name, 0) + counts
            held = self.sums.setdefault(name, [0.0, 0.0, 0])
            held[0] += float(r.double().sum())
            held[1] += float(out.double().sum())
            held[2] += len(r)

        return hook

    def attend(self, name: str, weights: Tensor, values: Tensor | None) -> None:
        if weights.shape[-1] <= FIRST_QUERY:
            return
        held = self.heads.setdefault(name, [0.0, 0.0, 0.0, 0])
        held[0] = held[0] + sink_mass(weights).double()
        held[3] += 1
        if values is None or values.dim() != 3:
            held[1] = held[2] = None
        elif held[1] is not None:
            held[1] += value_drain(values)
            head_dim = self._head_dim(name, values, weights.shape[1])
            v = values.float().unflatten(-1, (-1, head_dim)).transpose(1, 2)
            v = v.repeat_interleave(weights.shape[1] // v.shape[1], dim=1)
            w = weights.float()[:, :, FIRST_QUERY:]
            of_first = torch.linalg.vector_norm(w[..., :1] * v[:, :, :1], dim=-1)
            whole = torch.linalg.vector_norm(w @ v, dim=-1).clamp_min(1e-30)
            held[2] += float(of_first.mean() / whole.mean())

    def _head_dim(self, name: str, values: Tensor, n_heads: int) -> int:
        """Return the channels of a head; there may be fewer value heads than query heads."""
        known = getattr(self.probe.model.get_submodule(name), "head_dim", None)
        return known if isinstance(known, int) else values.shape[-1] // n_heads

    def levers(self) -> list[Lever]:
        found = []
        for name, (r, out, n) in self.sums.items():
            counts = self.shares[name].double().cumsum(0)
            p99 = (int(torch.searchsorted(counts, 0.99 * counts[-1])) + 1) / _BINS
            found.append(Lever(name, r / n, min(p99, 1.0), self._gain(self.probe.norms[name]), out / n))
        return found

    def _gain(self, norm: nn.Module) -> float | None:
        weight = getattr(norm, "weight", None)
        weight = getattr(getattr(norm, "norm", None), "weight", None) if weight is None else weight
        if not isinstance(weight, Tensor) or weight.dim() != 1 or len(weight) <= self.channel:
            return None
        size = weight.detach().float().abs()
        return float(size[self.channel] / size.median().clamp_min(1e-30))

    def attention(self) -> list[AttentionSink]:
        return [
            AttentionSink(
                name,
                tuple((mass / n).tolist()),
                None if drain is None else drain / n,
                None if part is None else part / n,
            )
            for name, (mass, drain, part, n) in self.heads.items()
        ]
