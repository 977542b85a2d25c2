"""The layout of AutoGPTQ and GPTQModel, one linear layer at a time: integers of 2, 3, 4 or 8 bits, packed along inputs.

A layer of ``in`` inputs and ``out`` outputs is ``qweight`` int32 (in * bits / 32, out), ``qzeros`` int32 (groups,
out * bits / 32), ``scales`` float16 (groups, out) and ``g_idx`` int32 (in,), the group of every input; a weight is
``scale * (code - zero)`` with codes and zeros from 0 to 2^bits - 1. Format "gptq" stores zeros minus one, and so cannot
say 0: symmetric weights, whose zero is 2^(bits-1), are written in it, since everything reads it, and asymmetric ones as
"gptq_v2", which stores zeros as they are. One scheme holds for all layers, so a scale of a row is written once for
every group.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from skerry.core.errors import ModelError
from skerry.quant.checkpoint_compressed import pack_words, unpack_words
from skerry.quant.checkpoint_files import ShardReader
from skerry.quant.checkpoint_refusals import why_not_integers
from skerry.quant.linear import BlockRotation, QuantizedLinear
from skerry.quant.numerics import AffineGrid, IntTensor
from skerry.quant.parts import Solved

__all__ = ["GPTQForm", "layer_tensors", "quantization_config", "read_layer", "why_not_model"]

BITS = (2, 3, 4, 8)
_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


@dataclass(frozen=True)
class GPTQForm:
    """What the layers of a folder have in common: ``group_size`` is -1 where every layer has one scale a row."""

    bits: int
    group_size: int
    symmetric: bool

    @classmethod
    def of(cls, weights: Iterable[Any]) -> GPTQForm:
        """Return the form of weights for which :func:`why_not_model` is None."""
        grids = [weight.grid for weight in weights]
        sizes = [grid.group_size for grid in grids if grid.group_size > 0]
        return cls(grids[0].bits, min(sizes, default=-1), grids[0].symmetric)

    @property
    def version(self) -> str:
        """``checkpoint_format`` of the configuration."""
        return "gptq" if self.symmetric else "gptq_v2"

    def groups(self, inputs: int) -> int:
        """Return the number of groups of a row."""
        return 1 if self.group_size == -1 else -(-inputs // self.group_size)


def why_not_model(layers: Mapping[str, QuantizedLinear]) -> str | None:
    """Return why a model's layers cannot be written in this layout, or None if they can."""
    weights: dict[str, IntTensor] = {}
    for name, layer in layers.items():
        solved = layer.solved
        if reason := _why_not(solved, layer.activation, layer.before):
            return f"{name}: {reason}"
        weights[name] = solved.weight  # type: ignore[assignment]
    form = GPTQForm.of(weights.values())
    first = next(iter(weights))
    for name, weight in weights.items():
        grid, inputs = weight.grid, weight.shape[1]
        if (grid.bits, grid.symmetric) != (form.bits, form.symmetric):
            return f"{name} and {first} differ in bits or symmetry, and there is one scheme for all layers"
        size = form.group_size
        if size > 0 and (grid.group_size % size if grid.group_size > 0 else inputs % size and inputs > size):
            return f"{name}: its scales do not fall on groups of {size}, which other layers have"
    return None


def _why_not(solved: Solved, activation: Any, before: tuple[Any, ...]) -> str | None:
    if reason := why_not_integers(solved, activation, before, "this layout"):
        return reason
    weight: Any = solved.weight
    bits = weight.grid.bits
    if bits not in BITS:
        return f"weights of {bits} bits are unknown there; 2, 3, 4 and 8 are not"
    for size, what in zip(weight.shape, ("outputs", "inputs"), strict=True):
        if size * bits % 32:
            return f"{size} {what} of {bits} bits do not fill words of 32 bits"
    return None if weight.scale_fits_half() else "a scale is too small or too large for 16 bits"


