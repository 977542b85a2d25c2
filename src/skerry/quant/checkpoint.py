"""Save a quantized model so that others load it, and load it back.

``compressed-tensors`` is the layout that transformers and serving engines read, for integer, FP8 and FP4 weights
without extra parts. ``skerry-v1`` holds everything: ``skerry.json`` maps each layer to its parts, the tensors lie in
safetensors shards. ``dense`` means plain 16- or 32-bit weights that any program loads, ``gguf`` one file for llama.cpp
and its kin, ``gptq`` what loaders of AutoGPTQ's folders read. Beside what can be loaded back lies the recipe,
``skerry-recipe.json``. Whatever was written is read back and compared before the folder appears.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from skerry.core.errors import ModelError, ParameterError
from skerry.core.files import atomic_write
from skerry.quant import checkpoint_compressed as compressed
from skerry.quant import checkpoint_gguf as gguf
from skerry.quant import checkpoint_gptq as gptq
from skerry.quant.architectures.base import architecture_of
from skerry.quant.checkpoint_files import ShardReader, ShardWriter, copy_companions, new_folder, read_json
from skerry.quant.checkpoint_load import BLOCKS, MAP, RECIPE, float_keys, load, read_part
from skerry.quant.groups import ShiftedNorm
from skerry.quant.linear import QuantizedLinear
from skerry.quant.parts import Solved, SparseColumns, SparseEntries
from skerry.quant.recipe import Recipe, to_plain
from skerry.quant.report import recipe_of
from skerry.quant.transforms.rotation import UnitRMSNorm

__all__ = ["LAYOUTS", "layout_for", "load", "save"]

LAYOUTS = ("auto", "compressed-tensors", "skerry-v1", "dense", "gguf", "gptq")


def save(
    model: nn.Module,
    folder: str | Path,
    *,
    layout: str = "auto",
    shard_bytes: int = 2**31,
    source: str | Path | None = None,
) -> dict[str, Any]:
    """Write a model with :class:`~skerry.quant.linear.QuantizedLinear` layers to a new folder.

    Parameters
    ----------
    model : Module
        Of transformers, or any other; the latter is loaded into a model of the same structure.
    folder : path
        New or empty.
    layout : {"auto", "compressed-tensors", "skerry-v1", "dense", "gguf", "gptq"}, default "auto"
        "auto" takes compressed-tensors if every layer can be written in it, else skerry-v1. "gguf" writes one file,
        ``model.gguf``, of Llama-like and GPT-2 models with rounded weights and float inputs; "gptq" the tensors of
        AutoGPTQ and GPTQModel, of weights of 2, 3, 4 or 8 bits and float inputs, with one scheme for all layers.
    shard_bytes : int, default 2 GiB
        Largest file; about twice as much memory is needed.
    source : path, optional
        Folder of the float model, whose tokenizer and other small files that programs look for are copied along (a
        GGUF file takes the tokenizer in, if it is byte-level BPE).

    Returns
    -------
    dict
        ``layout``, ``bytes`` of all tensors, ``layers`` (number of quantized ones), ``reason`` (why not
        compressed-tensors, or None), ``copied`` (names of files from ``source``).

    Raises
    ------
    ParameterError
        For an unknown layout.
    ModelError
        If the layout asked for cannot hold the model, or what was read back differs; nothing is written then.
    DataError
        If the folder is in use, or the disk full; nothing is left behind.

    Examples
    --------
    >>> import tempfile
    >>> from skerry.quant.api import quantize
    >>> model = quantize(nn.Sequential(nn.Linear(32, 8)), "rtn", "w8a16")
    >>> folder = Path(tempfile.mkdtemp()) / "out"
    >>> save(model, folder)["layout"]
    'skerry-v1'
    >>> load(folder, nn.Sequential(nn.Linear(32, 8)))[0]
    QuantizedLinear(32, 8, weight 8 bit, input float)
    """
    if layout not in LAYOUTS:
        raise ParameterError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    layers = {n: m for n, m in model.named_modules() if isinstance(m, QuantizedLinear)}
    if not layers:
        raise ModelError("this model has no quantized layer; quantize it first")
    if layout == "dense" and _blocks(model) and (restore := architecture_of(model).restore):
        model = restore(model)
        layers = {n: m for n, m in model.named_modules() if isinstance(m, QuantizedLinear)}
    reason = _not_compressed(model, layers)
    if layout == "auto":
        layout = "skerry-v1" if reason else "compressed-tensors"
    if layout == "compressed-tensors" and reason:
        raise ModelError(f"compressed-tensors cannot hold this model: {reason}; use layout='skerry-v1'")
    if layout == "gptq" and (reason := _not_gptq(model, layers)):
        raise ModelError(f"the GPTQ layout cannot hold this model: {reason}; or use layout='skerry-v1'")
    if layout == "dense" and (reason := _not_dense(model, layers)):
        raise ModelError(f"dense weights cannot hold this model: {reason}; use layout='skerry-v1'")
    if layout == "gguf" and (reason := gguf.why_not_model(model, layers) or _not_dense(model, layers)):
        raise ModelError(f"GGUF cannot hold this model: {reason}; or use layout='dense' or 'skerry-v1'")
    folder, source = Path(folder), None if source is None else Path(source)
    if layout == "gguf":
        with new_folder(folder) as beside:
            total = gguf.write(beside, model, layers, _float_state(model, layers), source)
            gguf.check(beside, model, layers)
        return {"layout": layout, "bytes": total, "layers": len(layers), "reason": None, "copied": []}
    with new_folder(folder) as beside:
        writer = ShardWriter(beside, shard_bytes)
        _write_layers(writer, layers, layout)
        for name, tensor in _float_state(model, layers):
            writer.add(name, tensor)
        writer.finish()
        _write_texts(beside, model, layers, layout)
        copied = [] if source is None else copy_companions(source, beside)
        _check(beside, layers, layout)
    return {"layout": layout, "bytes": writer.total, "layers": len(layers), "reason": reason, "copied": copied}


def layout_for(model: nn.Module) -> tuple[str, str | None]:
    """Return the layout that "auto" stands for, and why it is not compressed-tensors (None if it is).

    Examples
    --------
    >>> from skerry.quant.api import quantize
    >>> layout_for(quantize(nn.Sequential(nn.Linear(32, 8)), "rtn", "w8a16"))
    ('skerry-v1', 'it is no model of transformers')
    """
    reason = _not_compressed(model, {n: m for n, m in model.named_modules() if isinstance(m, QuantizedLinear)})
    return ("skerry-v1" if reason else "compressed-tensors"), reason


def _not_compressed(model: nn.Module, layers: Mapping[str, QuantizedLinear]) -> str | None:
    config = getattr(model, "config", None)
    if not hasattr(config, "to_json_string"):
        return "it is no model of transformers"
    if blocks := _blocks(model):
        return f"{next(iter(blocks))} is not in the form of the original architecture"
    for name, layer in layers.items():
        if reason := compressed.why_not(layer.solved, layer.activation, layer.before):
            return f"{name}: {reason}"
    return _not_dense(model, layers)


def _not_gptq(model: nn.Module, layers: Mapping[str, QuantizedLinear]) -> str | None:
    if not hasattr(getattr(model, "config", None), "to_json_string"):
        return "it is no model of transformers"
    return gptq.why_not_model(layers) or _not_dense(model, layers)


def _not_dense(model: nn.Module, layers: Mapping[str, QuantizedLinear]) -> str | None:
    for name, layer in layers.items():
        if layer.before:
            return f"{name}: its input is transformed at run time"
    config = getattr(model, "config", None)
    if not hasattr(config, "to_json_string"):
        return None
    known = _original(model)
    units = [n for n, m in model.named_modules() if isinstance(m, UnitRMSNorm)]
    for name in units:  # a gain of ones says the same, unless the norm takes the mean away too
        if f"{name}.bias" in known or f"{name}.weight" not in known:
            return f"{name} is no longer the norm of the original architecture"
    extra = [k for k in float_keys(model, layers) if k not in known]
    extra += [f"{n}.bias" for n, m in layers.items() if m.bias is not None and f"{n}.bias" not in known]
    return f"{extra[0]} is not part of the original architecture" if extra else None


def _original(model: nn.Module) -> dict[str, Tensor]:
    """Return the state of a new model of this class, without memory; {} for a model that is not of transformers."""
    config = getattr(model, "config", None)
    if not hasattr(config, "to_json_string"):
        return {}
    with torch.device("meta"):
        return type(model)(config).state_dict()


def _write_layers(writer: ShardWriter, layers: Mapping[str, QuantizedLinear], layout: str) -> None:
    owners = _owners(layers) if layout == "skerry-v1" else {}
    shared = _gptq_form(layers) if layout == "gptq" else None
    for name, layer in layers.items():
        solved = layer.solved  # once: a layer with a kernel unpacks it here
        if layout == "dense":
            tensors = {"weight": _dense(solved, layer)}
        elif layout == "compressed-tensors":
            form = compressed.scheme_of(solved, layer.activation)["format"]
            tensors = compressed.layer_tensors(solved.weight, form)
        elif shared is not None:
            tensors = gptq.layer_tensors(solved.weight, shared)
        else:
            tensors = _parts(solved, layer)
            if owners.get(name, name) != name:
                del tensors["low_rank.down"]
        for key, tensor in tensors.items():
            writer.add(f"{name}.{key}", tensor)
        if layer.bias is not None:
            writer.add(f"{name}.bias", layer.bias)


def _gptq_form(layers: Mapping[str, QuantizedLinear]) -> gptq.GPTQForm:
    return gptq.GPTQForm.of(layer.solved.weight for layer in layers.values())


def _owners(layers: Mapping[str, QuantizedLinear]) -> dict[str, str]:
    """Return, for every layer whose branch shares its first half, the first layer with the same one."""
    found: dict[str, str] = {}
    waiting: dict[str, tuple[Tensor, int]] = {}  # owners that not all sharers have met: their half, how many may come
    for name, layer in layers.items():
        branch = layer.solved.low_rank
        if branch is None or branch.shared_by == 1:
            continue
        found[name] = owner = next((n for n, (down, _) in waiting.items() if _same(branch.down, down)), name)
        left = waiting.pop(owner, (branch.down, branch.shared_by))[1] - 1
        if left:
            waiting[owner] = branch.down, left
    return found


def _dense(solved: Solved, layer: QuantizedLinear) -> Tensor:
    total = solved.dense()
    return total if layer.bias is None else total.to(layer.bias.dtype)


def _parts(solved: Solved, layer: QuantizedLinear) -> dict[str, Tensor]:
    found = {f"weight.{k}": t for k, t in solved.weight.tensors().items()}
    sparse, low_rank = solved.sparse, solved.low_rank
    if isinstance(sparse, SparseEntries):
        found |= {"sparse.rows": sparse.rows, "sparse.columns": sparse.columns, "sparse.values": sparse.values}
    elif isinstance(sparse, SparseColumns):
        found |= {"sparse.columns": sparse.columns, "sparse.values": sparse.values}
    if low_rank is not None:
        found |= {"low_rank.up": low_rank.up, "low_rank.down": low_rank.down}
    for i, change in enumerate(layer.before):
        found |= {f"before.{i}.{k}": t for k, t in change.tensors().items()}
    return found


def _float_state(model: nn.Module, layers: Mapping[str, QuantizedLinear]) -> Iterator[tuple[str, Tensor]]:
    """Yield everything that is not quantized; of tensors that the model's class ties, the first."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    state, seen = model.state_dict(), set()
    for key in float_keys(model, layers):
        tensor = state[key]
        place = (tensor.data_ptr(), tensor.shape)
        if key in tied and place in seen:
            continue
        seen.add(place)
        yield key, tensor
    known = _original(model) if any(isinstance(m, UnitRMSNorm) for m in model.modules()) else {}
    for name, module in model.named_modules():
        if isinstance(module, UnitRMSNorm) and f"{name}.weight" in known and f"{name}.bias" not in known:
            yield f"{name}.weight", torch.ones_like(known[f"{name}.weight"], device="cpu")


