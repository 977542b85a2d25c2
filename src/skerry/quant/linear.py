"""The two linear layers of the engine: one that is being prepared, one that is quantized.

``PreparedLinear`` is an ``nn.Linear`` that may change its input first (``before``) and can play a quantized layer
(``played_weight``, ``played_input``) so that a search measures errors without touching the weights. At the end
:class:`QuantizedLinear` takes its place: stored parts, activation quantizer, and the kernel that multiplies them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from skerry.core.errors import ModelError
from skerry.deep.hadamard import fast_hadamard, has_hadamard
from skerry.quant.parts import ActivationQuantizer, Solved, device_of, on_device

__all__ = ["BlockRotation", "InputAffine", "PreparedLinear", "QuantizedLinear", "played"]


@dataclass(frozen=True)
class InputAffine:
    """``(x - shift) / scale`` per channel, at run time; what could not be folded into the layer before."""

    scale: Tensor
    shift: Tensor | None = None

    kind = "affine"

    def __call__(self, x: Tensor) -> Tensor:
        """Return the changed input (..., in)."""
        if self.shift is not None:
            x = x - self.shift.to(x)
        return x / self.scale.to(x)

    def tensors(self) -> dict[str, Tensor]:
        """Return what safetensors must keep."""
        return {"scale": self.scale} | ({} if self.shift is None else {"shift": self.shift})

    def meta(self) -> dict[str, Any]:
        """Return what JSON must keep."""
        return {"kind": self.kind}

    @classmethod
    def from_tensors(cls, meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> InputAffine:
        """Rebuild what was saved."""
        return cls(tensors["scale"], tensors.get("shift"))


@dataclass(frozen=True)
class BlockRotation:
    """``x @ R`` at run time, on consecutive blocks of channels; a plain Hadamard matrix where ``matrix`` is None."""

    block: int
    matrix: Tensor | None = None  # (block, block), orthogonal
    order: Tensor | None = None  # int64 (in,): channels are taken in this order first

    kind = "rotation"

    def __post_init__(self) -> None:
        if self.matrix is None and not has_hadamard(self.block):
            raise ModelError(f"no Hadamard matrix of order {self.block} is known; give the rotation a matrix")

    def __call__(self, x: Tensor) -> Tensor:
        """Return the rotated input (..., in)."""
        if self.order is not None:
            x = x[..., self.order]
        y = x.unflatten(-1, (-1, self.block))
        return (fast_hadamard(y) if self.matrix is None else y @ self.matrix.to(x)).flatten(-2)

    def tensors(self) -> dict[str, Tensor]:
        """Return what safetensors must keep."""
        return {k: v for k, v in (("matrix", self.matrix), ("order", self.order)) if v is not None}

    def meta(self) -> dict[str, Any]:
        """Return what JSON must keep."""
        return {"kind": self.kind, "block": self.block}

    @classmethod
    def from_tensors(cls, meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> BlockRotation:
        """Rebuild what was saved."""
        return cls(int(meta["block"]), tensors.get("matrix"), tensors.get("order"))


InputTransform = InputAffine | BlockRotation


class PreparedLinear(nn.Linear):
    """A float linear layer in the engine's hands; it shares the parameters of the layer it replaces.

    Attributes
    ----------
    before : list of InputTransform
        Applied to the input, in order.
    played_weight : Tensor of shape (out, in) or None
        Used in place of the weight while a search runs.
    played_input : ActivationQuantizer or None
        Rounds the input, after ``before``.
    played_bias : Tensor of shape (out,) or None
        Added to the output.
    played_branch : Tensor of shape (out, in) or None
        A second weight, for the input before it was rounded.
    """

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.before: list[InputTransform] = []
        self.played_weight: Tensor | None = None
        self.played_input: ActivationQuantizer | None = None
        self.played_bias: Tensor | None = None
        self.played_branch: Tensor | None = None
        self.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``f(x) W^T + b``."""
        x = self.changed(x)
        rounded = x if self.played_input is None else self.played_input.fake(x)
        weight = self.weight if self.played_weight is None else self.played_weight.to(self.weight.dtype)
        y = nn.functional.linear(rounded, weight, self.bias)
        if self.played_branch is not None:
            y = y + nn.functional.linear(x, self.played_branch.to(x))
        return y if self.played_bias is None else y + self.played_bias.to(y)

    def changed(self, x: Tensor) -> Tensor:
        """Return the input (..., in) as the weight meets it: after ``before``."""
        for change in self.before:
            x = change(x)
        return x

    def plain(self) -> nn.Linear:
        """Return an ordinary ``nn.Linear`` over the same parameters; ``before`` is not part of it."""
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        linear.weight, linear.bias = self.weight, self.bias
        return linear.train(self.training)

    def add_to_bias(self, amount: Tensor) -> None:
        """Add (out,) values to the bias, which is made where there is none."""
        with torch.no_grad():
            if self.bias is None:
                self.bias = nn.Parameter(amount.to(self.weight.dtype), requires_grad=False)
            else:
                self.bias.copy_(self.bias.float() + amount)


