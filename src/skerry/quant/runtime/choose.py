"""Which kernel multiplies a layer: by default a fixed order, or the costs measured on this machine.

The order, and why (two-core measurements in the page of this wing): the 8-bit products first, since they beat bfloat16
at every number of tokens; then 4-bit weight-only, which wins for up to about eight tokens; then 8-bit weight-only; the
reference for everything else. On processors without VNNI the 8-bit products saturate and do not match; sums of 16-bit
pairs take their place. A layer on a GPU gets the same kernels on its products, if a trial finds them there.
"""

from __future__ import annotations

import importlib
import json
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from skerry.core.errors import ModelError, ParameterError, SkerryWarning
from skerry.core.files import atomic_write, cache_folder
from skerry.core.machine import processor
from skerry.quant.activation import TokenDynamic
from skerry.quant.formats.mixed_decomposition import MixedInt8, OutlierSplit
from skerry.quant.numerics import AffineGrid, IntTensor
from skerry.quant.parts import QuantizedTensor, Solved, device_of

__all__ = [
    "BUCKETS",
    "KERNELS",
    "CostTable",
    "Kernel",
    "choose",
    "cost_path",
    "known_costs",
    "measure_costs",
    "prepare_kernel",
]

KERNELS: dict[str, tuple[str, str]] = {  # in the default order
    "mixed_int8": ("skerry.quant.runtime.mixed_int8", "MixedInt8Kernel"),
    "w8a8": ("skerry.quant.runtime.w8a8", "Int8Linear"),
    "int8_exact": ("skerry.quant.runtime.int8_exact", "Int8ExactLinear"),
    "w4a16": ("skerry.quant.runtime.w4a16", "Int4Linear"),
    "w8a16": ("skerry.quant.runtime.w8a16", "Int8WeightLinear"),
    "reference": ("skerry.quant.runtime.reference", "Reference"),
}
BUCKETS = (1, 32, 512)  # numbers of tokens that stand for decoding, small batches, prefill


class Kernel(Protocol):
    """A prepared product of one layer."""

    name: str

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        ...

    def restore(self) -> QuantizedTensor:
        """Return the stored weight, from the packed copy where there is one."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """Return the layer's output (..., out) in the dtype of ``x``."""
        ...


@dataclass(frozen=True)
class CostTable:
    """Milliseconds of every kernel for a kind of layer and a number of tokens, on one machine.

    Attributes
    ----------
    entries : mapping of "format|activation|tokens" to mapping of kernel to milliseconds
    size : int
        Inputs and outputs of the layer measured.
    threads : int
    machine : str
    """

    entries: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    size: int = 0
    threads: int = 0
    machine: str = ""

    def cost(self, kernel: str, solved: Solved, activation: Any, tokens: int) -> float | None:
        """Return milliseconds in the nearest bucket, or None if that was not measured."""
        bucket = min(BUCKETS, key=lambda b: abs(b.bit_length() - max(1, tokens).bit_length()))
        return self.entries.get(f"{_format(solved)}|{_input(activation)}|{bucket}", {}).get(kernel)

    def save(self, path: Path | None = None) -> Path:
        """Write the table; see :func:`cost_path`."""
        path = path or cost_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(json.dumps(asdict(self), indent=1).encode())
        return path

    @classmethod
    def load(cls, path: Path | None = None) -> CostTable:
        """Read a table.

        Raises
        ------
        ModelError
            If the file is missing or no cost table.
        """
        path = path or cost_path()
        try:
            data = json.loads(path.read_text())
            table = cls(**data)
            if not all(isinstance(ms, (int, float)) for costs in table.entries.values() for ms in costs.values()):
                raise ValueError("a cost is not a number")
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ModelError(
                f"{path}: not a table of kernel costs ({error}); measure a new one with skerry bench kernels"
            ) from None
        return table


def known_costs() -> CostTable | None:
    """Return the costs that were measured on this processor, or None; a table of another one is told and left.

    Raises
    ------
    ModelError
        If the file is no cost table.
    """
    path = cost_path()
    if not path.is_file():
        return None
    table = CostTable.load(path)
    if table.machine == processor():
        return table
    warnings.warn(
        f"{path}: costs of another processor ({table.machine}) are not used; measure with skerry bench kernels",
        SkerryWarning,
        stacklevel=2,
    )
    return None


def cost_path() -> Path:
    """Return where the table of this machine is kept: ``quant-costs.json`` in Skerry's cache folder."""
    return cache_folder() / "quant-costs.json"