def _write_texts(folder: Path, model: nn.Module, layers: Mapping[str, QuantizedLinear], layout: str) -> None:
    config = getattr(model, "config", None)
    if hasattr(config, "to_json_string"):
        data = json.loads(config.to_json_string())
        data["architectures"] = [type(model).__name__]
        data.pop("quantization_config", None)
        if _untied(model):
            data["tie_word_embeddings"] = False
        if layout == "compressed-tensors":
            schemes = {n: compressed.scheme_of(m.solved, m.activation) for n, m in layers.items()}
            ignore = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
            data["quantization_config"] = compressed.quantization_config(schemes, ignore)
        elif layout == "gptq":  # in both places: programs differ in where they look
            data["quantization_config"] = gptq.quantization_config(model, _gptq_form(layers))
            _write_json(folder / "quantize_config.json", data["quantization_config"])
        _write_json(folder / "config.json", data)
    if layout != "dense" and (recipe := recipe_of(model)) is not None and _can_be_read(recipe):
        with atomic_write(folder / RECIPE) as file:
            file.write((recipe.to_json() + "\n").encode())
    if layout == "skerry-v1":
        shifted = [n for n, m in model.named_modules() if isinstance(m, ShiftedNorm)]
        units = {n: m.eps for n, m in model.named_modules() if isinstance(m, UnitRMSNorm)}
        described = {n: _describe(m) for n, m in layers.items()}
        for name, owner in _owners(layers).items():
            described[name]["low_rank"]["down"] = owner
        data = {"format": "skerry-v1", "layers": described, "shifted_norms": shifted, "unit_norms": units}
        if blocks := _blocks(model):
            data["blocks"] = {n: m.meta() for n, m in blocks.items()}
        _write_json(folder / MAP, data)


