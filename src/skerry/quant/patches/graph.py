"""A convolutional network as a list of operators on feature maps, with norms folded and activations fused.

Map 0 is the image and operator ``j`` writes map ``j + 1``. This is what a runtime on a microcontroller executes and
what patch-based inference (MCUNetV2, NeurIPS 2021; QuantMCU, arXiv 2401.13714) cuts into windows.
"""

from __future__ import annotations

import copy
import operator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn import functional

from skerry.core.errors import ModelError

__all__ = ["CnnGraph", "Op", "apply_op", "read_cnn"]

Pair = tuple[int, int]
Clamp = tuple[float, float]
ACTIVATIONS: dict[Any, Clamp] = {
    nn.ReLU: (0.0, float("inf")),
    nn.ReLU6: (0.0, 6.0),
    functional.relu: (0.0, float("inf")),
    functional.relu6: (0.0, 6.0),
    torch.relu: (0.0, float("inf")),
    "relu": (0.0, float("inf")),
}
NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.Flatten)
SPATIAL = frozenset({"conv", "max_pool", "avg_pool", "add", "act"})
KNOWN = "Conv2d, BatchNorm2d, ReLU, ReLU6, MaxPool2d, AvgPool2d, AdaptiveAvgPool2d(1), Linear, additions, flatten"


@dataclass(frozen=True)
class Op:
    """One operator: what it reads, its window, its weights, and the clamp fused into it.

    Attributes
    ----------
    name : str
        The module's dotted name, or the function's.
    kind : {"conv", "max_pool", "avg_pool", "add", "act", "global_pool", "linear"}
    sources : tuple of int
        Maps that it reads.
    shape : tuple of int
        (C, H, W) of the map that it writes.
    kernel, stride, pad, dilation : pair of int
    groups : int
    weight, bias : Tensor or None
    clamp : pair of float or None
        Bounds of a fused ReLU or ReLU6.
    """

    name: str
    kind: str
    sources: tuple[int, ...]
    shape: tuple[int, int, int] = (0, 0, 0)
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    pad: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    weight: Tensor | None = None
    bias: Tensor | None = None
    clamp: Clamp | None = None

    @property
    def macs_per_value(self) -> int:
        """Multiply-accumulates for one value of the output and one operand.

        A pool adds as many values as its kernel holds; an addition rescales each operand once (its two operands lie
        on different integer grids). ``global_pool`` counts in the values that it reads, see :meth:`macs`.
        """
        if self.kind in ("conv", "linear"):
            return int(self.weight[0].numel())
        if self.kind in ("max_pool", "avg_pool"):
            return self.kernel[0] * self.kernel[1]
        return 1


@dataclass(frozen=True)
class CnnGraph:
    """Operators in dataflow order.

    Attributes
    ----------
    ops : tuple of Op
    image_shape : tuple of int
        (C, H, W) of the images that it was read for.
    output_shape : tuple of int
        Of one result, without the batch.
    """

    ops: tuple[Op, ...]
    image_shape: tuple[int, int, int]
    output_shape: tuple[int, ...]

    def shape(self, index: int) -> tuple[int, int, int]:
        """(C, H, W) of a map."""
        return self.ops[index - 1].shape if index else self.image_shape

    def consumers(self, index: int) -> list[int]:
        """Operators that read a map."""
        return [j for j, op in enumerate(self.ops) if index in op.sources]

    def cuts(self) -> list[int]:
        """Maps (but the image) that alone carry everything that later operators read, all before them spatial."""
        found = []
        for n, op in enumerate(self.ops, start=1):
            if op.kind not in SPATIAL:
                break
            if all(source >= n for later in self.ops[n:] for source in later.sources):
                found.append(n)
        return found

    def __call__(self, x: Tensor) -> Tensor:
        """Return the network's result for images (N, C, H, W)."""
        maps = [x]
        for op in self.ops:
            maps.append(apply_op(op, [maps[s] for s in op.sources], op.pad))
        return maps[-1].reshape(len(x), *self.output_shape)


