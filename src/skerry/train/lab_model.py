"""The small networks that outlier-safe parts are tried on: a GPT, and a ViT of the same blocks.

Pre-norm, learned positions, no biases, untied head: as plain as can be, with the norm, the attention, the feed-forward
layer and the embedding projection as arguments. Names are those that :func:`skerry.train.optim.split_params` and the
sink probe read.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, silu

from skerry.core.errors import DataError, ParameterError, nearest
from skerry.train.nn import (
    CausalAttention,
    ClippedSoftmax,
    DyT,
    GatedAttention,
    GatedDyT,
    GatedNorm,
    HeadGate,
    PreAffineRMSNorm,
    ProjectedEmbedding,
    ProjectedHead,
    ReLUWeights,
    SingleScaleRMSNorm,
    SoftmaxPlusOne,
    UnifiedNorm,
)

__all__ = ["ATTENTIONS", "FEED_FORWARDS", "NORMS", "SmallGPT", "SmallViT"]

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "rms": lambda d: nn.RMSNorm(d, eps=1e-6),
    "layer": nn.LayerNorm,
    "single": SingleScaleRMSNorm,
    "gated": GatedNorm,
    "pre-affine": PreAffineRMSNorm,
    "dyt": DyT,
    "gated-dyt": GatedDyT,
    "unified": lambda d: UnifiedNorm(d, warmup=100, ratio_warmup=100),
}
_CAUSAL = {
    "value-bias": "value_bias",
    "context-bias": "context_bias",
    "key-bias": "attn_bias",
    "context-scale": "context_scale",
    "sigmoid": "sigmoid",
}
ATTENTIONS = ("softmax", "gate", "gate-mlp", "gate-heads", "gate-element", "clip", "plus-one", "relu", *_CAUSAL)
FEED_FORWARDS = ("gelu", "swiglu", "glu")


def _attention(
    kind: str, dim: int, n_heads: int, seq_len: int, causal: bool, alpha: float, gate_init: float
) -> nn.Module:
    """Return attention of a kind; ``seq_len`` is the number of keys in training."""
    if kind in _CAUSAL:
        return CausalAttention(dim, n_heads, _CAUSAL[kind], seq_len=seq_len, causal=causal)
    softmax = {"clip": ClippedSoftmax(alpha, seq_len), "plus-one": SoftmaxPlusOne(), "relu": ReLUWeights(seq_len)}
    gates = {"gate": "linear", "gate-mlp": "mlp", "gate-heads": "all-heads", "gate-element": "element"}
    gate = HeadGate(gates[kind], dim, n_heads, init=gate_init) if kind in gates else None
    return GatedAttention(dim, n_heads, gate=gate, softmax=softmax.get(kind), causal=causal, bias=False)


class FeedForward(nn.Module):
    """Two linear layers around GELU, or a gated product: ``down(act(gate x) * up x)`` with SiLU or a sigmoid.

    The gated kinds are made narrower, so that all have about as many parameters, at a multiple of 32 (which keeps the
    Hadamard transform of their hidden activations in large blocks).
    """

    def __init__(self, kind: str, dim: int) -> None:
        super().__init__()
        self.kind = kind
        hidden = 4 * dim if kind == "gelu" else 32 * max(1, round(8 * dim / 3 / 32))
        self.gate = None if kind == "gelu" else nn.Linear(dim, hidden, bias=False)
        self.up = nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., dim)."""
        if self.gate is None:
            return self.down(gelu(self.up(x)))
        return self.down((silu if self.kind == "swiglu" else torch.sigmoid)(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """``x + attention(norm_1(x))``, then ``x + ffn(norm_2(x))``."""

    def __init__(self, dim: int, norm: str, attention: nn.Module, ffn: str) -> None:
        super().__init__()
        self.norm_1 = NORMS[norm](dim)
        self.attention = attention
        self.norm_2 = NORMS[norm](dim)
        self.ffn = FeedForward(ffn, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return the residual stream (B, T, dim) behind the block."""
        x = x + self.attention(self.norm_1(x))
        return x + self.ffn(self.norm_2(x))


class _Small(nn.Module):
    """What GPT and ViT share: blocks, the last norm, and the start of the weights."""

    def _build(
        self,
        dim: int,
        n_layers: int,
        n_heads: int,
        seq_len: int,
        causal: bool,
        norm: str,
        attention: str,
        ffn: str,
        alpha: float,
        gate_init: float,
    ) -> None:
        for name, value, known in (
            ("norm", norm, NORMS),
            ("attention", attention, ATTENTIONS),
            ("ffn", ffn, FEED_FORWARDS),
        ):
            if value not in known:
                raise ParameterError(f"unknown {name} {value!r}: {nearest(value, known)}")
        if min(dim, n_layers, n_heads, seq_len) < 1:
            raise ParameterError(
                f"dim={dim}, n_layers={n_layers}, n_heads={n_heads}, seq_len={seq_len}: all at least 1"
            )
        self.dim, self.seq_len, self.causal = dim, seq_len, causal
        self.blocks = nn.ModuleList(
            Block(dim, norm, _attention(attention, dim, n_heads, seq_len, causal, alpha, gate_init), ffn)
            for _ in range(n_layers)
        )
        self.norm = NORMS[norm](dim)

    def _initialise(self) -> None:
        """N(0, 0.02) for every matrix of the network itself; what writes to the stream is divided by sqrt(2 L)."""
        small = 0.02 / math.sqrt(2 * len(self.blocks))
        for module in self.children():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        for block in self.blocks:
            a, f = block.attention, block.ffn
            for layer in (a.q_proj, a.k_proj, a.v_proj, f.up, *([] if f.gate is None else [f.gate])):
                nn.init.normal_(layer.weight, std=0.02)
            for layer in (a.o_proj, f.down):
                nn.init.normal_(layer.weight, std=small)


class SmallGPT(_Small):
    """A pre-norm language model whose parts are arguments.

    Parameters
    ----------
    vocabulary : int
    dim, n_layers, n_heads, seq_len : int, default 64, 3, 2, 48
    norm : str, default "rms"
        ``rms``, ``layer``, ``single`` (SingleScaleRMSNorm), ``gated`` (GatedNorm), ``pre-affine``, ``dyt``,
        ``gated-dyt`` or ``unified`` (whose training statistics see the whole batch, tokens to come among them).
    attention : str, default "softmax"
        ``softmax``, ``gate`` (linear), ``gate-mlp``, ``gate-heads``, ``gate-element``, ``clip``, ``plus-one``,
        ``relu``, or a variant of :class:`skerry.train.nn.CausalAttention`: ``value-bias``, ``context-bias``,
        ``key-bias``, ``context-scale``, ``sigmoid``.
    ffn : {"gelu", "swiglu", "glu"}, default "gelu"
    embedding_projection : bool, default False
        Trainable square projections behind the embedding and before the head.
    causal : bool, default True
        False for masked language models.
    alpha : float, default 3.0
        Of clipped softmax: gamma = -alpha / seq_len.
    gate_init : float, default 0.5
        Start of the attention gates.

    Raises
    ------
    ParameterError
        For an unknown part or a size below 1.

    Examples
    --------
    >>> model = SmallGPT(66, norm="single", attention="gate", embedding_projection=True)
    >>> model(torch.zeros(2, 5, dtype=torch.long)).shape
    torch.Size([2, 5, 66])
    """

    def __init__(
        self,
        vocabulary: int,
        dim: int = 64,
        n_layers: int = 3,
        n_heads: int = 2,
        seq_len: int = 48,
        *,
        norm: str = "rms",
        attention: str = "softmax",
        ffn: str = "gelu",
        embedding_projection: bool = False,
        causal: bool = True,
        alpha: float = 3.0,
        gate_init: float = 0.5,
    ) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.embedding = nn.Embedding(vocabulary, dim)
        self.position = nn.Embedding(seq_len, dim)
        self._build(dim, n_layers, n_heads, seq_len, causal, norm, attention, ffn, alpha, gate_init)
        self.head = nn.Linear(dim, vocabulary, bias=False)
        self._initialise()
        if embedding_projection:
            self.embedding, self.head = ProjectedEmbedding(self.embedding), ProjectedHead(self.head)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (B, T, vocabulary) of int64 tokens (B, T), T at most ``seq_len``."""
        if tokens.shape[1] > self.seq_len:
            raise DataError(f"sequences of {tokens.shape[1]} tokens: this model has positions for {self.seq_len}")
        x = self.embedding(tokens) + self.position.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class SmallViT(_Small):
    """A vision transformer of the same blocks: linear patches, a class token, learned positions.

    Parameters
    ----------
    n_classes : int
    image_size, patch_size, channels : int, default 32, 4, 3
    dim, n_layers, n_heads : int, default 64, 3, 2
    norm, attention, ffn, alpha, gate_init
        As for :class:`SmallGPT`.

    Raises
    ------
    ParameterError
        If the patch does not divide the image, or for an unknown part.

    Examples
    --------
    >>> SmallViT(10, attention="clip")(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        n_classes: int,
        image_size: int = 32,
        patch_size: int = 4,
        channels: int = 3,
        dim: int = 64,
        n_layers: int = 3,
        n_heads: int = 2,
        *,
        norm: str = "rms",
        attention: str = "softmax",
        ffn: str = "gelu",
        alpha: float = 3.0,
        gate_init: float = 0.5,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ParameterError(f"patches of {patch_size} do not divide images of {image_size}")
        seq_len = (image_size // patch_size) ** 2 + 1
        self.patch_size = patch_size
        self.patch = nn.Linear(channels * patch_size**2, dim, bias=False)
        self.class_token = nn.Embedding(1, dim)
        self.position = nn.Embedding(seq_len, dim)
        self._build(dim, n_layers, n_heads, seq_len, False, norm, attention, ffn, alpha, gate_init)
        self.head = nn.Linear(dim, n_classes, bias=False)
        self._initialise()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, n_classes) of float images (B, channels, height, width)."""
        p = self.patch_size
        patches = nn.functional.unfold(images, p, stride=p).mT  # (B, patches, channels * p * p)
        first = self.class_token.weight.expand(len(images), 1, -1)
        x = torch.cat([first, self.patch(patches)], 1) + self.position.weight
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))
