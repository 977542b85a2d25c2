"""A Mamba block whose projections are five linear layers, and whose scan multiplies operands that can be rounded.

Gu & Dao (2023), "Mamba" (arXiv 2312.00752); the split is the first step of MambaQuant (arXiv 2501.13484): states and
gates, and time step, B and C, have ranges of their own, so each gets its own transform and quantizer::

    xs = u W_s^T          z = u W_z^T                      u the normed input, (tokens, d)
    c  = SiLU(depthwise causal convolution of xs)          (tokens, D)
    t  = c W_t^T          B = c W_B^T    C = c W_C^T       (tokens, r), (tokens, N) twice
    dt = softplus(t W_dt^T + b)
    h  = exp(-dt e^A_log) h + dt B c                       the scan, always in floating point, (D, N)
    y  = h C + D_skip c                                    both operands of this product can be rounded
    out = (y f_s(z)) W_o^T,   f_s(v) = v sigmoid(s v)      s = 1 is SiLU
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from skerry.core.errors import ModelError
from skerry.deep.hadamard import hadamard_matrix
from skerry.deep.recurrence import linear_recurrence
from skerry.quant.linear import BlockRotation
from skerry.quant.recipe import from_plain, to_plain

__all__ = ["GatedOutput", "SelectiveScan", "SplitMambaBlock", "SplitMambaMixer", "gated_silu", "split_linear"]

CHUNK = 2**22  # states (numbers) held at a time
ROUNDED = ("conv_input", "state", "readout")


def gated_silu(v: Tensor, scale: Tensor | None = None) -> Tensor:
    """Return ``v * sigmoid(scale * v)`` (MambaQuant's S-SiLU): ``f_s(z / s) = SiLU(z) / s``.

    Parameters
    ----------
    v : Tensor of shape (..., D)
    scale : Tensor of shape (D,), optional
        None is SiLU.

    Examples
    --------
    >>> z, s = torch.tensor([2.0]), torch.tensor([4.0])
    >>> round(gated_silu(z / s, s).item(), 6), round((nn.functional.silu(z) / s).item(), 6)
    (0.440399, 0.440399)
    """
    return nn.functional.silu(v) if scale is None else v * torch.sigmoid(v * scale.to(v))


def split_linear(linear: nn.Linear, sizes: list[int]) -> list[nn.Linear]:
    """Return linear layers that give consecutive parts of the outputs of one; the weights are copies.

    Parameters
    ----------
    linear : nn.Linear
        Of ``sum(sizes)`` outputs.
    sizes : list of int
    """
    biases = [None] * len(sizes) if linear.bias is None else linear.bias.detach().split(sizes)
    parts = []
    for W, bias in zip(linear.weight.detach().split(sizes), biases, strict=True):
        part = nn.Linear(linear.in_features, len(W), bias=bias is not None, device="meta", dtype=W.dtype)
        part.weight = nn.Parameter(W.clone(), requires_grad=linear.weight.requires_grad)
        if bias is not None:
            part.bias = nn.Parameter(bias.clone(), requires_grad=linear.weight.requires_grad)
        parts.append(part.train(linear.training))
    return parts


class SelectiveScan(nn.Module):
    """One direction of a Mamba mixer between its outer projections, see the head of this file.

    Parameters
    ----------
    core : Module
        With ``conv1d``, ``x_proj``, ``dt_proj``, ``A_log`` and ``D``, which are shared; ``x_proj`` is copied.

    Attributes
    ----------
    channel_scale : buffer of shape (D,) or None
        The states are divided by it before they are rounded, the product is multiplied by it.
    state_rotation : BlockRotation or None
        Turns the states' N axis before they are rounded; ``C_proj`` holds the counterpart.
    conv_input, state, readout : ActivationQuantizer or None
        Round the convolution's input, the states (one token's D x N numbers together) and C.
    listener : callable or None
        Called with ("conv" | "state" | "readout", tensor) for statistics.
    """

    def __init__(self, core: Any) -> None:
        super().__init__()
        self.conv1d, self.A_log, self.D, self.dt_proj = core.conv1d, core.A_log, core.D, core.dt_proj
        states = self.A_log.shape[1]
        rank = core.x_proj.out_features - 2 * states
        self.step_proj, self.B_proj, self.C_proj = split_linear(core.x_proj, [rank, states, states])
        self.register_buffer("channel_scale", None)
        self.register_buffer("state_matrix", None)
        self.state_rotation: BlockRotation | None = None
        self.conv_input: Any = None
        self.state: Any = None
        self.readout: Any = None
        self.listener: Callable[[str, Tensor], None] | None = None
        self.train(core.training)

    def forward(self, xs: Tensor) -> Tensor:
        """Return the states read out (sequences, tokens, D) of ``xs`` (sequences, tokens, D)."""
        return self.scanned(xs)

    def scanned(self, xs: Tensor, cache: Any = None, mask: Tensor | None = None, layer: int | None = None) -> Tensor:
        """Return what :meth:`forward` does; a cache is continued and updated, tokens outside of a mask are 0."""
        past = None if cache is None else cache.get_recurrent_state(layer, state_idx=0)
        c = _masked(nn.functional.silu(self._convolved(xs, cache, layer)), mask)
        dt = nn.functional.softplus(self.dt_proj(self.step_proj(c)))
        y, last = self._scan(c, dt, self.B_proj(c), self.C_proj(c), past)
        if cache is not None:
            cache.update_recurrent_state(last, layer)
        return y

    def rotate_state(self, rotation: BlockRotation) -> None:
        """Turn the states before the product with C, and C with them, in place.

        Raises
        ------
        ModelError
            If they are turned already.
        """
        if self.state_rotation is not None:
            raise ModelError("the states of this mixer are rotated already")
        with torch.no_grad():  # rows of W_C are the N axis: C R = x (R^T W_C)^T
            W = self.C_proj.weight
            W.copy_(rotation(W.double().T).T)
            if self.C_proj.bias is not None:
                self.C_proj.bias.copy_(rotation(self.C_proj.bias.double()))
        self.state_rotation, self.state_matrix = rotation, rotation.matrix

    def meta(self) -> dict[str, Any]:
        """Return what JSON must keep beside the tensors."""
        return {
            "channel_scale": self.channel_scale is not None,
            "state_rotation": None if self.state_rotation is None else self.state_rotation.meta(),
            "state_matrix": self.state_matrix is not None,
        } | {name: to_plain(getattr(self, name)) for name in ROUNDED}

    def take_meta(self, meta: Mapping[str, Any]) -> None:
        """Take the form that :meth:`meta` told; the buffers' values are filled in later."""
        D, N = self.A_log.shape
        if meta.get("channel_scale"):
            self.channel_scale = torch.empty(D, device="meta")
        rotation = meta.get("state_rotation")
        if meta.get("state_matrix"):
            self.state_matrix = torch.empty(N, N, dtype=torch.float64, device="meta")
        if rotation is not None:
            if rotation.get("block") != N:
                raise ModelError(f"a Mamba block turns {rotation.get('block')} of its {N} states")
            self.state_rotation = BlockRotation.from_tensors(rotation, {"matrix": self.state_matrix})
        for name in ROUNDED:
            part = from_plain(meta.get(name))
            if part is not None and not hasattr(part, "fake"):
                raise ModelError(f"a Mamba block has an unknown quantizer for its {name}")
            setattr(self, name, part)

    def _convolved(self, x: Tensor, cache: Any, layer: int | None) -> Tensor:
        count = x.shape[1]
        if self.listener is not None:
            self.listener("conv", x)
        x = x.transpose(1, 2)
        if cache is not None:
            kernel = self.conv1d.kernel_size[0]
            x = cache.update_conv_state(x, layer, conv_kernel_size=kernel)
        if self.conv_input is not None:
            x = self.conv_input.fake(x)
        width = x.shape[-1]  # the convolution pads both sides: what lies past the last token is cut
        return self.conv1d(x.to(self.conv1d.weight.dtype))[:, :, :width][:, :, -count:].transpose(1, 2).to(x.dtype)

    def _scan(self, c: Tensor, dt: Tensor, B: Tensor, C: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return ``h C + D c`` (sequences, tokens, D) and the last state (sequences, D, N)."""
        kind = torch.promote_types(c.dtype, torch.float32)
        A = -torch.exp(self.A_log.to(kind))
        c, dt, B, C = (v.to(kind).transpose(0, 1) for v in (c, dt, B, C))  # tokens first
        size = max(1, CHUNK // max(1, c[0].numel() * A.shape[1]))
        state = c.new_zeros(*c.shape[1:], A.shape[1]) if past is None else past.to(kind)
        found = []
        for part, step, b, readout in zip(*(v.split(size) for v in (c, dt, B, C)), strict=True):
            h = linear_recurrence(torch.exp(step[..., None] * A), (step * part)[..., None] * b[:, :, None, :], state)
            state = h[-1]
            found.append(self._read(h, readout))
        y = torch.cat(found) + c * self.D.to(kind)
        return y.transpose(0, 1), state

    def _read(self, h: Tensor, C: Tensor) -> Tensor:
        """Return the product of states (tokens, sequences, D, N) and C (tokens, sequences, N)."""
        if self.listener is not None:
            self.listener("state", h)
            self.listener("readout", C)
        scale = self.channel_scale
        if scale is not None:
            h = h / scale.to(h)[:, None]
        if self.state_rotation is not None:
            R = hadamard_matrix(h.shape[-1], h.dtype) if self.state_matrix is None else self.state_matrix
            h = h @ R.to(h)  # N is small: a product is several times as fast as the fast transform
        if self.state is not None:
            h = self.state.fake(h.flatten(-2)).reshape(h.shape)
        if self.readout is not None:
            C = self.readout.fake(C)
        y = (h @ C[..., None]).squeeze(-1)
        return y if scale is None else y * scale.to(y)


class GatedOutput:
    """What mixers with ``gate_proj`` and a buffer ``gate_scale``, the s of the gate's activation, have in common.

    ``scans`` are their directions, which read the outputs of one ``states_proj``.
    """

    gate_proj: nn.Linear
    gate_scale: Tensor | None
    scans: list[SelectiveScan]

    def set_gate_scale(self, scale: Tensor) -> None:
        """Divide the gates by ``scale`` (D,), in place; outputs of the gate become ``1 / scale`` of what they were."""
        with torch.no_grad():
            divide_rows(self.gate_proj, scale)
            self.gate_scale = scale.float() if self.gate_scale is None else self.gate_scale * scale.float()


class SplitMambaMixer(GatedOutput, SelectiveScan):
    """The mixer of a Mamba block, see the head of this file.

    Parameters
    ----------
    mixer : Module
        ``MambaMixer`` of transformers; its parameters are shared, those of ``in_proj`` and ``x_proj`` copied.
    """

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__(mixer)
        if mixer.activation not in ("silu", "swish"):
            raise ModelError(f"a Mamba block with the activation {mixer.activation!r} is not known here, only silu")
        self.config, self.layer_idx = mixer.config, mixer.layer_idx
        size = mixer.intermediate_size
        self.states_proj, self.gate_proj = split_linear(mixer.in_proj, [size, size])
        self.out_proj = mixer.out_proj
        self.register_buffer("gate_scale", None)
        self.train(mixer.training)

    @property
    def scans(self) -> list[SelectiveScan]:  # type: ignore[override]
        """Its only direction: itself."""
        return [self]

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        cache: Any = None,
        attention_mask: Tensor | None = None,
        cache_params: Any = None,
        **others: Any,
    ) -> Tensor:
        """Return the mixer's output (sequences, tokens, d); a cache is continued and updated.

        ``cache_params`` is what transformers called ``cache`` before its version 5.24.
        """
        cache = cache_params if cache is None else cache
        x = _masked(hidden_states, attention_mask)
        y = self.scanned(self.states_proj(x), cache, attention_mask, self.layer_idx)
        y = y * gated_silu(self.gate_proj(x), self.gate_scale).to(y)
        return self.out_proj(y.to(hidden_states.dtype))

    def meta(self) -> dict[str, Any]:
        """Return what JSON must keep beside the tensors."""
        return {"gate_scale": self.gate_scale is not None} | super().meta()

    def take_meta(self, meta: Mapping[str, Any]) -> None:
        """Take the form that :meth:`meta` told; the buffers' values are filled in later."""
        if meta.get("gate_scale"):
            self.gate_scale = torch.empty(len(self.D), device="meta")
        super().take_meta(meta)


class SplitMambaBlock(nn.Module):
    """Norm, :class:`SplitMambaMixer`, residual: takes the place of ``MambaBlock`` of transformers.

    Parameters
    ----------
    block : Module
    """

    kind = "mamba_block"

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.config, self.layer_idx = block.config, block.layer_idx
        self.residual_in_fp32 = block.residual_in_fp32
        self.norm = block.norm
        self.mixer = SplitMambaMixer(block.mixer)
        self.train(block.training)

    def forward(
        self,
        hidden_states: Tensor,
        cache: Any = None,
        attention_mask: Tensor | None = None,
        cache_params: Any = None,
        **others: Any,
    ) -> Tensor:
        """Return the block's output (sequences, tokens, d)."""
        residual = hidden_states
        x = self.norm(hidden_states.to(self.mixer.conv1d.weight.dtype))
        if self.residual_in_fp32:
            residual = residual.to(torch.promote_types(residual.dtype, torch.float32))
        return residual + self.mixer(x, cache, attention_mask, cache_params)

    def meta(self) -> dict[str, Any]:
        """Return what JSON must keep beside the tensors."""
        return {"kind": self.kind} | self.mixer.meta()

    @classmethod
    def from_meta(cls, block: nn.Module, meta: Mapping[str, Any]) -> SplitMambaBlock:
        """Return ``block`` (of transformers, or split) in the form that :meth:`meta` told."""
        found = block if isinstance(block, cls) else cls(block)
        found.mixer.take_meta(meta)
        return found


def divide_rows(linear: Any, scale: Tensor) -> None:
    """Divide a linear layer's outputs by ``scale`` (out,), in place."""
    linear.weight.copy_(linear.weight.double() / scale.double()[:, None])
    if linear.bias is not None:
        linear.bias.copy_(linear.bias.double() / scale.double())


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else (x * mask[:, :, None]).to(x.dtype)
