"""A masked-diffusion language model: a transformer that sees both sides and fills in what is masked.

Nie et al. (2025), "Large language diffusion models" (LLaDA, arXiv 2502.09992): RMSNorm, rotary positions, gated MLP, no
causal mask, one [MASK] id. The layers bear the names of transformers' Llama, so whatever is known of one (which layers
share an input, what can be folded) holds for the other. ``causal=True`` gives the autoregressive twin of the same size,
``shifted=True`` Dream's form (arXiv 2508.15487), whose head at position i speaks of token i + 1.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from skerry.core.errors import ParameterError

__all__ = ["LEAST_MASKED", "MaskedDiffusionLM", "corrupt", "diffusion_loss", "next_token_loss"]

LEAST_MASKED = 1e-3  # the share of masked tokens never goes below: 1/t is the loss's weight


class MaskedDiffusionLM(nn.Module):
    """Logits of every token, from a sequence some of whose tokens are masked.

    Parameters
    ----------
    vocab_size : int
        All ids, [MASK] among them.
    width : int, default 128
    blocks : int, default 4
    heads : int, default 4
    hidden : int, optional
        Width inside the MLP; three times ``width`` by default.
    kv_heads : int, optional
        Heads of keys and values (grouped-query attention); ``heads`` by default.
    mask_id : int, optional
        The id of [MASK]; the last by default.
    rope_theta : float, default 10000
    eps : float, default 1e-5
        Of the norms.
    causal : bool, default False
        Attend to the left only: the autoregressive twin.
    shifted : bool, default False
        The head at position i predicts token i + 1; :meth:`forward` moves its logits to the token that they speak of.

    Raises
    ------
    ParameterError
        If heads do not divide the width into even parts, or key heads the heads.

    Examples
    --------
    >>> model = MaskedDiffusionLM(vocab_size=11, width=16, blocks=2, heads=2)
    >>> tokens = torch.tensor([[1, 2, model.mask_id, 4]])
    >>> model(tokens).shape
    torch.Size([1, 4, 11])
    """

    def __init__(
        self,
        vocab_size: int,
        width: int = 128,
        blocks: int = 4,
        heads: int = 4,
        hidden: int | None = None,
        *,
        kv_heads: int | None = None,
        mask_id: int | None = None,
        rope_theta: float = 10_000.0,
        eps: float = 1e-5,
        causal: bool = False,
        shifted: bool = False,
    ) -> None:
        super().__init__()
        kv_heads = kv_heads or heads
        hidden = hidden or 3 * width
        if width % (2 * heads):
            raise ParameterError(f"{heads} heads do not divide a width of {width} into even parts")
        if heads % kv_heads:
            raise ParameterError(f"{kv_heads} key heads do not divide {heads} heads")
        self.config = SimpleNamespace(
            model_type="llada",
            vocab_size=vocab_size,
            hidden_size=width,
            intermediate_size=hidden,
            num_hidden_layers=blocks,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            rope_theta=rope_theta,
            rms_norm_eps=eps,
            tie_word_embeddings=False,
            causal=causal,
            shifted=shifted,
        )
        self.mask_id = vocab_size - 1 if mask_id is None else mask_id
        self.embed_tokens = nn.Embedding(vocab_size, width)
        self.layers = nn.ModuleList(_Block(width, heads, kv_heads, hidden, eps, causal=causal) for _ in range(blocks))
        self.norm = nn.RMSNorm(width, eps=eps)
        self.lm_head = nn.Linear(width, vocab_size, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                writer = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=0.02 if not writer else 0.02 / (2 * blocks) ** 0.5)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return logits (B, L, V) of tokens (B, L)."""
        x = self.embed_tokens(input_ids)
        turn = _rotary(input_ids.shape[1], self.layers[0].self_attn.size, self.config.rope_theta, x)
        for layer in self.layers:
            x = layer(x, turn)
        logits = self.lm_head(self.norm(x))
        return torch.cat((logits[:, :1], logits[:, :-1]), dim=1) if self.config.shifted else logits


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, kv_heads: int, hidden: int, eps: float, *, causal: bool) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(width, eps=eps)
        self.self_attn = _Attention(width, heads, kv_heads, causal=causal)
        self.post_attention_layernorm = nn.RMSNorm(width, eps=eps)
        self.mlp = _GatedMLP(width, hidden)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), turn)
        return x + self.mlp(self.post_attention_layernorm(x))


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, kv_heads: int, *, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.size = width // heads
        self.repeats = heads // kv_heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, kv_heads * self.size, bias=False)
        self.v_proj = nn.Linear(width, kv_heads * self.size, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (-1, self.size)).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.v_proj))
        q, k = _turned(q, turn), _turned(k, turn)
        if self.repeats > 1:
            k, v = k.repeat_interleave(self.repeats, 1), v.repeat_interleave(self.repeats, 1)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.o_proj(y.transpose(1, 2).flatten(2))