def apply_op(op: Op, inputs: list[Tensor], pad: Pair | tuple[int, int, int, int]) -> Tensor:
    """Return the operator's output for maps (N, C, h, w).

    ``pad`` are rows and columns, or (left, right, top, bottom) where a window sticks out of the map on some sides only;
    padding is 0, and minus infinity for a maximum.
    """
    x = inputs[0]
    if len(pad) == 4:
        if any(pad):
            x = functional.pad(x, pad, value=float("-inf") if op.kind == "max_pool" else 0.0)
        pad = (0, 0)
    if op.kind == "conv":
        y = functional.conv2d(x, op.weight, op.bias, op.stride, pad, op.dilation, op.groups)
    elif op.kind == "linear":
        y = functional.linear(x.flatten(1), op.weight, op.bias)[:, :, None, None]
    elif op.kind == "max_pool":
        y = functional.max_pool2d(x, op.kernel, op.stride, pad, op.dilation)
    elif op.kind == "avg_pool":
        y = functional.avg_pool2d(x, op.kernel, op.stride, pad)
    elif op.kind == "global_pool":
        y = x.mean((2, 3), keepdim=True)
    elif op.kind == "add":
        y = inputs[0] + inputs[1]
    else:
        y = x
    return y if op.clamp is None else y.clamp(*op.clamp)