def choose(solved: Solved, activation: Any, *, tokens: int | None = None, table: CostTable | None = None) -> Any:
    """Return the kernel class for a layer.

    Parameters
    ----------
    solved : Solved
    activation : ActivationQuantizer or None
    tokens : int, optional
        Optimise for this many tokens at a time; by default for decoding, small batches and prefill alike.
    table : CostTable, optional
        Measured costs; without them, or for a kind of layer that was not measured, the default order.

    Examples
    --------
    >>> solved = Solved(AffineGrid(4, group_size=32).quantize(torch.ones(64, 64)))
    >>> choose(solved, None).name in ("w4a16", "w8a16")
    True
    """
    fitting = [k for name in KERNELS if (k := kernel_class(name)).matches(solved, activation)]
    if table is None or device_of(solved.weight).type != "cpu":  # costs are the processor's
        return fitting[0]
    buckets = BUCKETS if tokens is None else (tokens,)

    def total(kernel: Any) -> float:
        costs = [table.cost(kernel.name, solved, activation, b) for b in buckets]
        best = [
            min(c for k in fitting if (c := table.cost(k.name, solved, activation, b)) is not None) for b in buckets
        ]
        return sum(float("inf") if c is None else c / b for c, b in zip(costs, best, strict=True))

    measured = [k for k in fitting if all(table.cost(k.name, solved, activation, b) is not None for b in buckets)]
    return min(measured, key=total) if measured else fitting[0]


def prepare_kernel(
    solved: Solved,
    activation: Any,
    bias: Tensor | None = None,
    *,
    name: str | None = None,
    tokens: int | None = None,
    table: CostTable | None = None,
) -> Kernel:
    """Return a kernel for the layer: the named one, or what :func:`choose` says.

    Raises
    ------
    ParameterError
        For an unknown name.
    ModelError
        If the named kernel cannot multiply this layer.
    """
    kind = choose(solved, activation, tokens=tokens, table=table) if name is None else kernel_class(name)
    if not kind.matches(solved, activation):
        raise ModelError(f"kernel {name!r} does not fit {solved.weight.kind} weights with {activation!r}")
    return kind.prepare(solved, activation, bias)


def kernel_class(name: str) -> Any:
    """Return the class of a kernel by its name."""
    if name not in KERNELS:
        raise ParameterError(f"unknown kernel {name!r}; known: {', '.join(KERNELS)}")
    module, kind = KERNELS[name]
    return getattr(importlib.import_module(module), kind)


def measure_costs(
    size: int = 2048, *, seconds: float = 0.2, progress: Callable[[str], None] = lambda text: None
) -> CostTable:
    """Measure every kernel on random layers of ``size`` x ``size``, bfloat16 inputs; takes about a minute.

    Parameters
    ----------
    size : int, default 2048
    seconds : float, default 0.2
        For each figure, which is the least of the repetitions.
    progress : callable
        Gets a line for each kind of layer.
    """
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(size, size, generator=generator)
    group = next((g for g in (128, 64, 32) if size % g == 0), -1)
    kinds: list[tuple[QuantizedTensor, Any]] = [
        (AffineGrid(4, group_size=group, scale_dtype="bfloat16").quantize(W), None),
        (AffineGrid(4).quantize(W), TokenDynamic(8)),
        (AffineGrid(8).quantize(W), None),
        (AffineGrid(8).quantize(W), TokenDynamic(8)),
        (MixedInt8().quantize(W), OutlierSplit()),
    ]
    entries: dict[str, dict[str, float]] = {}
    for weight, activation in kinds:
        solved = Solved(weight)
        for name in KERNELS:
            kind = kernel_class(name)
            if name == "reference" or not kind.matches(solved, activation):
                continue
            kernel = kind.prepare(solved, activation)
            for tokens in BUCKETS:
                x = torch.randn(tokens, size, generator=generator).bfloat16()
                x[:, 5] *= 20.0
                key = f"{_format(solved)}|{_input(activation)}|{tokens}"
                entries.setdefault(key, {})[name] = _least(lambda k=kernel, x=x: k(x), seconds)
        progress(f"{_format(solved)}, {_input(activation)}")
    return CostTable(entries, size, torch.get_num_threads(), processor())


def _least(run: Callable[[], Any], seconds: float) -> float:
    run()
    found, stop = [], time.perf_counter() + seconds
    while len(found) < 3 or time.perf_counter() < stop:
        started = time.perf_counter()
        run()
        found.append(time.perf_counter() - started)
    return round(1e3 * min(found), 5)


def _format(solved: Solved) -> str:
    weight = solved.weight
    if not isinstance(weight, IntTensor):
        return weight.kind
    grouped = weight.grid.group_size > 0 and weight.grid.group_size != weight.shape[1]
    return f"int{4 if weight.grid.bits <= 4 else 8}{'-group' if grouped else '-row'}"


def _input(activation: Any) -> str:
    return "float" if activation is None else str(getattr(activation, "kind", type(activation).__name__))
