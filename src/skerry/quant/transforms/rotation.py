"""Rotations: spread every outlier channel over all channels, in the residual stream and in front of single layers.

Ashkboos et al. (NeurIPS 2024), "QuaRot" (arXiv 2404.00456). An RMSNorm without gain commutes with an orthogonal
matrix, so the gain is folded into the readers first; a LayerNorm becomes an RMSNorm once everything that writes into
the stream has its mean removed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from skerry.core.errors import ModelError
from skerry.deep.hadamard import hadamard_matrix, has_hadamard, rotation_matrix
from skerry.quant.architectures.base import Architecture
from skerry.quant.groups import Group
from skerry.quant.linear import BlockRotation
from skerry.quant.probe import GroupContext
from skerry.quant.statistics import LayerStatistics

__all__ = ["OnlineHadamard", "ResidualRotation", "UnitRMSNorm"]


class UnitRMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps)``, without gain: what is left of a norm once its gain is in the readers."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised input, computed in float32."""
        y = x.float()
        return (y * torch.rsqrt((y * y).mean(-1, keepdim=True) + self.eps)).to(x.dtype)


@dataclass(frozen=True)
class ResidualRotation:
    """Rotate the residual stream of the whole model by one random-sign Hadamard matrix.

    Parameters
    ----------
    random_state : int, default 0

    Raises
    ------
    ModelError
        From :meth:`apply_model`, if the architecture does not say what reads and writes the stream.
    """

    random_state: int = 0

    def apply_model(self, model: nn.Module, architecture: Architecture, batches: list[Any]) -> Mapping[str, Any]:
        """Rotate; see :class:`~skerry.quant.parts.ModelTransform`."""
        plain_norms(model, architecture)
        width = _embedding(model, architecture).shape[1]
        rotate_stream(model, architecture, rotation_matrix(width, random_state=self.random_state, dtype=torch.float64))
        return {"width": width, "hadamard": has_hadamard(width)}


@dataclass(frozen=True)
class OnlineHadamard:
    """A Hadamard product in front of layers that no norm feeds (attention output, second MLP layer), at run time."""

    needs = frozenset()
    keeps_inputs = True

    def apply(self, group: Group, statistics: LayerStatistics, context: GroupContext) -> Mapping[str, Any]:
        """Rotate one group's input; see :class:`~skerry.quant.parts.Transform`."""
        width = group.width
        if group.kind == "norm" or not has_hadamard(width):
            return {}
        H = hadamard_matrix(width, torch.float64)
        weights = {n: (layer.weight.double() @ H).float() for n, layer in group.consumers.items()}
        group.transform_input(BlockRotation(width), weights)
        return {"width": width}


def plain_norms(model: nn.Module, architecture: Architecture) -> None:
    """Fold every norm's gain and bias into its readers, and every mean into what writes the stream, in place.

    Raises
    ------
    ModelError
        If the architecture does not describe the stream, or a reader is left out of the recipe.
    """
    if not (architecture.embeddings and architecture.writers and architecture.final_norm):
        raise ModelError(
            f"{architecture.name} models cannot be rotated: what writes their residual stream is not known"
        )
    if architecture.check is not None and (reason := architecture.check(model)):
        raise ModelError(f"this {architecture.name} model cannot be rotated: {reason}")
    blocks = architecture.block_names(model)
    centred = False
    with torch.no_grad():
        for block in blocks:
            fed = [g for g in architecture.block_groups(model, block) if g.kind == "norm"]
            for group in fed:
                centred |= _fold(model, group.producer or "", list(group.consumers.values()))
            left = [n for n, m in model.get_submodule(block).named_modules(prefix=block) if _has_gain(m)]
            if left:
                raise ModelError(f"cannot rotate: {left[0]} feeds a layer that the recipe leaves out")
        _untie(model, architecture)
        head = architecture.resolve(model, architecture.head)
        final = architecture.resolve(model, architecture.final_norm) or ""
        if head is None:
            raise ModelError("cannot rotate a model without its head: its output would be rotated too")
        centred |= _fold(model, final, [model.get_submodule(head)])
        if centred:  # LayerNorms became RMSNorms: no writer may have a mean
            for tensor in _stream_tables(model, architecture):
                tensor -= tensor.mean(1, keepdim=True)
            for layer in _writers(model, architecture):
                layer.weight -= layer.weight.mean(0, keepdim=True)
                if layer.bias is not None:
                    layer.bias -= layer.bias.mean()