def _can_be_read(recipe: Recipe) -> bool:
    """Return whether the recipe comes back from its text: one with parts of the caller's own does not."""
    try:
        return Recipe.from_json(recipe.to_json()) == recipe
    except (ModelError, TypeError):
        return False


def _blocks(model: nn.Module) -> dict[str, Any]:
    """Return the blocks that an architecture's ``prepare`` gave another form."""
    return {n: m for n, m in model.named_modules() if str(getattr(m, "kind", "")) in BLOCKS}


def _untied(model: nn.Module) -> bool:
    """Return whether a transform gave tensors that the model's class ties values of their own."""
    tied, state = getattr(model, "all_tied_weights_keys", None) or {}, model.state_dict()
    return any(a in state and b in state and state[a].data_ptr() != state[b].data_ptr() for a, b in tied.items())


def _write_json(path: Path, data: Any) -> None:
    with atomic_write(path) as file:
        file.write((json.dumps(data, indent=1) + "\n").encode())


def _describe(layer: QuantizedLinear) -> dict[str, Any]:
    solved = layer.solved
    sparse, branch = solved.sparse, solved.low_rank
    shared = branch is not None and branch.shared_by > 1
    return {
        "weight": solved.weight.meta(),
        "sparse": None if sparse is None else sparse.kind,
        "low_rank": {"shared_by": branch.shared_by} if shared else branch is not None,  # type: ignore[union-attr]
        "before": [change.meta() for change in layer.before],
        "activation": None if layer.activation is None else to_plain(layer.activation),
        "bias": layer.bias is not None,
    }