class _GatedMLP(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


def _rotary(length: int, size: int, theta: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosines and sines (L, size) of the positions' angles."""
    speed = theta ** (-torch.arange(0, size, 2, device=like.device, dtype=torch.float32) / size)
    angle = torch.outer(torch.arange(length, device=like.device, dtype=torch.float32), speed).repeat(1, 2)
    return angle.cos().to(like), angle.sin().to(like)


def _turned(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * turn[0] + torch.cat((-second, first), dim=-1) * turn[1]


def corrupt(
    x: Tensor,
    mask_id: int,
    t: Tensor | float | None = None,
    *,
    answer: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mask every token of a sequence with the sequence's own probability.

    Parameters
    ----------
    x : int64 Tensor of shape (B, L)
    mask_id : int
    t : float or Tensor of shape (B,), optional
        In [0, 1]; drawn uniformly by default. The probability is ``(1 - 0.001) t + 0.001``, except that a ``t`` of
        0 leaves the text clean.
    answer : bool Tensor of shape (B, L), optional
        Where tokens may be masked (fine-tuning masks the response only).
    generator : torch.Generator, optional

    Returns
    -------
    noisy : int64 Tensor of shape (B, L)
    masked : bool Tensor of shape (B, L)
    probability : float32 Tensor of shape (B,)

    Examples
    --------
    >>> corrupt(torch.tensor([[1, 2, 3]]), 9, 1.0)[0].tolist(), corrupt(torch.tensor([[1, 2, 3]]), 9, 0.0)[0].tolist()
    ([[9, 9, 9]], [[1, 2, 3]])
    """
    if t is None:
        t = torch.rand(len(x), generator=generator)
    t = torch.as_tensor(t, dtype=torch.float32).expand(len(x))
    probability = torch.where(t > 0, (1 - LEAST_MASKED) * t + LEAST_MASKED, 0.0).to(x.device)
    masked = torch.rand(x.shape, generator=generator).to(x.device) < probability[:, None]
    if answer is not None:
        masked &= answer
    return x.masked_fill(masked, mask_id), masked, probability


def diffusion_loss(
    model: MaskedDiffusionLM,
    x: Tensor,
    t: Tensor | float | None = None,
    *,
    answer: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the mean over sequences of ``sum of the masked tokens' cross entropies / (t L)``, LLaDA eq. 3.

    With ``answer`` L counts the tokens of the answer. The mean over t bounds the negative log likelihood of a token.

    Parameters
    ----------
    model : MaskedDiffusionLM
    x : int64 Tensor of shape (B, L)
    t, answer, generator
        See :func:`corrupt`.

    Returns
    -------
    Tensor of shape ()

    Examples
    --------
    >>> model = MaskedDiffusionLM(vocab_size=11, width=16, blocks=2, heads=2)
    >>> diffusion_loss(model, torch.zeros(2, 8, dtype=torch.int64), 1.0).shape
    torch.Size([])
    """
    noisy, masked, probability = corrupt(x, model.mask_id, t, answer=answer, generator=generator)
    length = x.new_full((len(x),), x.shape[1]) if answer is None else answer.sum(1).clamp(min=1)
    weight = (1.0 / (probability * length))[:, None].expand(x.shape)[masked]
    losses = nn.functional.cross_entropy(model(noisy)[masked], x[masked], reduction="none")
    return (losses * weight).sum() / len(x)


def next_token_loss(model: MaskedDiffusionLM, x: Tensor) -> Tensor:
    """Return the mean cross entropy of the next token, for the causal twin; ``x`` is (B, L)."""
    return nn.functional.cross_entropy(model(x)[:, :-1].flatten(0, 1), x[:, 1:].flatten())
