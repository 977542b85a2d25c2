"""Sigmoid gates that let an attention head do nothing without an outlier anywhere.

Bondarenko et al., NeurIPS 2023 (arXiv 2306.12929), section 4.2: a gate per head and token, computed from the block
input, scales what the head returns. Kind ``"element"``, a gate per channel, is another method: the gated attention
that "A Unified View of Attention and Residual Sinks" (arXiv 2601.22966) takes as its base; its head-wise form is
``"all-heads"``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from skerry.core.errors import ParameterError, nearest

__all__ = ["GATES", "HeadGate"]

GATES = ("linear", "mlp", "all-heads", "element", "unconditional")


class HeadGate(nn.Module):
    """Gate values in (0, 1) for each head and token, from the hidden state in front of the q, k and v projections.

    ========================  =================================  =========================================
    kind                      parameters                         used in the paper for
    ========================  =================================  =========================================
    ``"linear"``              H (d / H + 1)                      OPT-125m and 350m, ViT
    ``"mlp"``                 H ((d / H) h + 2 h + 1)            BERT; linear, ReLU, linear
    ``"all-heads"``           H (d + 1)                          OPT-1.3B; every head reads the whole state
    ``"element"``             H head_dim (d + 1)                 (arXiv 2601.22966) a gate for each channel
    ``"unconditional"``       H                                  ablation: a free number for each head
    ========================  =================================  =========================================

    Parameters
    ----------
    kind : str
    d_model, n_heads : int
        ``"linear"`` and ``"mlp"`` give head i the i-th of ``n_heads`` equal slices of the input.
    head_dim : int, optional
        Channels of one head's output, used by ``"element"`` alone. Default: ``d_model // n_heads``.
    hidden : int, optional
        Width h of ``"mlp"``. Default: a quarter of the slice, at least 1.
    init : float, optional
        Start value pi of the gate, strictly between 0 and 1; the bias becomes ``logit(pi)``. The paper's OPT uses 0.25
        and finds 0.25 to 0.9 good. Default: PyTorch's start of a linear layer, pi about 0.5.
    pooled : bool, default False
        One gate for a head and sequence: the mean of the logits over the tokens. It reads the whole sequence, so it is
        refused in causal attention.
    bias : bool, default True
        False leaves out the last bias (arXiv 2601.22966 has none); ``init`` then has no meaning.
    finetune_std : float, optional
        To put gates into a trained network: the last weights start from N(0, std) and the gate is multiplied by
        ``1 / init`` (``init`` defaults to 0.5). At 0 the network starts unchanged; the paper takes 0.01 for BERT and
        0.001 for OPT, and starts nearly unchanged.

    Raises
    ------
    ParameterError
        For an unknown kind, a width that does not divide, or an ``init`` outside (0, 1).

    Examples
    --------
    >>> import torch
    >>> gate = HeadGate("linear", d_model=768, n_heads=12, init=0.25)
    >>> sum(p.numel() for p in gate.parameters()), gate(torch.zeros(2, 5, 768)).shape
    (780, torch.Size([2, 12, 5, 1]))
    """

    def __init__(
        self,
        kind: str,
        d_model: int,
        n_heads: int,
        *,
        head_dim: int | None = None,
        hidden: int | None = None,
        init: float | None = None,
        pooled: bool = False,
        bias: bool = True,
        finetune_std: float | None = None,
    ) -> None:
        super().__init__()
        if kind not in GATES:
            raise ParameterError(f"unknown gate {kind!r}: {nearest(kind, GATES)}")
        if kind in ("linear", "mlp") and d_model % n_heads:
            raise ParameterError(f"a {kind!r} gate slices the input: {n_heads} heads do not divide d_model={d_model}")
        if finetune_std is not None and init is None:
            init = 0.5
        if init is not None and not 0 < init < 1:
            raise ParameterError(f"init is {init}: give the start of the gate, strictly between 0 and 1")
        if init is not None and not bias:
            raise ParameterError("a gate without a bias starts at 0.5: leave out init, or give it its bias")
        if kind == "unconditional" and not bias:
            raise ParameterError("an unconditional gate is its bias: bias=False leaves nothing")
        self.kind, self.d_model, self.n_heads, self.init = kind, d_model, n_heads, init
        self.head_dim = head_dim or d_model // n_heads
        self.pooled, self.finetune_std = pooled, finetune_std
        self.scale = 1.0 if finetune_std is None else 1.0 / init
        width = d_model // n_heads
        self.hidden = (hidden or max(1, width // 4)) if kind == "mlp" else None
        if kind == "mlp":
            self.hidden_weight = nn.Parameter(torch.empty(n_heads, self.hidden, width))
            self.hidden_bias = nn.Parameter(torch.empty(n_heads, self.hidden))
        n_out = n_heads * self.head_dim if kind == "element" else n_heads
        self._n_in = {"linear": width, "mlp": self.hidden, "unconditional": 0}.get(kind, d_model)
        if self._n_in:
            self.weight = nn.Parameter(torch.empty(n_out, self._n_in))
        else:
            self.register_parameter("weight", None)
        self.bias = nn.Parameter(torch.empty(n_out)) if bias else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the start values again."""
        if self.kind == "mlp":
            bound = 1 / math.sqrt(self.d_model // self.n_heads)
            self.hidden_weight.uniform_(-bound, bound)
            self.hidden_bias.uniform_(-bound, bound)
        bound = 1 / math.sqrt(self._n_in) if self._n_in else 0.0
        if self.weight is not None:
            if self.finetune_std is None:
                self.weight.uniform_(-bound, bound)
            else:
                self.weight.normal_(0.0, self.finetune_std)
        if self.bias is not None:
            if self.init is None:
                self.bias.uniform_(-bound, bound)
            else:
                self.bias.fill_(math.log(self.init / (1 - self.init)))

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits, (B, T, H) or (B, T, H * head_dim), of the block input ``x`` (B, T, d_model)."""
        if self.kind == "unconditional":
            return self.bias.expand(*x.shape[:-1], -1)
        if self.kind in ("all-heads", "element"):
            return nn.functional.linear(x, self.weight, self.bias)
        x = x.unflatten(-1, (self.n_heads, -1))
        if self.kind == "mlp":
            x = torch.relu(torch.einsum("...hd,hkd->...hk", x, self.hidden_weight) + self.hidden_bias)
        logits = torch.einsum("...hd,hd->...h", x, self.weight)
        return logits if self.bias is None else logits + self.bias

    def forward(self, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        """Return the gate of the block input ``x`` (B, T, d_model).

        Parameters
        ----------
        x : Tensor of shape (B, T, d_model)
        pad_mask : Tensor of bool of shape (B, T), optional
            True at padding, which a pooled gate leaves out of its mean.

        Returns
        -------
        Tensor of shape (B, H, T, 1), or (B, H, T, head_dim) for ``"element"``; T is 1 where the gate is pooled.
        """
        logits = self.logits(x)
        if self.pooled:
            if pad_mask is None:
                logits = logits.mean(1, keepdim=True)
            else:
                real = ~pad_mask[..., None]
                logits = (logits * real).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp_min(1)
        gate = torch.sigmoid(logits) * self.scale
        return gate.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)

    @torch.no_grad()
    def fold_input_affine_(self, scale: Tensor, shift: Tensor) -> None:
        """Rewrite the weights so that ``gate(z)`` becomes what ``gate(scale * z + shift)`` was, (d_model,) each.

        This is what lets a norm in front of the attention be fused into its readers.
        """
        if self.kind == "unconditional":
            return
        if self.kind == "mlp":
            scale, shift = scale.view(self.n_heads, 1, -1), shift.view(self.n_heads, 1, -1)
            self.hidden_bias += (self.hidden_weight * shift).sum(-1)
            self.hidden_weight *= scale
            return
        if self.kind == "linear":
            scale, shift = scale.view(self.n_heads, -1), shift.view(self.n_heads, -1)
        moved = (self.weight * shift).sum(-1)
        if self.bias is not None:
            self.bias += moved
        elif moved.any():
            self.bias = nn.Parameter(moved)
        self.weight *= scale

    def extra_repr(self) -> str:
        """Return the arguments that differ between models."""
        text = f"{self.kind!r}, d_model={self.d_model}, n_heads={self.n_heads}, init={self.init}"
        return text + (", pooled" if self.pooled else "") + (f", scale={self.scale}" if self.scale != 1 else "")
