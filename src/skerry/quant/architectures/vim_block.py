"""A block of Vision Mamba whose projections are linear layers of their own, in both directions (see ``mamba_block``).

States and gates are made once; each direction has its convolution, its time step, its B and C and its scan::

    y = scan(xs) + reversed(scan'(reversed(xs)))           out = (y f_s(z)) W_o^T
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from skerry.core.errors import ModelError
from skerry.quant.architectures.mamba_block import GatedOutput, SelectiveScan, gated_silu, split_linear

__all__ = ["SplitVimBlock", "SplitVimMixer"]


class SplitVimMixer(GatedOutput, nn.Module):
    """Takes the place of :class:`~skerry.deep.vision_mamba.BidirectionalMixer`.

    Parameters
    ----------
    mixer : BidirectionalMixer
        Its parameters are shared, those of ``in_proj`` and ``x_proj`` copied.
    """

    def __init__(self, mixer: Any) -> None:
        super().__init__()
        size = mixer.out_proj.in_features
        self.states_proj, self.gate_proj = split_linear(mixer.in_proj, [size, size])
        self.forward_scan, self.backward_scan = SelectiveScan(mixer.forward_scan), SelectiveScan(mixer.backward_scan)
        self.out_proj = mixer.out_proj
        self.register_buffer("gate_scale", None)
        self.train(mixer.training)

    @property
    def scans(self) -> list[SelectiveScan]:  # type: ignore[override]
        """Both directions."""
        return [self.forward_scan, self.backward_scan]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return (images, tokens, d)."""
        xs = self.states_proj(hidden_states)
        y = self.forward_scan(xs) + self.backward_scan(xs.flip(1)).flip(1)
        y = y * gated_silu(self.gate_proj(hidden_states), self.gate_scale).to(y)
        return self.out_proj(y.to(hidden_states.dtype))


class SplitVimBlock(nn.Module):
    """Norm, :class:`SplitVimMixer`, residual: takes the place of :class:`~skerry.deep.vision_mamba.VisionMambaBlock`.

    Parameters
    ----------
    block : VisionMambaBlock
    """

    kind = "vim_block"

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm, self.mixer = block.norm, SplitVimMixer(block.mixer)
        self.train(block.training)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the block's output (images, tokens, d)."""
        return hidden_states + self.mixer(self.norm(hidden_states))

    def meta(self) -> dict[str, Any]:
        """Return what JSON must keep beside the tensors."""
        scans = [scan.meta() for scan in self.mixer.scans]
        return {"kind": self.kind, "gate_scale": self.mixer.gate_scale is not None, "scans": scans}

    @classmethod
    def from_meta(cls, block: Any, meta: Mapping[str, Any]) -> SplitVimBlock:
        """Return ``block`` (plain or split) in the form that :meth:`meta` told.

        Raises
        ------
        ModelError
            If the description is not one of two directions.
        """
        found = block if isinstance(block, cls) else cls(block)
        scans = meta["scans"]
        if not isinstance(scans, list) or len(scans) != len(found.mixer.scans):
            raise ModelError("a block of Vision Mamba has two directions")
        for scan, told in zip(found.mixer.scans, scans, strict=True):
            scan.take_meta(told)
        if meta.get("gate_scale"):
            found.mixer.gate_scale = torch.empty(found.mixer.gate_proj.out_features, device="meta")
        return found