@contextmanager
def played(
    linear: PreparedLinear,
    weight: Tensor | None = None,
    activation: ActivationQuantizer | None = None,
    bias: Tensor | None = None,
    branch: Tensor | None = None,
) -> Iterator[None]:
    """Let ``linear`` compute with other parts (see its attributes) for the length of a ``with`` block."""
    kept = linear.played_weight, linear.played_input, linear.played_bias, linear.played_branch
    linear.played_weight = kept[0] if weight is None else weight
    linear.played_input = kept[1] if activation is None else activation
    linear.played_bias = kept[2] if bias is None else bias
    linear.played_branch = kept[3] if branch is None else branch
    try:
        yield
    finally:
        linear.played_weight, linear.played_input, linear.played_bias, linear.played_branch = kept


class QuantizedLinear(nn.Module):
    """A linear layer over stored parts.

    Parameters
    ----------
    solved : Solved
        Quantized weight and what is added to it.
    activation : ActivationQuantizer, optional
        None leaves the input in floating point.
    bias : Tensor of shape (out,), optional
    before : sequence of InputTransform

    Notes
    -----
    Until :meth:`set_kernel` is called the layer computes with its dequantized weight, the reference that every
    kernel is tested against. The low-rank branch sees the changed but unrounded input. ``to``, ``cuda`` and the like
    move the stored parts too and prepare the kernel anew where they go; dtypes are those of the format and stay.
    """

    def __init__(
        self,
        solved: Solved,
        activation: ActivationQuantizer | None = None,
        bias: Tensor | None = None,
        before: tuple[InputTransform, ...] = (),
    ) -> None:
        super().__init__()
        self._solved = solved
        self.activation = activation
        self.before = tuple(before)
        self.out_features, self.in_features = solved.weight.shape
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.kernel: Any = None
        self._dense: tuple[Tensor, Tensor | None] | None = None
        self._keep_dense = False
        self._device = device_of(solved.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output (..., out) in the dtype of ``x``."""
        for change in self.before:
            x = change(x)
        if self.kernel is not None:
            return self.kernel(x)
        rounded = x if self.activation is None else self.activation.fake(x)
        main, extra = self._weights(x)
        y = nn.functional.linear(rounded, main, None if self.bias is None else self.bias.to(x))
        if extra is not None:
            y = y + nn.functional.linear(x, extra)
        return y

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        super()._apply(fn, recurse)
        device = fn(torch.empty(0, device=self._device)).device
        if device != self._device:
            had_kernel, solved = self.kernel is not None, self.solved
            self.kernel, self._dense, self._device = None, None, device
            self._solved, self.activation, self.before = (
                on_device(solved, device), on_device(self.activation, device),
                tuple(on_device(change, device) for change in self.before),
            )  # fmt: skip
            if had_kernel:
                from skerry.quant.runtime.choose import prepare_kernel

                self.set_kernel(prepare_kernel(self._solved, self.activation, self.bias))
        return self

    def dequantized(self) -> nn.Linear:
        """Return a float32 ``nn.Linear`` of the stored weight, without ``before`` and without input rounding."""
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
        with torch.no_grad():
            linear.weight.copy_(self.solved.dense())
            if self.bias is not None:
                linear.bias.copy_(self.bias)
        return linear

    def keep_dense(self, keep: bool = True) -> None:
        """Keep the dequantized weight in memory between calls: faster evaluation of a format without a kernel."""
        self._keep_dense = keep
        self._dense = None

    def set_kernel(self, kernel: Any) -> None:
        """Compute with ``kernel(x)`` from now on; None goes back to the reference.

        The kernel's packing takes the place of the stored weight, which its ``restore`` gives back.
        """
        self._solved = self.solved
        self.kernel = kernel
        self._dense = None
        if kernel is not None:
            self._solved = replace(self._solved, weight=None)  # type: ignore[arg-type]

    @property
    def solved(self) -> Solved:
        """Stored weight and what is added to it."""
        return self._solved if self.kernel is None else replace(self._solved, weight=self.kernel.restore())

    @property
    def nbytes(self) -> int:
        """Bytes as saved: weight, extras, bias and input transforms."""
        sides = [t for change in self.before for t in change.tensors().values()]
        sides += [] if self.bias is None else [self.bias]
        return self.solved.nbytes + sum(t.numel() * t.element_size() for t in sides)

    def extra_repr(self) -> str:
        """Return what ``print(model)`` shows."""
        activation = "float" if self.activation is None else f"{self.activation.bits} bit"
        weight = getattr(getattr(self.solved.weight, "grid", None), "bits", None)
        stored = self.solved.weight.kind if weight is None else f"{weight} bit"
        return f"{self.in_features}, {self.out_features}, weight {stored}, input {activation}"

    def settings(self) -> dict[str, Any]:
        """Return the activation quantizer's settings as plain data, or an empty dict."""
        if self.activation is None:
            return {}
        return {"kind": getattr(self.activation, "kind", type(self.activation).__name__)} | asdict(self.activation)  # type: ignore[call-overload]

    def _weights(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        if self._dense is not None and self._dense[0].dtype == x.dtype:
            return self._dense
        main = self.solved.weight.dequantize()
        if self.solved.sparse is not None:
            main = main + self.solved.sparse.dense()
        extra = None if self.solved.low_rank is None else self.solved.low_rank.dense().to(x)
        found = main.to(x), extra
        if self._keep_dense:
            self._dense = found
        return found
