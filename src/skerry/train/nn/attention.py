"""Self-attention in which a head can do nothing: gated heads, clipped softmax, or both.

Bondarenko et al., "Quantizable Transformers", NeurIPS 2023 (arXiv 2306.12929). Plain gated attention runs on
``scaled_dot_product_attention``; clipped softmax has to see the probabilities, which fused kernels do not show.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from skerry.core.errors import ParameterError
from skerry.train.nn.gates import HeadGate
from skerry.train.nn.softmax import ClippedSoftmax

__all__ = ["GatedAttention"]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return x (B, H, T, c) turned by its positions: rotary embedding with the two halves of a head as pairs."""
    a, b = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-b, a], dim=-1) * sin).to(x.dtype)


class GatedAttention(nn.Module):
    """Multi-head self-attention whose heads are scaled by a learned gate: ``W_o (gate(x) * softmax(q k') v)``.

    Prefer gates in causal language models; encoders may take gates or :class:`skerry.train.nn.ClippedSoftmax`. With
    ``gate=None`` and ``softmax=None`` it is ordinary attention, the baseline of a comparison.

    Parameters
    ----------
    d_model, n_heads : int
    gate : str or Module or None, default "linear"
        A kind of :class:`skerry.train.nn.HeadGate`, a gate made beforehand (for its other arguments), or none.
    gate_init : float, optional
        Start of the gate; 0.25 in the paper's OPT. Default: about 0.5.
    softmax : Module, optional
        What turns masked scores (B, H, T, T) into probabilities, such as ``ClippedSoftmax(alpha=3.2, seq_len=T)``.
        Default: softmax through ``scaled_dot_product_attention``.
    causal : bool, default False
    n_kv_heads : int, optional
        Fewer key and value heads than query heads. Default: ``n_heads``.
    head_dim : int, optional
        Default: ``d_model // n_heads``.
    bias : bool, default True
        Of the four projections ``q_proj``, ``k_proj``, ``v_proj``, ``o_proj``.
    dropout : float, default 0.0
        Of the probabilities, after clipping.

    Attributes
    ----------
    explicit : bool
        Set it to True to form the probabilities in any case: then a forward hook on ``attention.softmax`` sees them.

    Raises
    ------
    ParameterError
        If the heads do not divide the width, or a pooled gate meets ``causal=True``.

    Examples
    --------
    >>> import torch
    >>> attention = GatedAttention(32, 4, gate="linear", gate_init=0.25, causal=True)
    >>> attention(torch.zeros(2, 5, 32)).shape
    torch.Size([2, 5, 32])
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        gate: str | nn.Module | None = "linear",
        gate_init: float | None = None,
        softmax: nn.Module | None = None,
        causal: bool = False,
        n_kv_heads: int | None = None,
        head_dim: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        n_kv_heads = n_kv_heads or n_heads
        if head_dim is None and d_model % n_heads:
            raise ParameterError(f"{n_heads} heads do not divide d_model={d_model}: change one, or give head_dim")
        if n_heads % n_kv_heads:
            raise ParameterError(f"{n_kv_heads} key heads do not divide {n_heads} query heads")
        if not 0 <= dropout < 1:
            raise ParameterError(f"dropout is {dropout}: give a share from 0 to below 1")
        self.d_model, self.n_heads, self.n_kv_heads = d_model, n_heads, n_kv_heads
        self.head_dim = head_dim or d_model // n_heads
        self.causal, self.dropout = causal, dropout
        self.q_proj = nn.Linear(d_model, n_heads * self.head_dim, bias=bias)
        self.k_proj = nn.Linear(d_model, n_kv_heads * self.head_dim, bias=bias)
        self.v_proj = nn.Linear(d_model, n_kv_heads * self.head_dim, bias=bias)
        self.o_proj = nn.Linear(n_heads * self.head_dim, d_model, bias=bias)
        if isinstance(gate, str):
            gate = HeadGate(gate, d_model, n_heads, head_dim=self.head_dim, init=gate_init)
        elif gate_init is not None:
            raise ParameterError("gate_init belongs to a gate named by its kind: set init in the gate that is given")
        if causal and getattr(gate, "pooled", False):
            raise ParameterError("a pooled gate reads tokens to come: causal attention needs a gate for each token")
        self.gate = gate
        self.explicit = softmax is not None
        # gamma 0 is softmax itself, kept in float32 and finite where every key is masked
        self.softmax = softmax or ClippedSoftmax(gamma=0.0)

    def _allowed(self, mask: Tensor | None, pad_mask: Tensor | None, x: Tensor) -> Tensor | None:
        """Return one mask for the scores: bool (True takes part) or additive; None if nothing is masked."""
        if mask is not None and mask.dim() == 3:
            mask = mask[:, None]
        extra = None if pad_mask is None else ~pad_mask[:, None, None, :]
        if self.causal:
            past = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
            extra = past if extra is None else extra & past
        if mask is None or extra is None:
            return extra if mask is None else mask
        return mask & extra if mask.dtype == torch.bool else torch.where(extra, mask, -torch.inf)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        pad_mask: Tensor | None = None,
        rotary: tuple[Tensor, Tensor] | None = None,
        need_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attend over ``x``.

        Parameters
        ----------
        x : Tensor of shape (B, T, d_model)
            The block input, after the norm of a pre-norm block; the gate reads it too.
        mask : Tensor of shape (T, T), (B, T, T) or (B, H, T, T), optional
            Bool, True where a key takes part, or added to the scores. ``causal=True`` is applied besides.
        pad_mask : Tensor of bool of shape (B, T), optional
            True at padding: no query sees these keys.
        rotary : pair of Tensor of shape (T, head_dim) or (B, 1, T, head_dim), optional
            Cosine and sine of the rotary position embedding, the two halves of a head being the pairs.
        need_weights : bool, default False
            Return the probabilities too (the explicit path).

        Returns
        -------
        Tensor of shape (B, T, d_model), and the probabilities (B, H, T, T) before dropout and gate if asked for.
        """
        q, k, v = (
            proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        if rotary is not None:
            q, k = _rotate(q, *rotary), _rotate(k, *rotary)
        out, weights = self._heads(q, k, v, x, mask, pad_mask, need_weights)
        if self.gate is not None:
            out = out * self.gate(x, pad_mask)
        out = self.o_proj(out.transpose(1, 2).flatten(2))
        return (out, weights) if need_weights else out

    def _heads(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        x: Tensor,
        mask: Tensor | None,
        pad_mask: Tensor | None,
        need_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Return what the heads read (B, H, T, c), before the gate, and the probabilities if they were formed."""
        dropout = self.dropout if self.training else 0.0
        if self.explicit or need_weights:
            scores, v = self._scores(q, k, v, x, mask, pad_mask)
            weights = self.softmax(scores)
            return nn.functional.dropout(weights, dropout) @ v, weights
        fused = self.causal and mask is None and pad_mask is None
        allowed = None if fused else self._allowed(mask, pad_mask, x)
        if allowed is not None and allowed.dtype != torch.bool:
            allowed = allowed.to(q.dtype)
        out = scaled_dot_product_attention(
            q, k, v, allowed, dropout, is_causal=fused, enable_gqa=self.n_kv_heads != self.n_heads
        )
        return out, None

    def _for_every_head(self, t: Tensor) -> Tensor:
        """Return keys or values (B, n_kv_heads, T, c) with a copy for every query head."""
        groups = self.n_heads // self.n_kv_heads
        return t.repeat_interleave(groups, dim=1) if groups > 1 else t

    def _scores(
        self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, mask: Tensor | None, pad_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return masked scores (B, H, T, T), and the values with a copy for every query head."""
        k, v = self._for_every_head(k), self._for_every_head(v)
        scores = q @ k.mT * self.head_dim**-0.5
        allowed = self._allowed(mask, pad_mask, x)
        if allowed is not None:
            if allowed.dtype == torch.bool:
                scores = scores.masked_fill(~allowed, -torch.inf)
            else:
                scores = scores + allowed
        return scores, v

    def extra_repr(self) -> str:
        """Return the arguments that differ between models."""
        return f"d_model={self.d_model}, n_heads={self.n_heads}, n_kv_heads={self.n_kv_heads}, causal={self.causal}"
