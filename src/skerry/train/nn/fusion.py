"""Merge trained UnifiedNorms into the linear layers that read them: at inference nothing of the norm is left.

Yang et al., "Unified Normalization", ACM MM 2022 (arXiv 2208.01313). In ``eval()`` the norm is ``a * x + b`` with
constant vectors, and ``W (a * x + b) + c = (W diag(a)) x + (W b + c)``. Who reads a norm is traced on one example,
declared by the blocks, or given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from skerry.core.errors import ModelError, ParameterError
from skerry.train.nn.replace import set_module
from skerry.train.nn.unified_norm import UnifiedNorm

__all__ = ["FixedScale", "FusionReport", "fuse_unified_norm"]

# what keeps every channel in its place, so that the affine map may be applied afterwards
_PASS = frozenset("__getitem__ reshape view contiguous to float type_as dropout flatten unflatten clone".split())


class FixedScale(nn.Module):
    """``scale * x + shift``: what is left of a UnifiedNorm whose readers cannot take it in, such as a residual sum.

    Parameters
    ----------
    scale, shift : Tensor of shape (dim,)

    Examples
    --------
    >>> import torch
    >>> FixedScale(torch.tensor([2.0]), torch.tensor([1.0]))(torch.tensor([[3.0]]))
    tensor([[7.]])
    """

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale.detach().clone())
        self.register_buffer("shift", shift.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return the map of ``x`` (..., dim), in its dtype."""
        if x.dtype == self.scale.dtype:
            return torch.addcmul(self.shift, x, self.scale)
        return (x * self.scale + self.shift).to(x.dtype)


@dataclass(frozen=True)
class FusionReport:
    """What became of each UnifiedNorm.

    Attributes
    ----------
    fused : dict of str to tuple of str
        Norms that are gone, and the modules that took them in.
    kept : dict of str to str
        Norms that became a :class:`FixedScale`, and why.
    untied : tuple of str
        Readers whose weight was shared with another module and now is their own.
    error : float or None
        Largest difference on the example, relative to the largest output; None without an example.
    """

    fused: dict[str, tuple[str, ...]] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    untied: tuple[str, ...] = ()
    error: float | None = None

    def __str__(self) -> str:
        lines = [f"{name} -> {', '.join(readers)}" for name, readers in self.fused.items()]
        lines += [f"{name}: kept as a fixed scale ({why})" for name, why in self.kept.items()]
        lines += [f"{name}: no longer tied" for name in self.untied]
        return "\n".join(lines)


def _foldable(module: nn.Module) -> bool:
    if isinstance(module, nn.MultiheadAttention):
        return module._qkv_same_embed_dim and module.bias_k is None
    return isinstance(module, nn.Linear) or hasattr(module, "fold_input_affine_")


