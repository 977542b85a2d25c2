"""The layout of ``compressed-tensors``, which serving engines and transformers read: one linear layer at a time.

Written and read: pack-quantized (integers of 2 to 8 bits, symmetric or not, a scale a row or group), int-quantized
(int8 weights with inputs rounded per token), float-quantized (e4m3), nvfp4- and mxfp4-pack-quantized.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from skerry.core.errors import ModelError
from skerry.quant.activation import TokenDynamic
from skerry.quant.checkpoint_files import ShardReader
from skerry.quant.checkpoint_refusals import why_not_bare
from skerry.quant.formats.float4 import BLOCK, Float4, Float4Tensor
from skerry.quant.formats.float8 import Float8, Float8Tensor, Float8Token
from skerry.quant.numerics import AffineGrid, IntTensor, pack_bits, unpack_bits
from skerry.quant.parts import QuantizedTensor, Solved

__all__ = ["layer_tensors", "pack_words", "quantization_config", "read_layer", "scheme_of", "unpack_words", "why_not"]

_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
LARGEST = 2**40  # entries of a weight; more is a damaged or hostile file


def pack_words(codes: Tensor, bits: int) -> Tensor:
    """Return codes (rows, n) as int32 words (rows, ceil(n * bits / 32)): ``code + 2^(bits-1)``, low bits first.

    Examples
    --------
    >>> [hex(int(w) & 0xFFFFFFFF) for w in pack_words(torch.tensor([[-8, -7, -1, 0, 1, 2, 6, 7]]), 4)[0]]
    ['0xfea98710']
    """
    packed = pack_bits(codes.to(torch.int16) + 2 ** (bits - 1), bits)
    return torch.nn.functional.pad(packed, (0, -packed.shape[1] % 4)).contiguous().view(torch.int32)


def unpack_words(words: Tensor, bits: int, n: int) -> Tensor:
    """Return the int8 codes (rows, n) of :func:`pack_words`.

    Raises
    ------
    ModelError
        If the words are too few or too many.
    """
    if words.dtype != torch.int32 or words.ndim != 2 or words.shape[1] != -(-n * bits // 32):
        raise ModelError(f"packed words of shape {tuple(words.shape)} do not hold rows of {n} codes of {bits} bits")
    packed = words.contiguous().view(torch.uint8)[:, : -(-n * bits // 8)]
    unsigned = unpack_bits(packed, bits, n).to(torch.int16) & (2**bits - 1)
    return (unsigned - 2 ** (bits - 1)).to(torch.int8)


def why_not(solved: Solved, activation: Any, before: tuple[Any, ...] = ()) -> str | None:
    """Return why a layer cannot be written in this layout, or None if it can."""
    weight = solved.weight
    if reason := why_not_bare(solved, before):
        return reason
    if isinstance(weight, IntTensor):
        if weight.grid.axis != 1:
            return "its groups run along the outputs"
        if weight.grid.group_size == 0:
            return "it has one scale for the whole tensor"
        if activation is None or (isinstance(activation, TokenDynamic) and activation.ratio == 1.0):
            return None
        return f"inputs rounded by {type(activation).__name__} are unknown there"
    if isinstance(weight, Float8Tensor):
        return None if activation is None or isinstance(activation, Float8Token) else "its inputs are not FP8"
    if isinstance(weight, Float4Tensor):
        return None if activation is None else "its inputs are rounded"
    return f"{weight.kind} weights are unknown there"


def scheme_of(solved: Solved, activation: Any) -> dict[str, Any]:
    """Return the scheme of a layer for which :func:`why_not` is None: format, weights, input_activations."""
    weight = solved.weight
    if isinstance(weight, IntTensor):
        grid, group = weight.grid, weight.grid.group_size
        weights = {"num_bits": grid.bits, "type": "int", "symmetric": grid.symmetric, "dynamic": False}
        weights |= {"strategy": "channel"} if group == -1 else {"strategy": "group", "group_size": group}
        inputs = None
        if activation is not None:
            inputs = {"num_bits": activation.bits, "type": "int", "symmetric": activation.symmetric}
            inputs |= {"strategy": "token", "dynamic": True}
        form = "int-quantized" if activation is not None and grid.bits == 8 else "pack-quantized"
    elif isinstance(weight, Float8Tensor):
        strategy = "channel" if weight.format.granularity == "row" else "tensor"
        weights = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": strategy, "dynamic": False}
        inputs = None if activation is None else weights | {"strategy": "token", "dynamic": True}
        form = "float-quantized"
    else:
        assert isinstance(weight, Float4Tensor)
        nv = weight.format.scale == "nvfp4"
        weights = {"num_bits": 4, "type": "float", "symmetric": True, "dynamic": False}
        weights |= {"strategy": "tensor_group" if nv else "group", "group_size": BLOCK[weight.format.scale]}
        weights["scale_dtype"] = "torch.float8_e4m3fn" if nv else "torch.uint8"
        inputs, form = None, f"{weight.format.scale}-pack-quantized"
    return {"format": form, "weights": weights, "input_activations": inputs, "output_activations": None}


def layer_tensors(weight: QuantizedTensor, form: str) -> dict[str, Tensor]:
    """Return the tensors of a layer in the format ``form``, to be prefixed by the module's name and a dot."""
    if isinstance(weight, Float8Tensor):
        scale = weight.scale if weight.format.granularity == "row" else weight.scale.reshape(1)
        return {"weight": weight.values, "weight_scale": scale}
    if isinstance(weight, Float4Tensor):
        found = {"weight_packed": weight.packed, "weight_scale": weight.scale}
        return found if weight.global_scale is None else found | {"weight_global_scale": weight.global_scale}
    assert isinstance(weight, IntTensor)
    zero, bits = weight.zero, weight.grid.bits
    if form == "int-quantized":
        found = {"weight": weight.codes, "weight_scale": weight.scale}
        return found if zero is None else found | {"weight_zero_point": zero.to(torch.int8)}
    found = {"weight_packed": pack_words(weight.codes, bits), "weight_scale": weight.scale}
    found["weight_shape"] = torch.tensor(weight.shape, dtype=torch.int64)
    return found if zero is None else found | {"weight_zero_point": pack_words(zero.T, bits).T.contiguous()}


