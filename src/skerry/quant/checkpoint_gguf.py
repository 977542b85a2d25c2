"""A model as one GGUF file, which llama.cpp and its kin read: integer weights go into its blocks code by code.

Symmetric weights of up to 4 bits become Q4_0, wider ones Q8_0, asymmetric ones of up to 4 bits Q4_1. A scale that more
than 32 inputs share is written once for each block, so groups of 128 and whole rows fit without rounding again. Scales
become float16; everything that is not quantized keeps its dtype, vectors are float32.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skerry.core.errors import ModelError
from skerry.core.files import atomic_write
from skerry.quant.checkpoint_refusals import why_not_integers
from skerry.quant.gguf_file import BLOCK, GGUFTensor, decode, encode, read_gguf, write_gguf
from skerry.quant.linear import QuantizedLinear
from skerry.quant.parts import Solved

__all__ = ["FILE", "check", "why_not", "why_not_model", "write"]

FILE = "model.gguf"
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gpt2": "gpt2"}
FILE_TYPES = {"Q4_0": 2, "Q4_1": 3, "Q8_0": 7}  # of general.file_type: what most tensors are
NAMES = [  # of transformers' modules: theirs
    (r"model\.embed_tokens|transformer\.wte", "token_embd"),
    (r"transformer\.wpe", "position_embd"),
    (r"model\.norm|transformer\.ln_f", "output_norm"),
    (r"lm_head", "output"),
    (r"model\.layers\.(\d+)\.input_layernorm|transformer\.h\.(\d+)\.ln_1", "blk.{}.attn_norm"),
    (r"model\.layers\.(\d+)\.post_attention_layernorm|transformer\.h\.(\d+)\.ln_2", "blk.{}.ffn_norm"),
    (r"model\.layers\.(\d+)\.self_attn\.([qkv])_proj", "blk.{}.attn_{}"),
    (r"model\.layers\.(\d+)\.self_attn\.([qk])_norm", "blk.{}.attn_{}_norm"),
    (r"model\.layers\.(\d+)\.self_attn\.o_proj|transformer\.h\.(\d+)\.attn\.c_proj", "blk.{}.attn_output"),
    (r"model\.layers\.(\d+)\.mlp\.(gate|up|down)_proj", "blk.{}.ffn_{}"),
    (r"transformer\.h\.(\d+)\.attn\.c_attn", "blk.{}.attn_qkv"),
    (r"transformer\.h\.(\d+)\.mlp\.c_fc", "blk.{}.ffn_up"),
    (r"transformer\.h\.(\d+)\.mlp\.c_proj", "blk.{}.ffn_down"),
]


def why_not_model(model: nn.Module, layers: Mapping[str, QuantizedLinear]) -> str | None:
    """Return why a model cannot be written as GGUF, or None if it can."""
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", type(model).__name__)
    if kind not in ARCHITECTURES or not type(model).__name__.endswith(("ForCausalLM", "LMHeadModel")):
        return f"GGUF files are written of {', '.join(ARCHITECTURES)} language models, not of {type(model).__name__}"
    if (rope := _rope(config).get("rope_type", "default")) != "default":
        return f"positions scaled by {rope!r} are not written"
    for name, layer in layers.items():
        if reason := why_not(layer.solved, layer.activation, layer.before):
            return f"{name}: {reason}"
    return None


def why_not(solved: Solved, activation: Any, before: tuple[Any, ...] = ()) -> str | None:
    """Return why a layer cannot be written as GGUF, or None if it can."""
    if reason := why_not_integers(solved, activation, before, "GGUF"):
        return reason
    weight: Any = solved.weight
    grid = weight.grid
    if not grid.symmetric and grid.bits > 4:
        return f"asymmetric weights of {grid.bits} bits have no type there"
    if weight.shape[1] % BLOCK:
        return f"{weight.shape[1]} inputs are no multiple of {BLOCK}"
    if grid.group_size > 0 and grid.group_size % BLOCK:
        return f"groups of {grid.group_size} are no multiple of {BLOCK}"
    return None if weight.scale_fits_half() else "a scale is too small or too large for 16 bits"


def write(
    folder: Path,
    model: nn.Module,
    layers: Mapping[str, QuantizedLinear],
    floats: Iterable[tuple[str, Tensor]],
    source: Path | None,
) -> int:
    """Write ``model.gguf``; return the bytes of its tensors. ``floats`` is what is not quantized."""
    turned = _turned(model)
    tensors, kinds = [], []
    for name, layer in layers.items():
        solved = layer.solved
        kind = kind_of(solved.weight)
        kinds.append(kind)
        data = partial(_blocks, layer, turned.get(name))
        tensors.append(GGUFTensor(f"{name_of(name)}.weight", solved.weight.shape, kind, data))
        if layer.bias is not None:
            tensors.append(_plain(f"{name_of(name)}.bias", layer.bias, turned.get(name)))
    for key, tensor in floats:
        module, _, leaf = key.rpartition(".")
        tensors.append(_plain(f"{name_of(module)}.{leaf}", tensor, turned.get(module)))
    fields = _fields(model, max(set(kinds), key=kinds.count)) | _vocabulary(model, source)
    with atomic_write(folder / FILE) as file:
        write_gguf(file, fields, tensors)
    return sum(t.nbytes for t in tensors)


def check(folder: Path, model: nn.Module, layers: Mapping[str, QuantizedLinear]) -> None:
    """Read every quantized layer back and compare its codes.

    Raises
    ------
    ModelError
        If one differs.
    """
    _, tensors = read_gguf(folder / FILE)
    turned = _turned(model)
    for name, layer in layers.items():
        weight = layer.solved.weight
        shape, kind, raw = tensors[f"{name_of(name)}.weight"]
        wanted = _codes(weight, kind)
        rows = turned.get(name)
        if not np.array_equal(decode(raw, shape, kind)[0], wanted if rows is None else wanted[rows]):
            raise ModelError(f"{folder / FILE}: {name} did not survive writing")


def name_of(module: str) -> str:
    """Return the name that GGUF has for a module.

    Examples
    --------
    >>> name_of("model.layers.3.self_attn.q_proj"), name_of("transformer.wte")
    ('blk.3.attn_q', 'token_embd')

    Raises
    ------
    ModelError
        If it has none.
    """
    for pattern, name in NAMES:
        if found := re.fullmatch(pattern, module):
            return name.format(*(g for g in found.groups() if g is not None))
    raise ModelError(f"GGUF has no name for {module}")


def kind_of(weight: Any) -> str:
    """Return the block type of a weight for which :func:`why_not` is None."""
    if weight.grid.bits > 4:
        return "Q8_0"
    return "Q4_0" if weight.grid.symmetric else "Q4_1"


def _codes(weight: Any, kind: str) -> np.ndarray:
    codes = weight.codes.cpu().numpy().astype(np.int16)
    return codes - weight.grid.qmin if kind == "Q4_1" else codes


def _blocks(layer: QuantizedLinear, rows: np.ndarray | None) -> np.ndarray:
    weight: Any = layer.solved.weight
    kind, (out, inputs) = kind_of(weight), weight.shape
    n = inputs // BLOCK

    def each(parameter: Tensor) -> np.ndarray:
        spread = parameter.float().cpu().expand(out, -1)
        return spread.repeat_interleave(n // spread.shape[1], 1).numpy()

    scale = each(torch.where(weight.live_groups(), weight.scale.float(), 0.0))
    low = None
    if kind == "Q4_1":
        low = (each(weight.grid.qmin - weight.zero) * scale).astype(np.float16)
    parts = [_codes(weight, kind), scale.astype(np.float16), low]
    if rows is not None:
        parts = [None if p is None else p[rows] for p in parts]
    return encode(parts[0], parts[1], kind, parts[2])


def _plain(name: str, tensor: Tensor, rows: np.ndarray | None) -> GGUFTensor:
    types = {torch.float16: "F16", torch.bfloat16: "BF16"}
    kind = "F32" if tensor.ndim == 1 else types.get(tensor.dtype, "F32")

    def data() -> np.ndarray:
        values = tensor.detach().cpu()
        values = values.float() if kind == "F32" else values.view(torch.int16)
        found = values.contiguous().numpy()
        return found if rows is None else found[rows]

    return GGUFTensor(name, tuple(tensor.shape), kind, data)


def _turned(model: nn.Module) -> dict[str, np.ndarray]:
    """Return the order of rows of query and key layers: rotary halves become neighbours in Llama's files."""
    config: Any = model.config
    if ARCHITECTURES[config.model_type] != "llama":
        return {}
    found = {}
    for i in range(config.num_hidden_layers):
        for part, heads in (("q", config.num_attention_heads), ("k", config.num_key_value_heads)):
            name = f"model.layers.{i}.self_attn.{part}_proj"
            out = model.get_submodule(name).out_features
            found[name] = np.arange(out).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)  # type: ignore[call-overload]
    return found


