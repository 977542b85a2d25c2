"""What the parts of a recipe promise each other; nothing here knows a model class.

The line is: calibrate, statistics, transforms (function preserving), weight solver, storage format, activation
quantizer, runtime. Weights are (out, in), inputs (tokens, in), both float32 when a part works on them. Settings are
frozen dataclasses of plain values (they become JSON in the checkpoint); what was learned is a separate object.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from skerry.quant.statistics import LayerStatistics

if TYPE_CHECKING:
    from skerry.quant.architectures.base import Architecture
    from skerry.quant.groups import Group
    from skerry.quant.probe import GroupContext

__all__ = [
    "ActivationQuantizer",
    "FloatTensor",
    "Format",
    "LowRank",
    "ModelTransform",
    "QuantizedTensor",
    "Solved",
    "Solver",
    "SparseColumns",
    "SparseEntries",
    "Transform",
    "device_of",
    "on_device",
]


def device_of(weight: QuantizedTensor) -> torch.device:
    """Return where the weight's codes lie."""
    held = (getattr(weight, name, None) for name in ("codes", "packed", "values"))
    return next((t.device for t in held if t is not None), torch.device("cpu"))


def on_device(part: Any, device: torch.device) -> Any:
    """Return a part (a tensor, a dataclass of them, or anything else as it is) with its tensors on ``device``."""
    if isinstance(part, Tensor):
        return part.to(device)
    if not is_dataclass(part) or isinstance(part, type):
        return part
    return replace(part, **{f.name: on_device(getattr(part, f.name), device) for f in fields(part)})


@runtime_checkable
class QuantizedTensor(Protocol):
    """A stored weight: integer codes, a pair code, a float code ...; frozen, device independent."""

    kind: str

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes as saved, without headers."""
        ...

    def dequantize(self) -> Tensor:
        """Return float32 values (out, in), exactly those that a kernel must compute with."""
        ...

    def meta(self) -> dict[str, Any]:
        """Return what JSON must keep: ``kind`` and the settings."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Return what safetensors must keep; ``from_tensors(meta, tensors)`` of the class undoes both."""
        ...


