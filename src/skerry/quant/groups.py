"""The unit of work of a transform: the linear layers that read one tensor, and the layer that made it.

Folding ``(x - z) / s`` into the layer before and its inverse into the readers changes no function. Where there is
nothing to fold into, or the tensor is used elsewhere too, the change stays in front of the readers at run time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from skerry.core.errors import ModelError
from skerry.quant.linear import InputAffine, InputTransform, PreparedLinear

__all__ = ["Group", "ShiftedNorm"]


class ShiftedNorm(nn.Module):
    """A norm without bias, and a bias behind it: what shifting makes of an RMSNorm."""

    def __init__(self, norm: nn.Module, bias: Tensor) -> None:
        super().__init__()
        self.norm = norm
        self.bias = nn.Parameter(bias, requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """The inner norm's gain."""
        return self.norm.weight  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """Return ``norm(x) + bias``."""
        return self.norm(x) + self.bias


@dataclass
class Group:
    """Linear layers with one common input.

    Attributes
    ----------
    name : str
        For messages and reports, for example "model.layers.3.self_attn.qkv".
    consumers : dict of str to PreparedLinear
        All readers, by their names in the model.
    producer : str, optional
        Name of the norm or linear layer whose output is exactly the common input (for "rows": a linear layer whose
        output rows meet the input channels one to one through an operation that commutes with a positive scale).
    kind : {"norm", "rows", "none"}
        "norm": LayerNorm or RMSNorm of gain ``weight`` and perhaps ``bias``. "rows": only scaling can be folded.
    parent : str, optional
        Module whose output defines the error that matters (attention, gated MLP); the linear itself if None.
    repeats : int
        Each producer head feeds this many heads of the readers' input (grouped-query attention); their scales are
        made equal.
    head_size : int
        Channels of one head, with ``repeats > 1``.
    """

    name: str
    consumers: dict[str, PreparedLinear]
    producer: str | None = None
    kind: str = "none"
    parent: str | None = None
    repeats: int = 1
    head_size: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def width(self) -> int:
        """Channels of the common input."""
        return next(iter(self.consumers.values())).in_features

    @property
    def role(self) -> str:
        """Say "norm" where a norm before takes changes, else "": what recipes tell layers apart by."""
        return "norm" if self.can_shift() else ""

    def weight(self) -> Tensor:
        """Return the readers' weights stacked, float32 (sum of outs, in)."""
        return torch.cat([c.weight.detach().float() for c in self.consumers.values()])

    def can_shift(self) -> bool:
        """Return whether a shift is folded for free (a norm before, and nothing in between)."""
        return self.kind == "norm" and self.folds

    def rescale(self, model: nn.Module, scale: Tensor, shift: Tensor | None = None, *, fold: bool = True) -> None:
        """Let the readers see ``(x - shift) / scale`` and compute what they computed.

        Parameters
        ----------
        model : Module
            The whole model: the producer is looked up, and replaced where a norm needs a bias.
        scale : Tensor of shape (in,)
            Positive.
        shift : Tensor of shape (in,), optional
        fold : bool, default True
            Put the change into the producer where that is possible; False keeps it in front of the readers.

        Raises
        ------
        ModelError
            If a scale is not positive and finite.
        """
        scale = scale.float()
        if not bool((scale > 0).all() and torch.isfinite(scale).all()):
            raise ModelError(f"{self.name}: a channel scale is zero, negative or not finite")
        if shift is not None and not bool(shift.any()):
            shift = None
        folds = self.folds and fold
        if self.kind == "rows" and folds and shift is not None:
            raise ModelError(f"{self.name}: a shift cannot pass through the operation before it")
        if self.repeats > 1 and folds:
            scale = self._shared(scale)
        with torch.no_grad():
            for reader in self.consumers.values():
                W = reader.weight.float()
                if shift is not None:
                    reader.add_to_bias(W @ shift.float())
                reader.weight.copy_(W * scale)
            if not folds:
                affine = InputAffine(scale.clone(), None if shift is None else shift.float().clone())
                for reader in self.consumers.values():
                    reader.before.append(affine)
            elif self.kind == "norm":
                self._into_norm(model, scale, shift)
            else:
                self._into_rows(model, scale)

    def transform_input(self, change: InputTransform, weights: Mapping[str, Tensor]) -> None:
        """Put ``change`` in front of every reader and give them the weights that undo it."""
        with torch.no_grad():
            for name, reader in self.consumers.items():
                reader.before.append(change)
                reader.weight.copy_(weights[name].to(reader.weight.dtype))

    @property
    def folds(self) -> bool:
        """Return whether a change can go into the producer: nothing may stand in front of the readers yet."""
        return self.producer is not None and self.kind != "none" and not any(r.before for r in self.consumers.values())

    def _into_norm(self, model: nn.Module, scale: Tensor, shift: Tensor | None) -> None:
        norm = model.get_submodule(self.producer or "")
        gain, bias = norm.weight, getattr(norm, "bias", None)
        gain.copy_(gain.float() / scale)
        if bias is not None:
            bias.copy_((bias.float() - (0.0 if shift is None else shift)) / scale)
        elif shift is not None:
            model.set_submodule(self.producer or "", ShiftedNorm(norm, (-shift / scale).to(gain.dtype)))

    def _into_rows(self, model: nn.Module, scale: Tensor) -> None:
        linear = model.get_submodule(self.producer or "")
        rows = scale
        if self.repeats > 1:
            rows = scale.reshape(-1, self.repeats, self.head_size)[:, 0].reshape(-1)
        rows = rows[: linear.weight.shape[0]]
        if len(rows) != linear.weight.shape[0]:
            raise ModelError(f"{self.name}: {self.producer} has {linear.weight.shape[0]} rows for {len(rows)} channels")
        linear.weight.copy_(linear.weight.float() / rows[:, None])
        if linear.bias is not None:
            linear.bias.copy_(linear.bias.float() / rows)

    def _shared(self, scale: Tensor) -> Tensor:
        """Return the scale made equal (the largest) across the heads that share a producer head."""
        heads = scale.reshape(-1, self.repeats, self.head_size)
        return heads.amax(1, keepdim=True).expand_as(heads).reshape(-1)