def _check(folder: Path, layers: Mapping[str, QuantizedLinear], layout: str) -> None:
    """Read every quantized layer back and compare it bit by bit."""
    with ShardReader(folder) as reader:
        if layout == "dense":
            return
        found = None
        if layout == "skerry-v1":
            found = read_json(folder / MAP)["layers"]
        else:
            config = read_json(folder / "config.json")["quantization_config"]
        shared = _gptq_form(layers) if layout == "gptq" else None
        for name, layer in layers.items():
            solved = layer.solved
            if shared is not None:
                back = gptq.read_layer(reader, name, config)[0].weight
                ours, theirs = (gptq.layer_tensors(w, shared) for w in (solved.weight, back))
            elif found is None:
                back = compressed.read_layer(reader, name, config)[0].weight
                form = compressed.scheme_of(solved, layer.activation)["format"]
                ours, theirs = (compressed.layer_tensors(w, form) for w in (solved.weight, back))
            else:
                other = read_part(reader, name, found[name])
                ours, theirs = _parts(solved, layer), _parts(other.solved, other)
            for key, tensor in ours.items():
                if not _same(tensor, theirs.get(key)):
                    raise ModelError(f"{reader.file_of(f'{name}.{key}')}: {name}.{key} did not survive writing")


def _same(a: Tensor, b: Tensor | None) -> bool:
    if b is None or a.dtype != b.dtype or a.shape != b.shape:
        return False
    a, b = (t.detach().cpu().reshape(-1).contiguous().view(torch.uint8) for t in (a, b))
    return torch.equal(a, b)
