"""Five ways to give a causal head the scaling factor that softmax lacks, and one that shows what it is not.

An et al. (2025), "Systematic Outliers in Large Language Models" (arXiv 2502.06415), its variants (a) to (f): outliers
are how softmax attention scales a head's output by context; a head that has such a factor needs none.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from skerry.core.errors import ParameterError, nearest
from skerry.train.nn.attention import GatedAttention
from skerry.train.nn.gates import HeadGate

__all__ = ["CAUSAL_ATTENTIONS", "CausalAttention", "SigmoidWeights", "SoftmaxBesideKey"]

CAUSAL_ATTENTIONS = ("default", "value_bias", "context_bias", "attn_bias", "context_scale", "sigmoid")
STD = 0.02


def _wide(x: Tensor) -> Tensor:
    """Return x in float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class SigmoidWeights(nn.Module):
    """``sigmoid(s_i - log T)``: every key on its own, variant (f).

    Parameters
    ----------
    seq_len : int, optional
        T, the keys in training. Default: the keys of each call.

    Examples
    --------
    >>> import torch
    >>> SigmoidWeights()(torch.zeros(4))
    tensor([0.2000, 0.2000, 0.2000, 0.2000])
    """

    def __init__(self, seq_len: int | None = None) -> None:
        super().__init__()
        if seq_len is not None and seq_len < 1:
            raise ParameterError(f"seq_len is {seq_len}: give the number of keys in training, 1 or more")
        self.seq_len = seq_len

    def forward(self, scores: Tensor) -> Tensor:
        """Return weights of the shape and dtype of ``scores``, keys last."""
        offset = torch.log(torch.tensor(float(self.seq_len or scores.shape[-1])))
        return torch.sigmoid(_wide(scores) - offset.to(scores.device)).to(scores.dtype)


class SoftmaxBesideKey(nn.Module):
    """Softmax over the keys and one more logit; only the keys' probabilities are returned.

    Examples
    --------
    >>> import torch
    >>> SoftmaxBesideKey()(torch.zeros(1, 3), torch.zeros(1, 1))
    tensor([[0.2500, 0.2500, 0.2500]])
    """

    def forward(self, scores: Tensor, extra: Tensor) -> Tensor:
        """Return probabilities (..., T) for scores (..., T) and one more logit (..., 1); rows sum to 1 less its own."""
        joined = _wide(torch.cat([scores, extra], -1)).softmax(-1)
        return joined[..., :-1].to(scores.dtype)