def rotate_stream(model: nn.Module, architecture: Architecture, Q: Tensor) -> None:
    """Multiply everything that writes the stream by ``Q`` (d, d) and undo it in everything that reads, in place."""
    with torch.no_grad():
        for table in _stream_tables(model, architecture):
            table.copy_(table.double() @ Q)
        for layer in _writers(model, architecture):
            layer.weight.copy_(Q.T @ layer.weight.double())
            if layer.bias is not None:
                layer.bias.copy_(layer.bias.double() @ Q)
        for block in architecture.block_names(model):
            for group in architecture.block_groups(model, block):
                if group.kind == "norm":
                    for reader in group.consumers.values():
                        reader.weight.copy_(reader.weight.double() @ Q)
        head = model.get_submodule(architecture.resolve(model, architecture.head) or "")
        head.weight.copy_(head.weight.double() @ Q)


def _fold(model: nn.Module, norm_name: str, readers: list[Any]) -> bool:
    """Move a norm's gain and bias into its readers; return whether it was a LayerNorm."""
    norm = model.get_submodule(norm_name)
    if isinstance(norm, UnitRMSNorm):
        return False
    gain, bias = norm.weight, getattr(norm, "bias", None)
    for reader in readers:
        if bias is not None:
            amount = reader.weight.float() @ bias.float()
            if reader.bias is None:
                reader.bias = nn.Parameter(amount.to(reader.weight.dtype), requires_grad=False)
            else:
                reader.bias += amount
        reader.weight *= gain
    eps = getattr(norm, "eps", None) or getattr(norm, "variance_epsilon", 1e-6)
    model.set_submodule(norm_name, UnitRMSNorm(float(eps)))
    return isinstance(norm, nn.LayerNorm)


def _has_gain(module: nn.Module) -> bool:
    """Say whether a norm over the stream's last axis still has a gain (norms of single heads do not count)."""
    name = type(module).__name__
    return ("LayerNorm" in name or "RMSNorm" in name) and not isinstance(module, UnitRMSNorm)


def _embedding(model: nn.Module, architecture: Architecture) -> Tensor:
    """Return the table whose rows (n, d) the embedding adds up: of a linear layer of patches, its columns."""
    name = architecture.resolve(model, architecture.embeddings)
    if name is None:
        raise ModelError(f"this {architecture.name} model has no embeddings at {architecture.embeddings}")
    module: Any = model.get_submodule(name)
    return module.weight.T if isinstance(module, nn.Linear) else module.weight


def _stream_tables(model: nn.Module, architecture: Architecture) -> list[Tensor]:
    tables = [_embedding(model, architecture)]
    module: Any = model.get_submodule(architecture.resolve(model, architecture.embeddings) or "")
    if isinstance(module, nn.Linear) and module.bias is not None:
        tables.append(module.bias[None])
    positions = architecture.resolve(model, architecture.positions)
    return tables if positions is None else [*tables, model.get_submodule(positions).weight]  # type: ignore[list-item]


def _writers(model: nn.Module, architecture: Architecture) -> list[Any]:
    found = [
        model.get_submodule(f"{block}.{name}")
        for block in architecture.block_names(model)
        for name in architecture.writers
    ]
    if not all(isinstance(layer, nn.Linear) for layer in found):
        raise ModelError("cannot rotate: a layer that writes the residual stream is no linear layer")
    return found


def _untie(model: nn.Module, architecture: Architecture) -> None:
    """Give the head a weight of its own where it shares the embeddings'."""
    name = architecture.resolve(model, architecture.head)
    if name is None:
        return
    head = model.get_submodule(name)
    if head.weight.data_ptr() == _embedding(model, architecture).data_ptr():
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        if hasattr(model, "config"):
            model.config.tie_word_embeddings = False