def _rope(config: Any) -> Mapping[str, Any]:
    return getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}


def _fields(model: nn.Module, kind: str) -> dict[str, Any]:
    config: Any = model.config
    name = ARCHITECTURES[config.model_type]
    width, heads = config.hidden_size, config.num_attention_heads
    found = {
        "general.architecture": name,
        "general.name": type(model).__name__,
        "general.file_type": FILE_TYPES[kind],
        "general.quantization_version": 2,
        f"{name}.block_count": config.num_hidden_layers,
        f"{name}.context_length": config.max_position_embeddings,
        f"{name}.embedding_length": width,
        f"{name}.attention.head_count": heads,
        f"{name}.vocab_size": config.vocab_size,
    }
    if name == "gpt2":
        found[f"{name}.feed_forward_length"] = config.n_inner or 4 * width
        found[f"{name}.attention.layer_norm_epsilon"] = float(config.layer_norm_epsilon)
        return found
    size = getattr(config, "head_dim", None) or width // heads
    return found | {
        f"{name}.feed_forward_length": config.intermediate_size,
        f"{name}.attention.head_count_kv": config.num_key_value_heads,
        f"{name}.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        f"{name}.attention.key_length": size,
        f"{name}.attention.value_length": size,
        f"{name}.rope.dimension_count": size,
        f"{name}.rope.freq_base": float(_rope(config).get("rope_theta") or getattr(config, "rope_theta", 10000.0)),
    }