class CausalAttention(GatedAttention):
    r"""Causal self-attention in the form that a study of outliers asks for.

    =================  ====================================================================================
    variant            what a head returns
    =================  ====================================================================================
    ``default``        (a) ``softmax(q K' / sqrt c) V``
    ``value_bias``     (b) (a) + v', a learned vector that starts at 0
    ``context_bias``   (c) (a) + p v', p the share of a learned key k' in ``softmax(q [k', K]' / sqrt c)``
    ``attn_bias``      (d) ``softmax(q [k', K]' / sqrt c) [v', V]``: k' and v' take part in attention itself
    ``context_scale``  (e) ``2 sigmoid(x w + b)`` times (a): 1 where the logits are 0
    ``sigmoid``        (f) ``sigmoid(q K' / sqrt c - log T) V``
    =================  ====================================================================================

    Only (d), (e) and (f) can scale a head's output by context; the paper finds that (b) and (c) keep the outliers.

    Parameters
    ----------
    d_model, n_heads : int
    variant : str, default "default"
    seq_len : int, optional
        T of ``sigmoid``. Default: the keys of each call.
    causal : bool, default True
    n_kv_heads, head_dim : int, optional
    bias : bool, default False
    dropout : float, default 0.0
        As for :class:`skerry.train.nn.GatedAttention`, whose ``forward`` it has.

    Raises
    ------
    ParameterError
        For an unknown variant, or heads that do not divide the width.

    Examples
    --------
    >>> import torch
    >>> attention = CausalAttention(32, 4, variant="attn_bias")
    >>> attention(torch.zeros(2, 5, 32)).shape
    torch.Size([2, 5, 32])
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        variant: str = "default",
        *,
        seq_len: int | None = None,
        causal: bool = True,
        n_kv_heads: int | None = None,
        head_dim: int | None = None,
        bias: bool = False,
        dropout: float = 0.0,
    ) -> None:
        if variant not in CAUSAL_ATTENTIONS:
            raise ParameterError(f"unknown variant {variant!r}: {nearest(variant, CAUSAL_ATTENTIONS)}")
        # 2 sigmoid(x w_h + b_h): the gate of another paper, started at 1
        gate = HeadGate("all-heads", d_model, n_heads, finetune_std=STD) if variant == "context_scale" else None
        softmax = {"sigmoid": SigmoidWeights(seq_len), "attn_bias": SoftmaxBesideKey()}.get(variant)
        super().__init__(
            d_model,
            n_heads,
            gate=gate,
            softmax=softmax,
            causal=causal,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            bias=bias,
            dropout=dropout,
        )
        self.variant = variant
        self.explicit = variant == "sigmoid"
        shape = (n_heads, self.head_dim)
        if variant == "value_bias":
            self.extra_value = nn.Parameter(torch.zeros(shape))
        elif variant in ("context_bias", "attn_bias"):
            self.extra_key = nn.Parameter(torch.randn(shape) * STD)
            self.extra_value = nn.Parameter(torch.randn(shape) * STD)

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
        if self.variant not in ("value_bias", "context_bias", "attn_bias"):
            return super()._heads(q, k, v, x, mask, pad_mask, need_weights)
        value = self.extra_value.to(v.dtype)[:, None]
        if self.variant == "value_bias":
            out, weights = super()._heads(q, k, v, x, mask, pad_mask, need_weights)
            return out + value, weights
        if self.variant == "context_bias":
            out, weights = super()._heads(q, k, v, x, mask, pad_mask, need_weights)
            scores, _ = self._scores(q, k, v, x, mask, pad_mask)
            return out + self._share(q, scores) * value, weights
        dropout = self.dropout if self.training else 0.0
        if self.explicit or need_weights:
            scores, v = self._scores(q, k, v, x, mask, pad_mask)
            weights = self.softmax(scores, self._logit(q))
            share = 1.0 - weights.sum(-1, keepdim=True)
            drop = nn.functional.dropout
            return drop(weights, dropout) @ v + drop(share, dropout) * value, weights
        k, v = self._for_every_head(k), self._for_every_head(v)
        allowed = self._allowed(mask, pad_mask, x)
        if allowed is not None:
            free = 1.0 if allowed.dtype == torch.bool else 0.0
            allowed = nn.functional.pad(allowed, (0, 1), value=free)  # every query sees the learned key
            allowed = allowed if allowed.dtype == torch.bool else allowed.to(q.dtype)
        key = self.extra_key.to(k.dtype)[:, None]
        k, v = (torch.cat([t, e.expand(len(t), -1, -1, -1)], dim=2) for t, e in ((k, key), (v, value)))
        return scaled_dot_product_attention(q, k, v, allowed, dropout), None

    def _logit(self, q: Tensor) -> Tensor:
        """Return the learned key's logit (B, H, T, 1)."""
        return (q * self.extra_key.to(q.dtype)[:, None]).sum(-1, keepdim=True) * self.head_dim**-0.5

    def _share(self, q: Tensor, scores: Tensor) -> Tensor:
        """Return the learned key's probability beside the keys, (B, H, T, 1)."""
        rest = _wide(scores).logsumexp(-1, keepdim=True)
        return torch.sigmoid(_wide(self._logit(q)) - rest).to(q.dtype)

    def extra_repr(self) -> str:
        """Return the arguments that differ between models."""
        return f"{super().extra_repr()}, variant={self.variant!r}"
