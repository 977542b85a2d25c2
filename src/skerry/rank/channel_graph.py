"""Which channels of a traced network must stand or fall together, for structured pruning.

Every output channel of a convolution is one atom. A walk over the traced graph carries the atoms of each tensor's
channels: additions tie the atoms of both branches, depth-wise and grouped convolutions tie theirs to their producer,
flattening repeats them, concatenation joins them, and an operation that cannot be followed freezes those that reach it.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skerry.core.errors import MissingExtra, ModelError
from skerry.rank.filter_observation import evaluating

try:
    import torch
    from torch import Tensor, fx, nn
    from torch.fx.passes.shape_prop import ShapeProp
    from torch.nn.modules.batchnorm import _NormBase
except ImportError as error:
    raise MissingExtra("torch", "deep") from error

__all__ = ["Bucket", "ChannelGraph", "Site"]

Atoms = NDArray[np.int64]
CHANNELWISE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid),
    *(nn.Hardtanh, nn.Mish, nn.Softplus, nn.Identity, nn.Dropout, nn.Dropout2d, nn.MaxPool2d, nn.AvgPool2d),
    *(nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Upsample, nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d),
)
CHANNELWISE_CALLS = frozenset(
    "relu relu_ relu6 leaky_relu elu gelu silu sigmoid tanh hardswish hardsigmoid hardtanh mish softplus "
    "dropout dropout2d max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d interpolate "
    "contiguous clone detach float abs neg clamp exp sqrt square".split()
)
JOINING_CALLS = frozenset("add add_ iadd sub sub_ isub mul mul_ imul div div_ truediv maximum minimum".split())
SHAPE_CALLS = frozenset("size dim numel".split())


@dataclass(frozen=True)
class Site:
    """A layer with parameters: the atoms that it reads and writes, and its output positions."""

    name: str
    module: nn.Module
    inputs: Atoms
    outputs: Atoms
    positions: int

    def flops(self, n_in: int, n_out: int) -> int:
        """Return the FLOPs of one image with this many channels: two per multiplication; norms count for nothing."""
        if isinstance(self.module, nn.Conv2d):
            per_filter = n_in if self.module.groups == 1 else self.module.in_channels // self.module.groups
            return 2 * n_out * per_filter * math.prod(self.module.kernel_size) * self.positions
        return 2 * n_in * n_out if isinstance(self.module, nn.Linear) else 0


@dataclass(frozen=True)
class Bucket:
    """Filters of the same layers that may be chosen among: one class of atoms and one score each."""

    layers: tuple[str, ...]
    roots: Atoms
    score: NDArray[np.float64]  # NaN where no member was scored


class ChannelGraph:
    """Atoms of every tensor in the traced graph, tied and frozen as its operations demand."""

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        self.parent: list[int] = []
        self.why: dict[int, str] = {}  # of a frozen root
        self.sites: list[Site] = []
        with evaluating(model), torch.no_grad():
            try:
                graph = fx.symbolic_trace(model)
            except Exception as error:  # any code of the model's author runs here
                raise ModelError(f"{type(model).__name__} cannot be traced: {error}") from error
            try:
                ShapeProp(graph).propagate(example)
            except Exception as error:
                raise ModelError(f"{type(model).__name__} does not run on the example: {error}") from error
        self.modules = dict(model.named_modules())
        self.uses = Counter(n.target for n in graph.graph.nodes if n.op == "call_module")
        self.owners = Counter(id(p) for m in set(model.modules()) for p in m._parameters.values() if p is not None)
        self.channels: dict[fx.Node, Atoms | None] = {}
        for node in graph.graph.nodes:
            self.channels[node] = self._visit(node)

    # union-find

    def fresh(self, n: int, why: str | None = None) -> Atoms:
        """Return ``n`` new atoms, frozen if a reason is given."""
        atoms = np.arange(len(self.parent), len(self.parent) + n)
        self.parent.extend(atoms.tolist())
        if why is not None:
            self.freeze(atoms, why)
        return atoms

    def root(self, atom: int) -> int:
        """Return the atom that stands for all that are tied to ``atom``."""
        while self.parent[atom] != atom:
            self.parent[atom] = self.parent[self.parent[atom]]
            atom = self.parent[atom]
        return atom

    def roots(self, atoms: Atoms) -> Atoms:
        """Return the root of each atom."""
        return np.array([self.root(a) for a in atoms.tolist()], dtype=np.int64)

    def tie(self, left: Sequence[int], right: Sequence[int]) -> None:
        """Let ``left[i]`` and ``right[i]`` stand or fall together; a reason to stay is kept."""
        for a, b in zip(left, right, strict=True):
            a, b = self.root(int(a)), self.root(int(b))
            if a != b:
                self.parent[b] = a
                if b in self.why:
                    self.why.setdefault(a, self.why.pop(b))

    def freeze(self, atoms: Atoms, why: str) -> None:
        """Let no atom of these, nor any tied to them, be removed; the first reason counts."""
        for root in set(self.roots(atoms).tolist()):
            self.why.setdefault(root, why)

    # nodes

    def _visit(self, node: fx.Node) -> Atoms | None:
        if node.op == "placeholder":
            return self._frozen(node, "the network's input")
        if node.op == "output":
            for source in node.all_input_nodes:
                self._freeze_source(source, "the network's output")
            return None
        if node.op == "get_attr":
            return self._frozen(node, f"the tensor {node.target!r}")
        if node.op == "call_module":
            return self._module(node, self.modules[node.target])
        return self._call(node)

    def _frozen(self, node: fx.Node, why: str) -> Atoms | None:
        shape = _shape(node)
        return self.fresh(shape[1], why) if shape is not None and len(shape) > 1 else None

    def _freeze_source(self, source: fx.Node, why: str) -> None:
        if self.channels[source] is not None:
            self.freeze(self.channels[source], why)

    def _opaque(self, node: fx.Node, why: str) -> Atoms | None:
        """Freeze all that reaches ``node``, and what it returns."""
        for source in node.all_input_nodes:
            self._freeze_source(source, why)
        return self._frozen(node, why)

    def _module(self, node: fx.Node, module: nn.Module) -> Atoms | None:
        what = f"{node.target!r} ({type(module).__name__})"
        own = [p for p in module._parameters.values() if p is not None]
        sited = type(module) in (nn.Conv2d, nn.Linear) or isinstance(module, (_NormBase, nn.PReLU))
        if ((own or sited) and self.uses[node.target] > 1) or (any(self.owners[id(p)] > 1 for p in own)):
            return self._opaque(node, f"{what}, whose weights are used more than once")
        source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        x = self.channels[source] if source is not None else None
        if x is None or len(node.all_input_nodes) != 1:
            return self._opaque(node, what)
        shape = _shape(node)
        if sited and "weight" not in module._parameters:
            return self._opaque(node, f"{what}, whose weight is computed from others")
        if type(module) is nn.Conv2d and len(shape) == 4:
            out = self.fresh(module.out_channels)
            if module.groups > 1:
                for ins, outs in zip(np.split(x, module.groups), np.split(out, module.groups), strict=True):
                    block = np.r_[ins, outs]
                    self.tie(block[:-1], block[1:])
            self.sites.append(Site(node.target, module, x, out, math.prod(shape[2:])))
            return out
        if type(module) is nn.Linear and len(shape) == 2:
            out = self.fresh(module.out_features, f"{what}, whose outputs are not filters")
            self.sites.append(Site(node.target, module, x, out, 1))
            return out
        if isinstance(module, (_NormBase, nn.PReLU)):
            self.sites.append(Site(node.target, module, x, x, 0))
            return x
        if isinstance(module, nn.Flatten) and module.start_dim == 1 and module.end_dim in (-1, len(_shape(source)) - 1):
            return self._flatten(x, source)
        return x if isinstance(module, CHANNELWISE) else self._opaque(node, what)

    def _flatten(self, x: Atoms, source: fx.Node) -> Atoms:
        return np.repeat(x, math.prod(_shape(source)[2:]))

    def _call(self, node: fx.Node) -> Atoms | None:
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        what = f"{name}() at {node.name!r}"
        source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        x = self.channels[source] if source is not None else None
        if name in SHAPE_CALLS or (name == "getattr" and node.args[1] in ("shape", "device", "dtype", "ndim")):
            return None
        if name in JOINING_CALLS:
            return self._join(node, what)
        if name in ("cat", "concat") and isinstance(node.args[0], (list, tuple)):
            parts = [self.channels[p] for p in node.args[0]]
            dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
            if dim % len(_shape(node)) == 1 and all(p is not None for p in parts):
                return np.concatenate(parts)
        if x is None:
            return self._opaque(node, what)
        shape, rest = _shape(source), node.args[1:]
        if name in CHANNELWISE_CALLS and len(node.all_input_nodes) == 1:
            return x
        if name == "flatten":
            start, end = (*rest, *(node.kwargs.get(k, d) for k, d in (("start_dim", 0), ("end_dim", -1))[len(rest) :]))
            if start == 1 and end in (-1, len(shape) - 1):
                return self._flatten(x, source)
        if name in ("view", "reshape") and len(rest) == 2 and rest[1] == -1 and _shape(node)[0] == shape[0]:
            return self._flatten(x, source)
        if name == "mean" and "dtype" not in node.kwargs:
            dims = rest[0] if rest else node.kwargs.get("dim", 0)
            dims = dims if isinstance(dims, (list, tuple)) else (dims,)
            if all(isinstance(d, int) and d % len(shape) > 1 for d in dims):
                return x
        if name == "getitem" and isinstance(rest[0], tuple):
            whole = all(i == slice(None) for i in rest[0][:2])
            if whole and len(rest[0]) > 1 and all(isinstance(i, slice) for i in rest[0]):
                return x
        return self._opaque(node, what)

    def _join(self, node: fx.Node, what: str) -> Atoms | None:
        """Tie what is added or multiplied channel by channel; numbers join nothing."""
        sources = [s for s in node.all_input_nodes if _shape(s) is not None and math.prod(_shape(s)) > 1]
        if not sources or any(a is None for a in (self.channels[s] for s in sources)):
            return self._opaque(node, what)
        if len({len(_shape(s)) for s in sources}) > 1:
            return self._opaque(node, what)
        atoms = sorted((self.channels[s] for s in sources), key=len)
        for other in atoms[:-1]:
            if len(other) == len(atoms[-1]):
                self.tie(atoms[-1], other)
            else:
                self.freeze(other, what)  # one channel, spread over all
        return atoms[-1]

    # results

    def buckets(self, scores: Mapping[str, NDArray[np.float64]]) -> list[Bucket]:
        """Return what may be removed, by the layers it runs through; tied filters share the mean of their scores."""
        members: dict[int, list[tuple[str, int]]] = defaultdict(list)
        for site in self.sites:
            if isinstance(site.module, nn.Conv2d):
                for k, root in enumerate(self.roots(site.outputs).tolist()):
                    if root not in self.why:
                        members[root].append((site.name, k))
        buckets: dict[tuple[str, ...], list[tuple[int, float]]] = defaultdict(list)
        for root, filters in members.items():
            found = [scores[name][k] for name, k in filters if name in scores]
            layers = tuple(dict.fromkeys(name for name, _ in filters))
            buckets[layers].append((root, float(np.mean(found)) if found else math.nan))
        return [Bucket(k, np.array([r for r, _ in v]), np.array([s for _, s in v])) for k, v in buckets.items()]

    def fixed(self) -> dict[str, str]:
        """Return the reason for each convolution with a filter that may not be removed."""
        reasons = {}
        for site in self.sites:
            if isinstance(site.module, nn.Conv2d):
                why = [self.why[r] for r in self.roots(site.outputs).tolist() if r in self.why]
                if why:
                    reasons[site.name] = why[0]
        return reasons

    def flops(self, keep: NDArray[np.bool_]) -> int:
        """Return the FLOPs of one image if the roots in ``keep`` stay."""
        return sum(
            s.flops(int(keep[self.roots(s.inputs)].sum()), int(keep[self.roots(s.outputs)].sum())) for s in self.sites
        )


def _shape(node: fx.Node) -> torch.Size | None:
    return getattr(node.meta.get("tensor_meta"), "shape", None)