def _vocabulary(model: nn.Module, source: Path | None) -> dict[str, Any]:
    """Return the fields of a byte-level BPE tokenizer; of others, and without a folder, that there is none."""
    path = None if source is None else source / "tokenizer.json"
    if path is None or not path.is_file():
        return {"tokenizer.ggml.model": "no_vocab"}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        kind, added = data["model"], data.get("added_tokens") or []
        if (
            kind.get("type") != "BPE"
            or kind.get("byte_fallback")
            or "ByteLevel" not in json.dumps(data["pre_tokenizer"])
        ):
            return {"tokenizer.ggml.model": "no_vocab"}
        size = int(model.config.vocab_size)  # type: ignore[union-attr,arg-type]
        tokens, types = [f"[PAD{i}]" for i in range(size)], [5] * size  # 5: unused
        for token, i in kind["vocab"].items():
            tokens[i], types[i] = token, 1
        for entry in added:
            tokens[entry["id"]], types[entry["id"]] = entry["content"], 3 if entry.get("special") else 4
        merges = [m if isinstance(m, str) else " ".join(m) for m in kind["merges"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelError(f"{path}: is no tokenizer that fits the model ({error})") from None
    found: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": {"qwen2": "qwen2", "qwen3": "qwen2", "gpt2": "gpt-2"}.get(
            model.config.model_type, "default"
        ),  # type: ignore[union-attr,call-overload]
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
    }
    for what, key in (("bos", "bos_token_id"), ("eos", "eos_token_id"), ("padding", "pad_token_id")):
        value = getattr(model.config, key, None)
        value = value[0] if isinstance(value, list) and value else value
        if isinstance(value, int) and 0 <= value < len(tokens):
            found[f"tokenizer.ggml.{what}_token_id"] = value
    return found
