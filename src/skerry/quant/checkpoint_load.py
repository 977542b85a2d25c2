"""Load a quantized model from a folder of someone else; see :mod:`skerry.quant.checkpoint` for the layouts."""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from skerry.core.errors import MissingExtra, ModelError, SkerryError, SkerryWarning
from skerry.quant import checkpoint_compressed as compressed
from skerry.quant import checkpoint_gptq as gptq
from skerry.quant.checkpoint_files import ShardReader, read_json
from skerry.quant.groups import ShiftedNorm
from skerry.quant.linear import BlockRotation, InputAffine, QuantizedLinear
from skerry.quant.parts import LowRank, QuantizedTensor, Solved, SparseColumns, SparseEntries
from skerry.quant.recipe import Recipe, from_plain
from skerry.quant.transforms.rotation import UnitRMSNorm

__all__ = ["BLOCKS", "MAP", "RECIPE", "float_keys", "load", "read_part"]

MAP = "skerry.json"
RECIPE = "skerry-recipe.json"
TENSORS: dict[str, tuple[str, str]] = {  # a kind in a checkpoint is looked up here and nowhere else
    "column_scaled": ("skerry.quant.solvers.column_scaled", "ColumnScaled"),
    "float": ("skerry.quant.parts", "FloatTensor"),
    "float4": ("skerry.quant.formats.float4", "Float4Tensor"),
    "float8": ("skerry.quant.formats.float8", "Float8Tensor"),
    "int": ("skerry.quant.numerics", "IntTensor"),
    "mixed_int8": ("skerry.quant.formats.mixed_decomposition", "MixedInt8Tensor"),
    "outlier_victim": ("skerry.quant.formats.outlier_victim", "VictimTensor"),
    "split": ("skerry.quant.formats.split", "SplitTensor"),
    "tiled": ("skerry.quant.solvers.tiles", "Tiled"),
    "twin_log": ("skerry.quant.formats.twin_log", "TwinLogTensor"),
    "two_level": ("skerry.quant.solvers.two_level", "TwoLevel"),
}
BLOCKS: dict[str, tuple[str, str]] = {  # forms of blocks that an architecture's ``prepare`` makes
    "mamba_block": ("skerry.quant.architectures.mamba_block", "SplitMambaBlock"),
    "vim_block": ("skerry.quant.architectures.vim_block", "SplitVimBlock"),
}
INPUTS = {"affine": InputAffine, "rotation": BlockRotation}