@dataclass(frozen=True)
class FloatTensor:
    """A weight left in floating point, where only the input is rounded."""

    values: Tensor

    kind = "float"

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return tuple(self.values.shape)  # type: ignore[return-value]

    @property
    def nbytes(self) -> int:
        """Bytes as saved."""
        return self.values.numel() * self.values.element_size()

    def dequantize(self) -> Tensor:
        """Return float32 values (out, in)."""
        return self.values.float()

    def meta(self) -> dict[str, Any]:
        """Return what JSON must keep."""
        return {"kind": self.kind, "shape": list(self.shape)}

    def tensors(self) -> dict[str, Tensor]:
        """Return what safetensors must keep."""
        return {"values": self.values}

    @classmethod
    def from_tensors(cls, meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> FloatTensor:
        """Rebuild what was saved."""
        return cls(tensors["values"])


class Format(Protocol):
    """A storage format of weights: a frozen dataclass, for example :class:`~skerry.quant.numerics.AffineGrid`."""

    def quantize(self, W: Tensor) -> QuantizedTensor:
        """Store ``W`` (out, in) by the format's own rule."""
        ...

    def bits_per_weight(self, shape: tuple[int, int]) -> float:
        """Return stored bits for each weight, scales included."""
        ...


@dataclass(frozen=True)
class SparseEntries:
    """Single weights kept in 16 or 32 bits and ADDED to the quantized ones (which are 0 or compensated there)."""

    rows: Tensor  # int32 (n,)
    columns: Tensor  # int32 (n,)
    values: Tensor  # (n,) stored dtype
    shape: tuple[int, int]

    kind = "entries"

    @property
    def nbytes(self) -> int:
        """16-bit values and their places (a column index each and a pointer a row)."""
        width = 2 if self.shape[1] <= 65_536 else 4
        return len(self.values) * (self.values.element_size() + width) + 4 * (self.shape[0] + 1)

    def dense(self) -> Tensor:
        """Return a float32 (out, in) tensor of zeros and the entries."""
        found = torch.zeros(self.shape, device=self.values.device)
        found[self.rows.long(), self.columns.long()] = self.values.float()
        return found


@dataclass(frozen=True)
class SparseColumns:
    """Whole input columns kept in 16 or 32 bits and ADDED to the quantized weight."""

    columns: Tensor  # int32 (n,)
    values: Tensor  # (out, n) stored dtype
    shape: tuple[int, int]

    kind = "columns"

    @property
    def nbytes(self) -> int:
        """Values and one index a column."""
        return self.values.numel() * self.values.element_size() + 4 * len(self.columns)

    def dense(self) -> Tensor:
        """Return a float32 (out, in) tensor of zeros and the columns."""
        found = torch.zeros(self.shape, device=self.values.device)
        found[:, self.columns.long()] = self.values.float()
        return found


@dataclass(frozen=True)
class LowRank:
    """A branch ``x -> up(down(x))`` beside the quantized weight: ``up`` (out, r), ``down`` (r, in).

    ``shared_by`` layers of one input have the same ``down``; each counts its part of it, and it is saved once.
    """

    up: Tensor
    down: Tensor
    shared_by: int = 1

    kind = "low_rank"

    @property
    def nbytes(self) -> int:
        """Bytes of both factors, of a shared one its part."""
        up, down = (t.numel() * t.element_size() for t in (self.up, self.down))
        return up + -(-down // self.shared_by)

    def dense(self) -> Tensor:
        """Return ``up @ down`` in float32."""
        return self.up.float() @ self.down.float()


@dataclass(frozen=True)
class Solved:
    """What a solver found for one weight.

    Attributes
    ----------
    weight : QuantizedTensor
    sparse : SparseEntries, SparseColumns or None
    low_rank : LowRank or None
    objective : float
        ``tr((W - V) G (W - V)^T)`` with the Gram matrix G of the inputs, for the whole stored weight V.
    trace : tuple of float
        The objective after every sweep, where the method has sweeps.
    info : dict
        Decisions worth a line in the report (chosen axis, damping, fallback ...); plain values.
    """

    weight: QuantizedTensor
    sparse: SparseEntries | SparseColumns | None = None
    low_rank: LowRank | None = None
    objective: float = float("nan")
    trace: tuple[float, ...] = ()
    info: Mapping[str, Any] = field(default_factory=dict)

    def dense(self) -> Tensor:
        """Return the float32 weight (out, in) that the stored parts stand for."""
        total = self.weight.dequantize()
        for extra in (self.sparse, self.low_rank):
            if extra is not None:
                total = total + extra.dense()
        return total

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.nbytes for part in (self.weight, self.sparse, self.low_rank) if part is not None)


@runtime_checkable
class Transform(Protocol):
    """Moves outliers inside a group of layers without changing what the model computes; a frozen dataclass.

    The engine checks the function after every application and undoes one that changed it. ``keeps_inputs = True`` says
    that whatever it does to an input stays in front of the layer, so that an adapter of the float model still fits.
    """

    needs: frozenset[str]

    def apply(self, group: Group, statistics: LayerStatistics, context: GroupContext) -> Mapping[str, Any]:
        """Change the group in place; return plain facts for the report (empty: nothing was done)."""
        ...


@runtime_checkable
class ModelTransform(Protocol):
    """Changes a whole model without changing what it computes (a rotation of the residual stream)."""

    def apply_model(self, model: nn.Module, architecture: Architecture, batches: list[Any]) -> Mapping[str, Any]:
        """Change the model in place; return plain facts for the report."""
        ...


class Solver(Protocol):
    """Finds the stored weight for ``W``; a frozen dataclass such as ``RTN()``, ``GPTQ(damp=0.01)``.

    ``needs`` names the statistics it wants (see :class:`~skerry.quant.statistics.LayerStatistics`), so that the
    engine collects no others.
    """

    needs: frozenset[str]

    def solve(self, W: Tensor, statistics: LayerStatistics, grid: Format, *, name: str = "the weight") -> Solved:
        """Return the stored parts for ``W`` (out, in); ``name`` is the layer's, for errors."""
        ...


class ActivationQuantizer(Protocol):
    """Rounds the input of a linear layer; a frozen dataclass.

    Static kinds hold their scale after :meth:`calibrated`; dynamic ones return themselves.
    """

    bits: int

    def calibrated(self, statistics: LayerStatistics) -> ActivationQuantizer:
        """Return the quantizer with its scale set."""
        ...

    def fake(self, x: Tensor) -> Tensor:
        """Return ``x`` (..., in) rounded to the levels it would be sent with."""
        ...
