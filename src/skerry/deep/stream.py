"""The residual stream of a transformer: its blocks, the norms that read it, and what its attention layers compute.

Works on any network built as a list of blocks, those of ``transformers`` among them; nothing is changed but for the
time of a ``with`` block.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from skerry.core.errors import ModelError

__all__ = ["attention_layers", "call", "first_tensor", "stream_blocks", "stream_norms", "watch_attention"]

_NORM = re.compile(r"(Norm|DyT)\d*d?$")
_FUSED = ("c_attn", "qkv")  # query, key and value in one layer
_QUERY_KEY = re.compile(r"(^|\.)(q|k|query|key)_(norm|layernorm|layer_norm|ln)$")


def stream_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Return the blocks of a transformer, name to module: the members of its longest list of modules with norms.

    Raises
    ------
    ModelError
        If there is no such list: give the blocks to :class:`SinkProbe` then.
    """
    lists = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList | nn.Sequential)]
    lists = [(n, m) for n, m in lists if len(m) and all(any(_is_norm(x) for x in b.modules()) for b in m)]
    if not lists:
        raise ModelError(f"{type(model).__name__}: no list of blocks with norms was found; name the blocks yourself")
    name, found = max(lists, key=lambda item: len(item[1]))
    return {f"{name}.{i}" if name else str(i): block for i, block in enumerate(found)}


def stream_norms(model: nn.Module) -> dict[str, nn.Module]:
    """Return the norms that read the residual stream, outermost only; norms of queries and keys are left out."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if _is_norm(module) and not _QUERY_KEY.search(name) and not any(name.startswith(f"{n}.") for n in found):
            found[name] = module
    return found


def attention_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the attention modules: those with a value (or a fused query-key-value) projection as a direct child."""
    return {name: m for name, m in model.named_modules() if _value_projection(m) is not None}


def _is_norm(module: nn.Module) -> bool:
    return bool(_NORM.search(type(module).__name__)) and not isinstance(module, nn.modules.batchnorm._BatchNorm)


def _value_projection(module: nn.Module) -> nn.Module | None:
    children = dict(module.named_children())
    return next((children[n] for n in ("v_proj", "value", "v", *_FUSED) if n in children), None)


def call(model: nn.Module, batch: Any) -> Any:
    """Return ``model(batch)``, ``model(**batch)`` for a mapping or ``model(*batch)`` for a tuple."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple | list) else model(batch)


def first_tensor(output: Any) -> Tensor:
    """Return the tensor of a module's output, the first of a tuple."""
    return output[0] if isinstance(output, tuple | list) else output


@contextmanager
def watch_attention(model: nn.Module, see: Callable[[str, Tensor, Tensor | None], None]) -> Iterator[None]:
    """Call ``see(name, probabilities (B, H, T, T), values (B, T, c))`` for every attention layer that runs.

    Layers that compute probabilities only inside a fused kernel are made explicit for the time of the block.
    """
    handles, explicit, values, weights = [], [], {}, {}

    def keep(store: dict[str, Tensor], name: str, fused: bool = False) -> Callable:
        return lambda module, inputs, output: store.__setitem__(name, output.chunk(3, -1)[2] if fused else output)

    def done(name: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple, output: Any) -> None:
            found = weights.pop(name, None)
            if found is None and isinstance(output, tuple) and len(output) > 1:
                found = next((t for t in output[1:] if isinstance(t, Tensor) and t.dim() == 4), None)
            v = values.pop(name, None)
            if found is not None:
                see(name, found, v)

        return hook

    setter = getattr(model, "set_attn_implementation", None)
    before = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if setter is not None and before not in (None, "eager"):
        setter("eager")
    for name, module in attention_layers(model).items():
        fused = any(hasattr(module, n) for n in _FUSED)
        handles.append(_value_projection(module).register_forward_hook(keep(values, name, fused)))
        if hasattr(module, "explicit") and isinstance(getattr(module, "softmax", None), nn.Module):
            explicit.append((module, module.explicit))
            module.explicit = True
            handles.append(module.softmax.register_forward_hook(keep(weights, name)))
        handles.append(module.register_forward_hook(done(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, old in explicit:
            module.explicit = old
        if setter is not None and before not in (None, "eager"):
            setter(before)