def read_cnn(model: nn.Module, image_shape: tuple[int, int, int]) -> CnnGraph:
    """Read a network's operators, fold its batch norms and fuse its activations.

    Parameters
    ----------
    model : nn.Module
        A CNN in evaluation form; it is copied, not changed.
    image_shape : tuple of int
        (C, H, W).

    Raises
    ------
    ModelError
        For a network with an operator that is not known, or whose path depends on its input; the operator is named.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU())
    >>> [(op.kind, op.shape, op.clamp) for op in read_cnn(net, (3, 8, 8)).ops]
    [('conv', (4, 4, 4), (0.0, inf))]
    """
    model = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    if not list(model.children()):
        model = nn.Sequential(model)  # a single layer: traced as one operator, not into it
    probe = torch.rand((2, *image_shape), generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            expected = model(probe)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ModelError(
            f"the network does not take images of shape {tuple(image_shape)}: {str(error).splitlines()[0]}"
        ) from None
    if not isinstance(expected, Tensor):
        raise ModelError(f"the network returns {type(expected).__name__}; patch-based inference needs a single tensor")
    try:
        traced = torch.fx.symbolic_trace(model)
    except Exception as error:  # tracing fails in many ways; each means that the path is not fixed
        raise ModelError(
            "the network's operators cannot be listed, because its forward depends on values of its input "
            f"({str(error).splitlines()[0]}); patch-based inference needs a fixed order of operators"
        ) from None
    ops = _Reader(traced).ops
    graph = CnnGraph(_with_shapes(ops, tuple(image_shape)), tuple(image_shape), tuple(expected.shape[1:]))
    with torch.no_grad():
        try:
            error = (graph(probe) - expected).abs().max() / expected.abs().max().clamp(min=1e-6)
        except RuntimeError as failure:
            raise ModelError(f"the network's operators do not fit: {str(failure).splitlines()[0]}") from None
    if not float(error) < 1e-3:
        raise ModelError(
            f"the operators that were read do not compute what the network does (relative error {float(error):.1e}); "
            f"known are {KNOWN}"
        )
    return graph


class _Reader:
    """Turns the nodes of a trace into operators."""

    def __init__(self, traced: torch.fx.GraphModule) -> None:
        self.modules = dict(traced.named_modules())
        self.ops: list[Op] = []
        self.map_of: dict[torch.fx.Node, int] = {}
        for node in traced.graph.nodes:
            if node.op == "placeholder":
                if self.map_of:
                    raise ModelError("the network takes more than one input; patch-based inference needs one image")
                self.map_of[node] = 0
            elif node.op == "output":
                if not isinstance(node.args[0], torch.fx.Node) or self.map_of[node.args[0]] != len(self.ops):
                    raise ModelError("the network's result is not that of its last operator")
            else:
                self._node(node)

    def _source(self, node: torch.fx.Node, n: int = 0) -> int:
        value = node.args[n] if len(node.args) > n else None
        if not isinstance(value, torch.fx.Node) or value not in self.map_of:
            raise ModelError(f"operator {node.name!r} reads something that is no feature map")
        return self.map_of[value]

    def _emit(self, node: torch.fx.Node, op: Op) -> None:
        self.ops.append(op)
        self.map_of[node] = len(self.ops)

    def _own(self, node: torch.fx.Node) -> bool:
        """Whether the operator that wrote the first argument can take a fold: the last one, read only here."""
        source = node.args[0]
        return (
            self._source(node) == len(self.ops) > 0
            and len(source.users) == 1
            and all(self.map_of[n] != len(self.ops) or len(n.users) == 1 for n in self.map_of)
        )

    def _node(self, node: torch.fx.Node) -> None:
        name, target = str(node.target), node.target
        if node.op == "call_module":
            self._module(node, name, self.modules[name])
        elif target in (operator.add, operator.iadd, torch.add, "add", "add_"):
            if len(node.args) != 2 or node.kwargs:
                raise ModelError(f"addition {node.name!r} has a factor or a constant; only sums of two maps are known")
            self._emit(node, Op(node.name, "add", (self._source(node), self._source(node, 1))))
        elif target in ACTIVATIONS:
            self._activation(node, node.name, ACTIVATIONS[target])
        elif target in ("size", getattr, operator.getitem):
            pass  # numbers that only a reshape reads
        elif target in (torch.flatten, "flatten", "contiguous", "view", "reshape", torch.reshape):
            self.map_of[node] = self._source(node)
        elif (target in (torch.mean, "mean") and _over_pixels(node)) or (
            target is functional.adaptive_avg_pool2d and node.args[1:] in ((1,), ((1, 1),))
        ):
            self._emit(node, Op(node.name, "global_pool", (self._source(node),)))
        else:
            raise self._unknown(node.name, getattr(target, "__name__", name))

    @staticmethod
    def _unknown(name: str, what: str) -> ModelError:
        return ModelError(f"operator {name!r} ({what}) cannot be run in patches; known are {KNOWN}")

    def _activation(self, node: torch.fx.Node, name: str, clamp: Clamp) -> None:
        if self._own(node) and self.ops[-1].clamp is None:
            self.ops[-1] = replace(self.ops[-1], clamp=clamp)
            self.map_of[node] = len(self.ops)
        else:
            self._emit(node, Op(name, "act", (self._source(node),), clamp=clamp))

    def _module(self, node: torch.fx.Node, name: str, module: nn.Module) -> None:
        source = self._source(node)
        if type(module) in ACTIVATIONS:
            self._activation(node, name, ACTIVATIONS[type(module)])
        elif isinstance(module, NOTHING):
            self.map_of[node] = source
        elif isinstance(module, nn.Conv2d):
            self._emit(node, _convolution(name, module, source))
        elif isinstance(module, nn.Linear):
            weight = module.weight.detach().clone()
            bias = None if module.bias is None else module.bias.detach().clone()
            self._emit(node, Op(name, "linear", (source,), weight=weight, bias=bias))
        elif isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d)):
            self._norm(node, name, module)
        elif isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)):
            self._emit(node, _pool(name, module, source))
        elif isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1)):
            self._emit(node, Op(name, "global_pool", (source,)))
        else:
            raise self._unknown(name, type(module).__name__)

    def _norm(self, node: torch.fx.Node, name: str, norm: nn.BatchNorm2d | nn.BatchNorm1d) -> None:
        if norm.running_mean is None:
            raise ModelError(f"batch norm {name!r} keeps no running statistics and cannot be folded")
        gain = torch.rsqrt(norm.running_var.double() + norm.eps)
        if norm.affine:
            gain = gain * norm.weight.detach().double()
        shift = -norm.running_mean.double() * gain
        if norm.affine:
            shift = shift + norm.bias.detach().double()
        last = self.ops[-1] if self.ops else None
        if last is not None and last.kind in ("conv", "linear") and last.clamp is None and self._own(node):
            weight = last.weight.double() * gain.reshape(-1, *[1] * (last.weight.ndim - 1))
            bias = shift if last.bias is None else shift + gain * last.bias.double()
            self.ops[-1] = replace(last, weight=weight.float(), bias=bias.float())
            self.map_of[node] = len(self.ops)
        elif isinstance(norm, nn.BatchNorm2d):  # a norm of its own is a depthwise convolution of one pixel
            weight = gain.float().reshape(-1, 1, 1, 1)
            op = Op(name, "conv", (self._source(node),), groups=len(gain), weight=weight, bias=shift.float())
            self._emit(node, op)
        else:
            raise ModelError(f"batch norm {name!r} follows no linear layer that it could be folded into")