def quantization_config(schemes: Mapping[str, dict[str, Any]], ignore: list[str]) -> dict[str, Any]:
    """Return the ``quantization_config`` of config.json for layers (name to scheme) and layers left in float.

    One scheme for all layers is targeted by "Linear", several by the layers' names.
    """
    groups: list[tuple[dict[str, Any], list[str]]] = []
    for name, scheme in schemes.items():
        for known, names in groups:
            if known == scheme:
                names.append(name)
                break
        else:
            groups.append((scheme, [name]))
    formats = {scheme["format"] for scheme, _ in groups}
    return {
        "quant_method": "compressed-tensors",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{i}": {"targets": ["Linear"] if len(groups) == 1 else names} | scheme
            for i, (scheme, names) in enumerate(groups)
        },
        "ignore": ignore,
        "kv_cache_scheme": None,
    }


def group_for(name: str, config: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Return the scheme of a layer from a ``quantization_config``.

    Raises
    ------
    ModelError
        If there is none, or the configuration has another form.
    """
    groups = config.get("config_groups")
    if not isinstance(groups, dict) or not all(isinstance(g, dict) for g in groups.values()):
        raise ModelError(f"{where}: quantization_config has no 'config_groups'")
    if len(groups) == 1:
        return next(iter(groups.values()))
    by_class = None
    for group in groups.values():
        for target in group.get("targets") or ():
            if target == name or (isinstance(target, str) and name.endswith(f".{target}")):
                return group
            if isinstance(target, str) and target.startswith("re:") and _matches(target[3:], name, where):
                return group
            by_class = group if target == "Linear" else by_class
    if by_class is None:
        raise ModelError(f"{where}: no group of quantization_config targets the layer {name}")
    return by_class


def read_layer(reader: ShardReader, name: str, config: Mapping[str, Any]) -> tuple[Solved, Any]:
    """Return weight and input quantizer of the layer ``name``.

    Raises
    ------
    ModelError
        For an unknown format, or tensors that do not fit it; the message names file and tensor.
    """
    where = str(reader.folder / "config.json")
    group = group_for(name, config, where)
    form, weights = group.get("format") or config.get("format"), group.get("weights")
    if not isinstance(weights, dict):
        raise ModelError(f"{where}: the scheme of {name} says nothing of weights")
    try:
        if form == "pack-quantized":
            weight: QuantizedTensor = _read_packed(reader, name, weights)
        elif form in ("int-quantized", "naive-quantized") and weights.get("type") == "int":
            weight = _read_plain(reader, name, weights)
        elif form in ("float-quantized", "naive-quantized"):
            weight = _read_float8(reader, name)
        elif form in ("nvfp4-pack-quantized", "mxfp4-pack-quantized"):
            weight = _read_float4(reader, name, form[:5])
        else:
            raise ModelError(f"{where}: format {form!r} of {name} is not one that can be read here")
    except (TypeError, KeyError, ValueError, RuntimeError) as error:
        if isinstance(error, ModelError) and str(reader.folder) in str(error):
            raise
        raise ModelError(f"{reader.file_of(f'{name}.weight_scale')}: {name}: {error}") from None
    return Solved(weight), _input(group.get("input_activations"), name, where)


def _input(scheme: Any, name: str, where: str) -> Any:
    if scheme is None:
        return None
    if isinstance(scheme, dict) and scheme.get("strategy") == "token" and scheme.get("dynamic") is True:
        if scheme.get("type") == "float" and scheme.get("num_bits") == 8:
            return Float8Token()
        if scheme.get("type") == "int" and isinstance(scheme.get("num_bits"), int):
            return TokenDynamic(scheme["num_bits"], bool(scheme.get("symmetric", True)))
    raise ModelError(f"{where}: the inputs of {name} are rounded in a way that cannot be read here: {scheme}")


def _grid(weights: Mapping[str, Any], shape: tuple[int, int], scale: Tensor) -> AffineGrid:
    group = weights.get("group_size") if weights.get("strategy") == "group" else -1
    if weights.get("strategy") not in ("group", "channel") or not isinstance(group, int):
        raise ModelError(f"strategy {weights.get('strategy')!r} cannot be read here")
    if scale.dtype not in _DTYPES:
        raise ModelError(f"weight_scale holds {scale.dtype}")
    symmetric = bool(weights.get("symmetric", True))
    bits = weights["num_bits"]
    grid = AffineGrid(bits, symmetric, group, full_range=symmetric, scale_dtype=_DTYPES[scale.dtype])
    groups = 1 if group == -1 else shape[1] // grid.group_of(shape)
    if tuple(scale.shape) != (shape[0], groups):
        raise ModelError(f"weight_scale has shape {tuple(scale.shape)} where {(shape[0], groups)} is needed")
    return grid


def _read_packed(reader: ShardReader, name: str, weights: Mapping[str, Any]) -> IntTensor:
    sizes = reader.get(f"{name}.weight_shape", shape=(2,)).tolist()
    out, inputs = (int(s) for s in sizes)
    bits = int(weights["num_bits"])
    if not (0 < out and 0 < inputs and out * inputs <= LARGEST and 2 <= bits <= 8):
        raise ModelError(f"{reader.file_of(f'{name}.weight_shape')}: {name}.weight_shape says {sizes} of {bits} bits")
    words = reader.get(f"{name}.weight_packed", dtype=torch.int32, shape=(out, -(-inputs * bits // 32)))
    scale = reader.get(f"{name}.weight_scale")
    grid = _grid(weights, (out, inputs), scale)
    zero = None
    if not grid.symmetric:
        packed = reader.get(
            f"{name}.weight_zero_point", dtype=torch.int32, shape=(-(-out * bits // 32), scale.shape[1])
        )
        zero = unpack_words(packed.T.contiguous(), bits, out).T.to(torch.int32).contiguous()
    return IntTensor(grid, unpack_words(words, bits, inputs), scale, zero)


def _read_plain(reader: ShardReader, name: str, weights: Mapping[str, Any]) -> IntTensor:
    codes = reader.get(f"{name}.weight", dtype=torch.int8)
    if codes.ndim != 2:
        raise ModelError(f"{reader.file_of(f'{name}.weight')}: {name}.weight has {codes.ndim} dimensions")
    scale = reader.get(f"{name}.weight_scale")
    grid = _grid(weights, tuple(codes.shape), scale)  # type: ignore[arg-type]
    zero = None
    if not grid.symmetric:
        zero = reader.get(f"{name}.weight_zero_point", shape=tuple(scale.shape)).to(torch.int32)
    return IntTensor(grid, codes, scale, zero)


def _read_float8(reader: ShardReader, name: str) -> Float8Tensor:
    values = reader.get(f"{name}.weight", dtype=torch.float8_e4m3fn)
    scale = reader.get(f"{name}.weight_scale")
    if scale.dtype not in _DTYPES or values.ndim != 2 or scale.numel() not in (1, len(values)):
        raise ModelError(f"{reader.file_of(f'{name}.weight_scale')}: {name}.weight_scale does not fit the weight")
    granularity = "row" if scale.numel() == len(values) else "tensor"
    return Float8Tensor(Float8(granularity, _DTYPES[scale.dtype]), values, scale.reshape(-1, 1))


def _read_float4(reader: ShardReader, name: str, kind: str) -> Float4Tensor:
    packed = reader.get(f"{name}.weight_packed", dtype=torch.uint8)
    if packed.ndim != 2 or 2 * packed.shape[1] % BLOCK[kind]:
        raise ModelError(f"{reader.file_of(f'{name}.weight_packed')}: {name}.weight_packed is no {kind} weight")
    dtype = torch.float8_e4m3fn if kind == "nvfp4" else torch.uint8
    scale = reader.get(f"{name}.weight_scale", dtype=dtype, shape=(len(packed), 2 * packed.shape[1] // BLOCK[kind]))
    overall = None
    if kind == "nvfp4":
        overall = reader.get(f"{name}.weight_global_scale", dtype=torch.float32, shape=(1,))
    return Float4Tensor(Float4(kind), packed, scale, overall)


def _matches(pattern: str, name: str, where: str) -> bool:
    if len(pattern) > 256 or len(re.findall(r"[*+{]", pattern)) > 4:  # a hostile pattern could search for ever
        raise ModelError(f"{where}: the target {pattern[:80]!r} is too intricate a pattern")
    try:
        return re.match(pattern, name) is not None
    except re.error as error:
        raise ModelError(f"{where}: the target {pattern!r} is no pattern ({error})") from None