class _Trace(TorchFunctionMode):
    """Follow the outputs of the norms through one forward pass and note who reads them."""

    def __init__(self, model: nn.Module, norms: Mapping[str, UnifiedNorm]) -> None:
        super().__init__()
        self.readers: dict[str, list[str]] = {name: [] for name in norms}
        self.others: dict[str, list[str]] = {name: [] for name in norms}  # reads that cannot be folded
        self.sources: dict[str, set[str | None]] = {}  # of each reader: the norms it reads, None for anything else
        self.called: set[str] = set()
        self._from: dict[int, tuple[Tensor, str]] = {}  # the tensors are held, so that no id is used twice
        self._depth = 0
        self._handles: list[Any] = []
        for name, norm in norms.items():
            self._handles.append(norm.register_forward_pre_hook(self._enter_norm))
            self._handles.append(norm.register_forward_hook(self._leave_norm(name)))
        inside: tuple[str, ...] = ()
        for name, module in model.named_modules():
            if name and not name.startswith(inside) and _foldable(module):
                inside += (name + ".",)
                self._handles.append(module.register_forward_pre_hook(self._enter_reader(name), with_kwargs=True))
                self._handles.append(module.register_forward_hook(self._leave_reader))

    def source(self, value: Any) -> str | None:
        return self._from.get(id(value), (None, None))[1]

    def _enter_norm(self, module: nn.Module, inputs: tuple) -> None:
        for value in inputs:
            if (name := self.source(value)) is not None:
                self.others[name].append("another norm")
        self._depth += 1

    def _leave_norm(self, name: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            self._depth -= 1
            self.called.add(name)
            self._from[id(output)] = (output, name)

        return hook

    def _enter_reader(self, name: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple, kwargs: dict[str, Any]) -> None:
            if isinstance(module, nn.MultiheadAttention):
                named = dict(zip(("query", "key", "value"), inputs, strict=False)) | kwargs
                read = {self.source(named[key]) for key in ("query", "key", "value")}
            else:
                first = inputs[0] if inputs else next(iter(kwargs.values()))
                read = {self.source(first)}
            self.sources.setdefault(name, set()).update(read)
            for norm in read - {None}:
                if name not in self.readers[norm]:
                    self.readers[norm].append(name)
            self._depth += 1

        return hook

    def _leave_reader(self, module: nn.Module, inputs: tuple, output: Any) -> None:
        self._depth -= 1

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self._depth == 0 and any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):
            name = getattr(func, "__name__", str(func))
            for value in tree_leaves((args, kwargs or {})):
                norm = self.source(value) if isinstance(value, Tensor) else None
                if norm is None:
                    continue
                if name in _PASS and isinstance(result, Tensor) and result.shape[-1:] == value.shape[-1:]:
                    self._from[id(result)] = (result, norm)
                else:
                    self.others[norm].append(name)
        return result

    def run(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        try:
            with self:
                output = model(*args, **kwargs)
        finally:
            for handle in self._handles:
                handle.remove()
        for leaf in tree_leaves(output):
            if (name := self.source(leaf)) is not None:
                self.others[name].append("the outputs of the model")
        return output

    def consumers(self) -> tuple[dict[str, list[str]], dict[str, str]]:
        """Return the readers of each norm that can be fused, and for the others the reason why not."""
        fusable, kept = {}, {}
        for norm, readers in self.readers.items():
            mixed = [r for r in readers if self.sources[r] != {norm}]
            if norm not in self.called:
                kept[norm] = "not run by the example"
            elif self.others[norm]:
                kept[norm] = "also read by " + ", ".join(dict.fromkeys(self.others[norm]))
            elif mixed:
                kept[norm] = f"{', '.join(mixed)} also reads something else"
            elif not readers:
                kept[norm] = "read by no linear layer"
            else:
                fusable[norm] = readers
        return fusable, kept


class _Undo:
    """Remembers what was replaced, so that a fusion that fails its check leaves the model as it was."""

    def __init__(self) -> None:
        self._old: list[tuple[nn.Module, dict[str, Any], dict[str, Any]]] = []

    def remember(self, module: nn.Module) -> None:
        for part in module.modules():
            self._old.append((part, dict(part._parameters), dict(part._modules)))

    def undo(self) -> None:
        for part, parameters, modules in reversed(self._old):
            part._parameters.update(parameters)
            part._modules.update(modules)


def _fold(module: nn.Module, scale: Tensor, shift: Tensor) -> None:
    """Let ``module`` read z where it read ``scale * z + shift`` (float64); its parameters are replaced, not written."""
    if not isinstance(module, nn.Linear | nn.MultiheadAttention):
        for part in module.modules():  # own copies: the old ones must survive for the way back
            for key, parameter in list(part._parameters.items()):
                if parameter is not None:
                    part._parameters[key] = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
        dtype = next((p.dtype for p in module.parameters()), torch.float32)
        module.fold_input_affine_(scale.to(dtype), shift.to(dtype))
        return
    names = ("weight", "bias") if isinstance(module, nn.Linear) else ("in_proj_weight", "in_proj_bias")
    weight, bias = (getattr(module, name) for name in names)
    moved = weight.detach().double() @ shift
    setattr(module, names[0], nn.Parameter((weight.detach().double() * scale).to(weight.dtype), weight.requires_grad))
    if bias is not None or moved.any():
        new = (moved if bias is None else bias.detach().double() + moved).to(weight.dtype)
        setattr(module, names[1], nn.Parameter(new, weight.requires_grad))


def _declared(model: nn.Module) -> dict[str, list[str]]:
    """Return what the blocks say: ``block.norm_consumers()`` maps names of norms to names of readers."""
    found = {}
    for name, module in model.named_modules():
        if hasattr(module, "norm_consumers"):
            dot = name + "." if name else ""
            for norm, readers in module.norm_consumers().items():
                found[dot + norm] = [dot + reader for reader in readers]
    return found


def _call(example: Any) -> tuple[tuple, dict[str, Any]]:
    if isinstance(example, Mapping):
        return (), dict(example)
    return (tuple(example) if isinstance(example, list | tuple) else (example,)), {}


def _difference(before: Any, after: Any) -> float:
    worst = 0.0
    for a, b in zip(tree_leaves(before), tree_leaves(after), strict=True):
        if isinstance(a, Tensor) and a.is_floating_point() and a.numel():
            top = a.abs().max().item()
            gap = (a - b).abs().max().item()
            worst = max(worst, gap / top if top else gap)
    return worst


@torch.no_grad()
def fuse_unified_norm(
    model: nn.Module,
    example: Any = None,
    consumers: Mapping[str, str | Sequence[str]] | None = None,
    *,
    tolerance: float = 1e-3,
) -> FusionReport:
    """Merge every :class:`UnifiedNorm` of a trained model into its readers, in place.

    A norm whose readers are linear layers (``nn.Linear``, ``nn.MultiheadAttention``, gates of this package and any
    module with ``fold_input_affine_(scale, shift)``) disappears; ``nn.Identity`` stands in its place. One that is also
    read by something else, such as the residual sum of a post-norm block, becomes a :class:`FixedScale`: one
    multiplication per channel, no reduction.

    Parameters
    ----------
    model : Module
        In ``eval()``. To keep the original, give a ``copy.deepcopy``.
    example : Tensor or tuple or mapping, optional
        Inputs of one call, positional or named. With them the readers are traced, and the outputs compared before and
        after.
    consumers : mapping of str to str or sequence of str, optional
        Readers of each norm, when you know better than the trace. Without both, what the blocks declare is used:
        ``block.norm_consumers()`` returns such a mapping of names inside the block.
    tolerance : float, default 1e-3
        Largest allowed difference on the example, relative to the largest output.

    Returns
    -------
    FusionReport

    Raises
    ------
    ModelError
        If there is no UnifiedNorm, the model is in training mode, nobody knows the readers, a named reader cannot be
        folded, or the outputs differ; the model is then as it was.

    Examples
    --------
    >>> import torch
    >>> from skerry.train.nn import UnifiedNorm
    >>> net = torch.nn.Sequential(UnifiedNorm(4), torch.nn.Linear(4, 2)).eval()
    >>> print(fuse_unified_norm(net, torch.randn(3, 4)))
    0 -> 1
    >>> net[0]
    Identity()
    """
    norms = {n: m for n, m in model.named_modules() if isinstance(m, UnifiedNorm)}
    if not norms or "" in norms:
        raise ModelError(f"no UnifiedNorm inside {type(model).__name__}: nothing to fuse")
    if model.training or any(norm.training for norm in norms.values()):
        raise ModelError("the statistics still move: call model.eval() before the norms are fused")
    if tolerance <= 0:
        raise ParameterError(f"tolerance is {tolerance}: give a positive number")
    args, kwargs = _call(example)
    kept: dict[str, str] = {}
    before = None
    if consumers is None and example is not None:
        trace = _Trace(model, norms)
        before = trace.run(model, args, kwargs)
        readers, kept = trace.consumers()
    else:
        given = _declared(model) if consumers is None else consumers
        if not given:
            raise ModelError("nobody knows who reads the norms: give example inputs, or the consumers of each norm")
        readers = {norm: [names] if isinstance(names, str) else list(names) for norm, names in given.items()}
        kept = {norm: "no readers were given" for norm in norms if not readers.get(norm)}
        if example is not None:
            before = model(*args, **kwargs)
    _check(model, norms, readers)
    report = _fuse(model, norms, readers, kept)
    if before is None:
        return report[0]
    error = _difference(before, model(*args, **kwargs))
    if not error <= tolerance:
        report[1].undo()
        raise ModelError(
            f"the fused model differs by {error:.1e} of its largest output, more than {tolerance:.0e}: "
            "some norm is read in a way that was not seen; name the consumers of each norm yourself"
        )
    first = report[0]
    return FusionReport(first.fused, first.kept, first.untied, error)


def _check(model: nn.Module, norms: Mapping[str, UnifiedNorm], readers: Mapping[str, Sequence[str]]) -> None:
    """Refuse names that are no norm or cannot take one in, before anything is changed."""
    modules = dict(model.named_modules(remove_duplicate=False))
    owners: dict[int, str] = {}
    for norm, names in readers.items():
        if norm not in norms:
            raise ModelError(f"{norm!r} is no UnifiedNorm of the model: they are {', '.join(norms)}")
        for name in names:
            module = modules.get(name)
            if module is None or not _foldable(module):
                kind = "no module of the model" if module is None else f"a {type(module).__name__}"
                raise ModelError(f"{name!r} cannot take in {norm!r}: it is {kind}, not a linear layer")
            if id(module) in owners:
                raise ModelError(f"{name!r} reads both {owners[id(module)]!r} and {norm!r}: neither can be fused")
            owners[id(module)] = norm
            width = module.in_features if isinstance(module, nn.Linear) else norms[norm].dim
            if width != norms[norm].dim:
                raise ModelError(f"{name!r} reads {width} channels, {norm!r} has {norms[norm].dim}")


def _fuse(
    model: nn.Module,
    norms: Mapping[str, UnifiedNorm],
    readers: Mapping[str, Iterable[str]],
    kept: Mapping[str, str],
) -> tuple[FusionReport, _Undo]:
    undo = _Undo()
    undo.remember(model)
    holders: dict[int, set[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            holders.setdefault(id(parameter), set()).add(name)
    untied = []
    for norm, names in readers.items():
        if norm in kept:
            continue
        scale = norms[norm].weight.double() * torch.rsqrt(norms[norm].running_var.double() + norms[norm].eps)
        for name in names:
            module = model.get_submodule(name)
            if any(len(holders[id(p)]) > 1 for p in module.parameters()):
                untied.append(name)
            _fold(module, scale, norms[norm].bias.double())
        _replace(model, norms[norm], nn.Identity())
    for norm in kept:
        _replace(model, norms[norm], FixedScale(*norms[norm].inference_scale()))
    fused = {norm: tuple(names) for norm, names in readers.items() if norm not in kept}
    return FusionReport(fused, dict(kept), tuple(untied)), undo


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Replace a module at all the places where it stands."""
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module is old:
            set_module(model, name, new)