def _over_pixels(node: torch.fx.Node) -> bool:
    dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    return isinstance(dims, (list, tuple)) and {d % 4 for d in dims if isinstance(d, int)} == {2, 3}


def _pair(value: int | tuple[int, ...]) -> Pair:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _convolution(name: str, conv: nn.Conv2d, source: int) -> Op:
    if conv.padding_mode != "zeros":
        raise ModelError(f"convolution {name!r} pads by {conv.padding_mode!r}; patches need zero padding")
    kernel, dilation = _pair(conv.kernel_size), _pair(conv.dilation)
    reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    if conv.padding == "valid":
        pad = (0, 0)
    elif conv.padding == "same":
        if any(r % 2 for r in reach):
            raise ModelError(f"convolution {name!r} pads one side more than the other; use an odd kernel")
        pad = (reach[0] // 2, reach[1] // 2)
    else:
        pad = _pair(conv.padding)
    _check_pad(name, pad, reach)
    return Op(
        name,
        "conv",
        (source,),
        kernel=kernel,
        stride=_pair(conv.stride),
        pad=pad,
        dilation=dilation,
        groups=conv.groups,
        weight=conv.weight.detach().clone(),
        bias=None if conv.bias is None else conv.bias.detach().clone(),
    )


def _pool(name: str, pool: nn.MaxPool2d | nn.AvgPool2d, source: int) -> Op:
    if pool.ceil_mode:
        raise ModelError(f"pool {name!r} has ceil_mode; patches need windows that lie in the padded map")
    average = isinstance(pool, nn.AvgPool2d)
    pad, kernel = _pair(pool.padding), _pair(pool.kernel_size)
    if average and ((any(pad) and not pool.count_include_pad) or pool.divisor_override is not None):
        raise ModelError(f"pool {name!r} divides by something else than its kernel; set count_include_pad=True")
    dilation = (1, 1) if average else _pair(pool.dilation)
    _check_pad(name, pad, [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)])
    kind = "avg_pool" if average else "max_pool"
    return Op(name, kind, (source,), kernel=kernel, stride=_pair(pool.stride), pad=pad, dilation=dilation)


def _check_pad(name: str, pad: Pair, reach: list[int]) -> None:
    if any(p > r for p, r in zip(pad, reach, strict=True)):
        raise ModelError(
            f"layer {name!r} pads by {pad}, more than its kernel reaches: some outputs see no image at all"
        )


def _with_shapes(ops: list[Op], image_shape: tuple[int, int, int]) -> tuple[Op, ...]:
    shapes, found = [image_shape], []
    for op in ops:
        channels, height, width = shapes[op.sources[0]]
        if op.kind == "linear":
            shape = (len(op.weight), 1, 1)
        elif op.kind == "global_pool":
            shape = (channels, 1, 1)
        else:
            height, width = (
                (size + 2 * op.pad[a] - op.dilation[a] * (op.kernel[a] - 1) - 1) // op.stride[a] + 1
                for a, size in enumerate((height, width))
            )
            shape = (len(op.weight) if op.kind == "conv" else channels, height, width)
        if op.kind == "add" and shapes[op.sources[1]] != shape:
            raise ModelError(f"addition {op.name!r} joins maps of shapes {shape} and {shapes[op.sources[1]]}")
        shapes.append(shape)
        found.append(replace(op, shape=shape))
    return tuple(found)