def load(folder: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Read a model that :func:`save`, or another program in the layout of compressed-tensors or GPTQ, wrote.

    Parameters
    ----------
    folder : path
    model : Module, optional
        A float model of the same structure, whose linear layers are replaced in place. Needed unless the folder has
        a ``config.json`` of a class of transformers.

    Returns
    -------
    Module
        In evaluation mode, without gradients; layers compute with their dequantized weights until kernels are set.
        :func:`~skerry.quant.report.recipe_of` tells how it was quantized, if the folder says so.

    Raises
    ------
    DataError
        If the folder is missing.
    ModelError
        For weights in pickles, damaged files, unknown kinds, a configuration that asks for code, tensors that do not
        fit; the message names the file and the tensor.
    """
    folder = Path(folder)
    with ShardReader(folder) as reader:
        config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
        for key in ("auto_map", "trust_remote_code", "custom_pipelines"):
            if config.get(key):
                raise ModelError(
                    f"{folder / 'config.json'}: asks to run code that comes with the model ({key!r}); refused"
                )
        if (folder / MAP).is_file():
            layers, changed, units = _read_map(reader)
        elif isinstance(config.get("quantization_config"), dict):
            layers, changed, units = _read_others(reader, config["quantization_config"]), [], {}
        else:
            raise ModelError(f"{folder}: holds no quantized model (neither {MAP} nor a quantization_config)")
        if model is None:
            model = _skeleton(folder, config)
        if (folder / MAP).is_file():
            _reform(model, read_json(folder / MAP).get("blocks", {}), folder)
        _put(model, layers, changed, units, folder)
        _fill(model, layers, reader)
    model.quantization_recipe = _recipe(folder / RECIPE)  # type: ignore[assignment]
    return model.eval().requires_grad_(False)


def _recipe(path: Path) -> Recipe | None:
    """Return the recipe in the folder; one that cannot be read is told and left out, for the weights are whole."""
    if not path.is_file():
        return None
    try:
        return Recipe.from_json(json.dumps(read_json(path)))
    except (SkerryError, AttributeError, RecursionError) as error:
        warnings.warn(f"{path}: how the model was quantized is not known: {error}", SkerryWarning, stacklevel=3)
        return None


def float_keys(model: nn.Module, layers: Mapping[str, QuantizedLinear]) -> list[str]:
    """Return the names of the model's tensors that belong to no quantized layer."""
    prefixes = tuple(f"{n}." for n in layers)
    return [k for k in model.state_dict() if not k.startswith(prefixes)]


def _read_map(reader: ShardReader) -> tuple[dict[str, QuantizedLinear], list[str], dict[str, float]]:
    path = reader.folder / MAP
    data = read_json(path)
    if data.get("format") != "skerry-v1":
        raise ModelError(f"{path}: format {data.get('format')!r} is unknown; this program reads 'skerry-v1'")
    layers, shifted = data.get("layers"), data.get("shifted_norms", [])
    if not isinstance(layers, dict) or not isinstance(shifted, list):
        raise ModelError(f"{path}: has no 'layers'")
    units = data.get("unit_norms", {})
    if not isinstance(units, dict) or not all(isinstance(eps, float) for eps in units.values()):
        raise ModelError(f"{path}: 'unit_norms' is no mapping of layers to numbers")
    return {n: read_part(reader, n, entry) for n, entry in layers.items()}, [str(n) for n in shifted], units


def read_part(reader: ShardReader, name: str, entry: Mapping[str, Any]) -> QuantizedLinear:
    """Return the layer ``name`` from its entry in the map, checked.

    Raises
    ------
    ModelError
        If it cannot be read; the message names the folder and the layer.
    """
    path = reader.folder / MAP
    try:
        return _build(reader, name, entry)
    except (TypeError, KeyError, ValueError, RuntimeError, IndexError, AttributeError) as error:
        if isinstance(error, SkerryError) and str(reader.folder) in str(error):
            raise
        raise ModelError(f"{path}: the layer {name} cannot be read: {error}") from None


def _build(reader: ShardReader, name: str, entry: Mapping[str, Any]) -> QuantizedLinear:
    def under(prefix: str) -> dict[str, Tensor]:
        start = f"{name}.{prefix}."
        return {k[len(start) :]: reader.get(k) for k in reader.names() if k.startswith(start)}

    meta = entry["weight"]
    if meta.get("kind") not in TENSORS:
        raise ModelError(f"{reader.folder / MAP}: {name} has weights of unknown kind {meta.get('kind')!r}")
    module, kind = TENSORS[meta["kind"]]
    weight: QuantizedTensor = getattr(importlib.import_module(module), kind).from_tensors(meta, under("weight"))
    out, inputs = shape = tuple(meta["shape"])
    if tuple(weight.shape) != shape or tuple(weight.dequantize().shape) != shape:
        raise ModelError(f"{reader.file_of(f'{name}.weight.packed')}: {name} is not of the shape {shape} it promises")
    sparse: SparseEntries | SparseColumns | None = None
    if entry.get("sparse") == "entries":
        rows, columns, values = (reader.get(f"{name}.sparse.{k}") for k in ("rows", "columns", "values"))
        _inside(rows, out, f"{name}.sparse.rows", reader)
        sparse = SparseEntries(rows, columns, values, (out, inputs))
    elif entry.get("sparse") == "columns":
        columns = reader.get(f"{name}.sparse.columns")
        values = reader.get(f"{name}.sparse.values", shape=(out, len(columns)))
        sparse = SparseColumns(columns, values, (out, inputs))
    elif entry.get("sparse") is not None:
        raise ModelError(f"{reader.folder / MAP}: {name} has sparse parts of unknown kind {entry['sparse']!r}")
    if sparse is not None:
        _inside(sparse.columns, inputs, f"{name}.sparse.columns", reader)
    low_rank = None
    if told := entry.get("low_rank"):
        up = reader.get(f"{name}.low_rank.up")
        owner, sharers = (told.get("down", name), told["shared_by"]) if isinstance(told, Mapping) else (name, 1)
        if not (isinstance(owner, str) and isinstance(sharers, int) and sharers >= 1):
            raise ModelError(f"{reader.folder / MAP}: {name} shares its low-rank branch in an unknown way")
        low_rank = LowRank(up, reader.shared(f"{owner}.low_rank.down", shape=(up.shape[-1], inputs)), sharers)
    before = []
    for i, change in enumerate(entry.get("before") or []):
        if change.get("kind") not in INPUTS:
            raise ModelError(
                f"{reader.folder / MAP}: {name} has an input transform of unknown kind {change.get('kind')!r}"
            )
        before.append(INPUTS[change["kind"]].from_tensors(change, under(f"before.{i}")))
    activation = None if entry.get("activation") is None else from_plain(entry["activation"])
    if activation is not None and not hasattr(activation, "fake"):
        raise ModelError(f"{reader.folder / MAP}: {name} has an activation quantizer of unknown kind")
    bias = reader.get(f"{name}.bias", shape=(out,)) if entry.get("bias") else None
    return QuantizedLinear(Solved(weight, sparse=sparse, low_rank=low_rank), activation, bias, tuple(before))


def _inside(index: Tensor, size: int, name: str, reader: ShardReader) -> None:
    if (
        index.ndim != 1
        or index.is_floating_point()
        or (len(index) and not 0 <= int(index.min()) <= int(index.max()) < size)
    ):
        raise ModelError(f"{reader.file_of(name)}: {name} points outside the weight")


def _read_others(reader: ShardReader, config: Mapping[str, Any]) -> dict[str, QuantizedLinear]:
    method = config.get("quant_method")
    if method not in ("compressed-tensors", "gptq"):
        raise ModelError(f"{reader.folder / 'config.json'}: weights quantized by {method!r} cannot be read here")
    mark = ".weight_scale" if method == "compressed-tensors" else ".qweight"
    layers = {}
    for key in reader.names():
        if key.endswith(mark):
            name = key.removesuffix(mark)
            activation, before = None, ()
            if method == "gptq":
                solved, before = gptq.read_layer(reader, name, config)
            else:
                solved, activation = compressed.read_layer(reader, name, config)
            bias = reader.get(f"{name}.bias", shape=(solved.weight.shape[0],)) if f"{name}.bias" in reader else None
            layers[name] = QuantizedLinear(solved, activation, bias, before)
    if not layers:
        raise ModelError(f"{reader.folder}: no layer has a {mark[1:]}; the folder is incomplete")
    return layers


def _skeleton(folder: Path, config: Mapping[str, Any]) -> nn.Module:
    """Build the model that config.json describes, parameters without memory."""
    names = config.get("architectures")
    if not (isinstance(names, list) and len(names) == 1 and isinstance(names[0], str)):
        raise ModelError(f"{folder}: has no config.json that names a model class; give the float model to load into")
    try:
        import transformers
    except ImportError:
        raise MissingExtra("transformers", "deep") from None
    kind = getattr(transformers, names[0], None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise ModelError(f"{folder / 'config.json'}: {names[0]!r} is no model class of transformers")
    plain = {k: v for k, v in config.items() if k not in ("quantization_config", "architectures")}
    try:
        with _parameters_on_meta():
            return kind(kind.config_class.from_dict(plain))
    except SkerryError:
        raise
    except Exception as error:  # whatever a wrong configuration makes a model class raise
        raise ModelError(f"{folder / 'config.json'}: describes no {names[0]} ({error})") from None


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Let parameters made here have no memory; buffers (tables of positions) are made as ever."""
    register = nn.Module.register_parameter

    def on_meta(self: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            parameter = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
        register(self, name, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _reform(model: nn.Module, blocks: Any, folder: Path) -> None:
    """Bring blocks into the form that an architecture's ``prepare`` had given them."""
    try:
        for name, meta in blocks.items():
            if meta.get("kind") not in BLOCKS:
                raise ModelError(f"{folder / MAP}: {name} is a block of unknown kind {meta.get('kind')!r}")
            module, kind = BLOCKS[meta["kind"]]
            form = getattr(importlib.import_module(module), kind)
            model.set_submodule(name, form.from_meta(_submodule(model, name, folder), meta))
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        if isinstance(error, SkerryError) and str(folder) in str(error):
            raise
        raise ModelError(f"{folder / MAP}: the blocks cannot be read: {error}") from None


def _put(
    model: nn.Module,
    layers: Mapping[str, QuantizedLinear],
    shifted: list[str],
    units: Mapping[str, float],
    folder: Path,
) -> None:
    for name, eps in units.items():
        _submodule(model, name, folder)
        model.set_submodule(name, UnitRMSNorm(eps))
    for name in shifted:
        norm = _submodule(model, name, folder)
        width = getattr(norm, "weight", torch.zeros(0))
        model.set_submodule(name, ShiftedNorm(norm, torch.empty_like(width, device="meta")))
    for name, layer in layers.items():
        old = _submodule(model, name, folder)
        there = getattr(old, "weight", None)
        size = layer.solved.weight.shape
        if not isinstance(there, Tensor) or tuple(there.shape) not in (tuple(size), tuple(size)[::-1]):
            raise ModelError(
                f"{folder}: {name} holds {tuple(size)} weights, which the model's {type(old).__name__} has not"
            )
        model.set_submodule(name, layer)


def _submodule(model: nn.Module, name: str, folder: Path) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise ModelError(f"{folder}: has a layer {name} that the model has not") from None


def _fill(model: nn.Module, layers: Mapping[str, QuantizedLinear], reader: ShardReader) -> None:
    state = model.state_dict()
    tensors = {}
    for key in float_keys(model, layers):
        if key in reader:
            tensors[key] = reader.get(key, shape=tuple(state[key].shape))
    model.load_state_dict(tensors, strict=False, assign=True)
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    if hasattr(model, "tie_weights") and not any(key in reader for key in tied):
        model.tie_weights()
    prefixes = tuple(f"{n}." for n in layers)
    if missing := [k for k, t in model.state_dict().items() if t.is_meta and not k.startswith(prefixes)]:
        raise ModelError(f"{reader.folder}: tensor {missing[0]} is missing; the folder is incomplete")
