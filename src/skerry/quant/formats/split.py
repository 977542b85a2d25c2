"""SplitQuant: cut a tensor by value into low tail, body and high tail, so that each gets a finer grid.

Song and Lin (2025), "SplitQuant" (arXiv 2501.12428) and V2 (arXiv 2503.07657). The three parts add up to the weight
exactly; entries that belong to another part are exact zeros. Stored merged, so that ONE product runs instead of three:
a code of ``bits`` for every weight, and the parts they belong to, five in a byte.

=====================================  ======================
form                                   bits a weight
=====================================  ======================
three layers                           ``3 bits``
three layers, each value with a mask   ``bits + 2``
merged, as stored here                 ``bits + 1.6``
one grid                               ``bits``
=====================================  ======================

Compare it with a plain grid of ``bits + 2`` bits, which needs hardly more storage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from skerry.core.errors import ModelError, ParameterError
from skerry.kernels.kmeans_1d import kmeans_1d
from skerry.quant.numerics import AffineGrid, pack_bits, unpack_bits

__all__ = ["SplitGrid", "SplitTensor", "pack_parts", "split_module", "unpack_parts", "value_masks"]

IN_A_BYTE = {2: 8, 3: 5}  # numbers below the key: 2^8 = 256, 3^5 = 243


@dataclass(frozen=True)
class SplitGrid:
    """Asymmetric min-max grids for three parts of a weight.

    Parameters
    ----------
    bits : int, default 4
        Of a code, 2 to 8; 1.6 more bits say which of three parts it belongs to, 1 which of two.
    group_size : int, default 0
        0: one scale for each part of the tensor; -1: for each part and row.
    clusters : int, default 3
        1 to 3 parts.

    Raises
    ------
    ParameterError
        For settings out of range.
    """

    bits: int = 4
    group_size: int = 0
    clusters: int = 3

    def __post_init__(self) -> None:
        if self.group_size not in (0, -1):
            raise ParameterError(f"group_size must be 0 (the tensor) or -1 (a row), got {self.group_size}")
        if not 1 <= self.clusters <= 3:
            raise ParameterError(f"clusters must be 1 to 3, got {self.clusters}")
        if not 2 <= self.bits <= 8:
            raise ParameterError(f"bits must be 2 to 8, got {self.bits}")

    @property
    def grid(self) -> AffineGrid:
        """The grid of one part."""
        return AffineGrid(self.bits, symmetric=False, group_size=self.group_size)

    def quantize(self, W: Tensor) -> SplitTensor:
        """Split ``W`` (out, in) and round every part on its own grid."""
        W = W.detach().float()
        masks, boundaries = value_masks(W, self.clusters)
        parts = [self.grid.quantize(W * mask) for mask in masks]
        ids = torch.zeros_like(W, dtype=torch.int8)
        codes = torch.zeros_like(ids)
        for i, (mask, part) in enumerate(zip(masks, parts, strict=True)):
            ids[mask], codes[mask] = i, part.codes[mask]
        scale = torch.stack([part.scale for part in parts])
        zero = torch.stack([part.zero for part in parts if part.zero is not None])
        return SplitTensor(self, codes, ids, scale, zero, tuple(boundaries))

    def round(self, W: Tensor) -> Tensor:
        """Return ``W`` as it would come back, float32."""
        return self.quantize(W).dequantize()

    def bits_per_weight(self, shape: tuple[int, int]) -> float:
        """Return stored bits for each weight."""
        rows = shape[0] if self.group_size == -1 else 1
        parts = 8 / IN_A_BYTE[self.clusters] if self.clusters > 1 else 0.0
        return self.bits + parts + self.clusters * rows * (32 + 8) / (shape[0] * shape[1])


@dataclass(frozen=True)
class SplitTensor:
    """A weight in three parts, stored as one.

    Attributes
    ----------
    format : SplitGrid
    codes, parts : int8 Tensor of shape (out, in)
        Code of each weight, and the part (0 low, 1 middle, 2 high) it belongs to.
    scale, zero : Tensor of shape (parts, rows or 1, 1)
    boundaries : tuple of float
    """

    format: SplitGrid
    codes: Tensor
    parts: Tensor
    scale: Tensor
    zero: Tensor
    boundaries: tuple[float, ...] = ()

    kind = "split"

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return tuple(self.codes.shape)  # type: ignore[return-value]

    @property
    def nbytes(self) -> int:
        """Bytes as saved."""
        out, inputs = self.shape
        sides = self.scale.numel() * self.scale.element_size() + self.zero.numel()
        parts = -(-out * inputs // IN_A_BYTE[len(self.scale)]) if len(self.scale) > 1 else 0
        return out * ((inputs * self.format.bits + 7) // 8) + parts + sides

    def dequantize(self) -> Tensor:
        """Return float32 values (out, in): ``scale[part] * (code - zero[part])``."""
        total = torch.zeros_like(self.codes, dtype=torch.float32)
        for i in range(len(self.scale)):
            mask = self.parts == i
            total = torch.where(mask, (self.codes.float() - self.zero[i]) * self.scale[i].float(), total)
        return total

    def layers(self) -> list[Tensor]:
        """Return the parts as dense float32 weights with exact zeros, for runtimes that only know plain layers."""
        whole = self.dequantize()
        return [torch.where(self.parts == i, whole, torch.zeros_like(whole)) for i in range(len(self.scale))]

    def meta(self) -> dict[str, Any]:
        """Return what JSON must keep."""
        return {
            "kind": self.kind,
            "shape": list(self.shape),
            "format": asdict(self.format),
            "boundaries": list(self.boundaries),
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return what safetensors must keep: codes, parts (where there are several), scales, zeros."""
        found = {"packed": pack_bits(self.codes, self.format.bits), "scale": self.scale}
        found["zero"] = self.zero.to(torch.int8)
        if len(self.scale) > 1:
            found["parts"] = pack_parts(self.parts, len(self.scale))
        return found

    @classmethod
    def from_tensors(cls, meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> SplitTensor:
        """Rebuild what was saved.

        Raises
        ------
        ModelError
            If a part has no scale, or there are too few codes or parts.
        """
        form = SplitGrid(**meta["format"])
        shape, scale = (int(meta["shape"][0]), int(meta["shape"][1])), tensors["scale"]
        codes = unpack_bits(tensors["packed"], form.bits, shape[1])
        if not 1 <= len(scale) <= 3:
            raise ModelError(f"a split weight has 1 to 3 parts, not {len(scale)}")
        parts = unpack_parts(tensors["parts"], len(scale), shape) if len(scale) > 1 else torch.zeros_like(codes)
        return cls(form, codes, parts, scale, tensors["zero"].to(torch.int32), tuple(meta["boundaries"]))


def pack_parts(parts: Tensor, clusters: int) -> Tensor:
    """Return numbers below ``clusters`` (2 or 3) as bytes, as many in each as fit, the first times 1.

    Returns
    -------
    uint8 Tensor of shape (ceil(numbers / 8),), of three clusters (ceil(numbers / 5),)

    Examples
    --------
    >>> pack_parts(torch.tensor([[2, 0, 1], [0, 2, 1]]), 3).tolist()  # 2 + 1 * 9 + 2 * 81, 1
    [173, 1]
    """
    each = IN_A_BYTE[clusters]
    flat = parts.reshape(-1).to(torch.int32)
    flat = torch.nn.functional.pad(flat, (0, -len(flat) % each)).reshape(-1, each)
    places = torch.arange(each, dtype=torch.int32, device=flat.device)
    return (flat * clusters**places).sum(-1).to(torch.uint8)


def unpack_parts(packed: Tensor, clusters: int, shape: tuple[int, int]) -> Tensor:
    """Return the int8 numbers (out, in) that :func:`pack_parts` packed.

    Raises
    ------
    ModelError
        If the bytes are too few or too many, or one stands for no such numbers.
    """
    each, count = IN_A_BYTE[clusters], shape[0] * shape[1]
    if packed.dtype != torch.uint8 or tuple(packed.shape) != (-(-count // each),):
        raise ModelError(f"parts of shape {tuple(packed.shape)} do not belong to a weight of shape {shape}")
    if int(packed.max()) >= clusters**each:
        raise ModelError("a split weight names a part that has no scale: the file is damaged")
    byte, places = (torch.arange(n, device=packed.device) for n in (256, each))
    numbers = (byte[:, None] // clusters**places % clusters).to(torch.int8)
    return numbers[packed.int()].reshape(-1)[:count].reshape(shape)


def value_masks(values: Tensor, clusters: int = 3) -> tuple[list[Tensor], list[float]]:
    """Return boolean masks that partition ``values`` by exact k-means, low part first, and the boundaries.

    An entry at a boundary belongs to the outer part. Fewer distinct values than clusters: one part.

    Examples
    --------
    >>> masks, at = value_masks(torch.tensor([-3.0, 0.0, 0.1, 3.0]))
    >>> [m.sum().item() for m in masks]
    [1, 2, 1]
    """
    flat = values.detach().double().reshape(-1).numpy()
    centres, boundaries = kmeans_1d(flat, clusters)
    if len(centres) < clusters or clusters == 1:
        return [torch.ones_like(values, dtype=torch.bool)], []
    edges = [float(b) for b in boundaries]
    v = values.detach().double()
    if clusters == 2:
        return [v <= edges[0], v > edges[0]], edges
    return [v <= edges[0], (v > edges[0]) & (v < edges[1]), v >= edges[1]], edges


class _Sum(nn.Module):
    """Layers whose outputs are added."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        low, *rest = self.layers
        total = low(x)
        for layer in rest:
            total = total + layer(x)
        return total


def split_module(layer: nn.Module, *, clusters: int = 3, granularity: str = "auto", bias: bool = True) -> nn.Module:
    """Return a linear or convolution layer as a sum of layers of the same kind, one for each part of its values.

    Parameters
    ----------
    layer : nn.Linear, nn.Conv1d, nn.Conv2d or nn.Conv3d
    clusters : int, default 3
    granularity : {"auto", "tensor", "channel"}
        One clustering for the tensor (linear layers under "auto") or for each output kernel (convolutions).
    bias : bool, default True
        Split the bias by its own values; else, or where it has too few, it stays whole in the middle part.

    Raises
    ------
    ModelError
        For another kind of layer.
    ParameterError
        For an unknown granularity.
    """
    import copy

    if not isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        raise ModelError(f"a {type(layer).__name__} cannot be split; linear and convolution layers can")
    if granularity not in ("auto", "tensor", "channel"):
        raise ParameterError(f"granularity must be 'auto', 'tensor' or 'channel', got {granularity!r}")
    W = layer.weight.detach()
    by_channel = granularity == "channel" or (granularity == "auto" and not isinstance(layer, nn.Linear))
    if by_channel:
        rows = [value_masks(row, clusters)[0] for row in W]
        middle = clusters // 2
        whole = [[r[0] if i == middle else torch.zeros_like(r[0]) for i in range(clusters)] for r in rows]
        rows = [r if len(r) == clusters else w for r, w in zip(rows, whole, strict=True)]
        masks = [torch.stack([r[i] for r in rows]) for i in range(clusters)]
    else:
        masks, _ = value_masks(W, clusters)
    if len(masks) < 2:
        return layer
    parts = [copy.deepcopy(layer) for _ in masks]
    for part, mask in zip(parts, masks, strict=True):
        part.weight = nn.Parameter(torch.where(mask, W, torch.zeros_like(W)), requires_grad=W.requires_grad)
    if layer.bias is not None:
        b = layer.bias.detach()
        pieces, _ = value_masks(b, clusters) if bias else ([], [])
        for i, part in enumerate(parts):
            if len(pieces) == len(parts):
                part.bias = nn.Parameter(torch.where(pieces[i], b, torch.zeros_like(b)))
            else:
                part.bias = nn.Parameter(b.clone() if i == len(parts) // 2 else torch.zeros_like(b))
    return _Sum(parts)
