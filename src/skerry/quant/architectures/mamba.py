"""Mamba: an RMSNorm and a mixer a block; the mixer is split into five linear layers first (see ``mamba_block``)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from skerry.core.errors import ModelError
from skerry.quant.architectures.base import Architecture, GroupSpec
from skerry.quant.architectures.mamba_block import SplitMambaBlock
from skerry.quant.linear import QuantizedLinear
from skerry.quant.parts import FloatTensor, Solved


def _prepare(model: nn.Module) -> None:
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "MambaBlock":
            model.set_submodule(name, SplitMambaBlock(module))


def _restore(model: nn.Module) -> nn.Module:
    """Return a copy with the blocks of transformers again, for programs that know no others.

    Raises
    ------
    ModelError
        If a block does at run time what a block of transformers cannot do.
    """
    from transformers.models.mamba.modeling_mamba import MambaBlock

    found = copy.deepcopy(model)
    for name, block in list(found.named_modules()):
        if not isinstance(block, SplitMambaBlock):
            continue
        mixer = block.mixer
        for what in ("gate_scale", "channel_scale", "state_rotation"):
            if getattr(mixer, what) is not None:
                raise ModelError(f"{name}.mixer has a {what.replace('_', ' ')}, which is not part of Mamba")
        with torch.device("meta"):
            whole = MambaBlock(block.config, block.layer_idx)
        whole.norm = block.norm
        for part in ("conv1d", "A_log", "D", "dt_proj", "out_proj"):
            setattr(whole.mixer, part, getattr(mixer, part))
        kind = mixer.conv1d.weight.dtype
        whole.mixer.in_proj = joined(f"{name}.mixer", mixer, ("states_proj", "gate_proj"), kind)
        whole.mixer.x_proj = joined(f"{name}.mixer", mixer, ("step_proj", "B_proj", "C_proj"), kind)
        found.set_submodule(name, whole.train(block.training))
    return found


def joined(where: str, mixer: nn.Module, names: tuple[str, ...], dtype: torch.dtype) -> nn.Module:
    """Return one layer for several that read one input; a quantized one has rounded weights of this dtype."""
    layers: list[Any] = [mixer.get_submodule(n) for n in names]
    quantized = any(isinstance(layer, QuantizedLinear) for layer in layers)
    if moved := [n for n, layer in zip(names, layers, strict=True) if getattr(layer, "before", None)]:
        raise ModelError(f"{where}.{moved[0]}: its input is transformed at run time")
    W = torch.cat([layer.solved.dense() if isinstance(layer, QuantizedLinear) else layer.weight for layer in layers])
    bias = None
    if any(layer.bias is not None for layer in layers):
        bias = torch.cat([_bias(layer) for layer in layers])
    if quantized:
        return QuantizedLinear(Solved(FloatTensor(W.to(dtype))), None, bias)
    linear = nn.Linear(W.shape[1], W.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(W, requires_grad=False)
    linear.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    return linear


def _bias(layer: Any) -> Tensor:
    return torch.zeros(layer.out_features) if layer.bias is None else layer.bias


def scan_groups(scan: str) -> tuple[GroupSpec, ...]:
    """Return the groups of one direction's scan, a module inside the block's ``mixer`` or the mixer itself."""
    return (
        GroupSpec((f"{scan}.step_proj", f"{scan}.B_proj", f"{scan}.C_proj"), parent="mixer"),
        GroupSpec((f"{scan}.dt_proj",), f"{scan}.step_proj", "rows", "mixer"),
    )


ARCHITECTURE = Architecture(
    name="Mamba",
    model_types=("mamba",),
    blocks="backbone.layers|layers",
    groups=(
        GroupSpec(("mixer.states_proj", "mixer.gate_proj"), "norm", "norm", "mixer"),
        *scan_groups("mixer"),
        GroupSpec(("mixer.out_proj",), parent="mixer"),  # a product with a gate: only MambaQuant scales through it
    ),
    embeddings="backbone.embeddings|embeddings",
    head="lm_head",
    final_norm="backbone.norm_f|norm_f",
    writers=("mixer.out_proj",),
    prepare=_prepare,
    restore=_restore,
)