def layer_tensors(weight: Any, form: GPTQForm) -> dict[str, Tensor]:
    """Return the tensors of a layer, to be prefixed by the module's name and a dot.

    Examples
    --------
    >>> weight = AffineGrid(4, group_size=8).quantize(torch.ones(8, 16))
    >>> found = layer_tensors(weight, GPTQForm(4, 8, True))
    >>> [(key, tuple(t.shape)) for key, t in found.items()]
    [('qweight', (2, 8)), ('qzeros', (2, 1)), ('scales', (2, 8)), ('g_idx', (16,))]
    >>> hex(int(found["qzeros"][0, 0]))  # 8 minus one
    '0x77777777'
    """
    out, inputs = weight.shape
    groups, bits = form.groups(inputs), form.bits

    def each(parameter: Tensor) -> Tensor:
        spread = parameter.expand(out, -1)
        return spread.repeat_interleave(groups // spread.shape[1], 1).T.contiguous()

    zero = torch.zeros(groups, out, dtype=torch.int32) if weight.zero is None else each(weight.zero)
    live = (weight.codes.int().reshape(out, groups, -1) - zero.T[..., None]).any(-1).T
    scale = torch.where(live, each(weight.scale.float()), 0.0)  # of zeros alone: its scale means nothing
    index = torch.arange(inputs, dtype=torch.int32) // (inputs if form.group_size == -1 else form.group_size)
    return {
        "qweight": pack_words(weight.codes, bits).T.contiguous(),
        "qzeros": pack_words(zero - int(form.symmetric), bits),
        "scales": scale.half(),
        "g_idx": index,
    }


def quantization_config(model: nn.Module, form: GPTQForm) -> dict[str, Any]:
    """Return the configuration that ``quantize_config.json`` and config.json hold."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    left = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head]
    found = {
        "quant_method": "gptq",
        "bits": form.bits,
        "group_size": form.group_size,
        "sym": form.symmetric,
        "desc_act": False,
        "checkpoint_format": form.version,
        "format": form.version,
        "pack_dtype": "int32",
        "lm_head": isinstance(head, QuantizedLinear),
    }
    return found | ({"dynamic": {f"-:^{re.escape(n)}$": {} for n in left}} if left else {})


def read_layer(reader: ShardReader, name: str, config: Mapping[str, Any]) -> tuple[Solved, tuple[BlockRotation, ...]]:
    """Return weight and input transform of the layer ``name``, ours or of another program.

    The transform is an order of the inputs, where groups were made in the order of activations (``desc_act``).

    Raises
    ------
    ModelError
        For an unknown configuration, or tensors that do not fit it; the message names file and tensor.
    """
    where = reader.folder / "config.json"
    bits, version = config.get("bits"), config.get("checkpoint_format") or config.get("format") or "gptq"
    if bits not in BITS or version not in ("gptq", "gptq_v2"):
        raise ModelError(f"{where}: weights of {bits!r} bits in the format {version!r} cannot be read here")
    scale = reader.get(f"{name}.scales")
    words = reader.get(f"{name}.qweight", dtype=torch.int32)
    if scale.ndim != 2 or words.ndim != 2 or not scale.numel() or scale.dtype not in _DTYPES or len(words) * 32 % bits:
        raise ModelError(f"{reader.file_of(f'{name}.scales')}: {name} holds no weight of {bits} bits")
    groups, out = scale.shape
    inputs = len(words) * 32 // bits
    if words.shape[1] != out or inputs % groups or out * bits % 32:
        raise ModelError(f"{reader.file_of(f'{name}.qweight')}: {name}.qweight does not fit {name}.scales")
    stored = reader.get(f"{name}.qzeros", dtype=torch.int32, shape=(groups, out * bits // 32))
    codes = unpack_words(words.T.contiguous(), bits, inputs)
    zero = unpack_words(stored, bits, out).T.to(torch.int32).contiguous()
    if version == "gptq":
        half = 2 ** (bits - 1)
        zero = (zero + 1 + half) % (2 * half) - half  # writers let 0 minus one wrap
    symmetric = not zero.any()
    grid = AffineGrid(
        bits,
        symmetric,
        -1 if groups == 1 else inputs // groups,
        full_range=symmetric,
        scale_dtype=_DTYPES[scale.dtype],
    )
    order = _order(reader, name, inputs, groups)
    before = () if order is None else (BlockRotation(1, order=order),)  # of order 1: nothing but the order
    codes = codes if order is None else codes[:, order]
    return Solved(IntTensor(grid, codes, scale.T.contiguous(), None if symmetric else zero)), before


def _order(reader: ShardReader, name: str, inputs: int, groups: int) -> Tensor | None:
    """Return the order that brings the inputs of a group together, or None where they are."""
    key = f"{name}.g_idx"
    if key not in reader:
        return None
    index = reader.get(key, shape=(inputs,)).long()
    wanted = torch.arange(inputs) // (inputs // groups)
    if torch.equal(index, wanted):
        return None
    order = index.argsort(stable=True)
    if not torch.equal(index[order], wanted):
        raise ModelError(f"{reader.file_of(key)}: {key} has groups of other sizes than {inputs // groups}")
    return order
