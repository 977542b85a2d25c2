"""The network of CSDI (Tashiro et al., 2021) with ImDiffusion's policy embedding: which of two gratings hides what.

One departure from both: time and channel also enter before the first block. There they enter after the attention of
each block, so that the first attends without knowing where anything stands; one block cannot impute at all, and
several begin to only after thousands of steps.

Tensors are (B, K, L, channels): a 1x1 convolution is then a linear layer, and attention over time needs no copy.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ImputationNet"]

EMBEDDING, CHANNEL_EMBEDDING, FEED_FORWARD = 128, 16, 64


def _conv(n_in: int, n_out: int) -> nn.Linear:
    layer = nn.Linear(n_in, n_out)
    nn.init.kaiming_normal_(layer.weight)
    return layer


class _Attention(nn.Module):
    """The encoder layer of a transformer, normed after each part, on (B, N, width).

    No weight of the attention is dropped: masks of N x N numbers a head cost a quarter of a training step on a
    processor, and without them the fused kernel applies. The two branches are dropped out as usual.
    """

    def __init__(self, width: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads, self.dropout = n_heads, dropout
        self.inlet, self.outlet = nn.Linear(width, 3 * width), nn.Linear(width, width)
        nn.init.xavier_uniform_(self.inlet.weight)
        for layer in (self.inlet, self.outlet):
            nn.init.zeros_(layer.bias)
        self.wide, self.narrow = nn.Linear(width, FEED_FORWARD), nn.Linear(FEED_FORWARD, width)
        self.norm, self.last_norm = nn.LayerNorm(width), nn.LayerNorm(width)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.inlet(x).view(b, n, 3, self.n_heads, c // self.n_heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)
        x = self.norm(x + self._drop(self.outlet(y)))
        return self.last_norm(x + self._drop(self.narrow(self._drop(F.gelu(self.wide(x))))))


class _Block(nn.Module):
    """Attention over time, then over channels, then a gate that the side information opens."""

    def __init__(self, width: int, n_heads: int, n_side: int, dropout: float, in_time: bool, in_channels: bool) -> None:
        super().__init__()

        def attention() -> _Attention:
            return _Attention(width, n_heads, dropout)

        self.step, self.policy = nn.Linear(EMBEDDING, width), nn.Linear(EMBEDDING, width)
        self.time = attention() if in_time else None
        self.feature = attention() if in_channels else None
        self.middle, self.side, self.out = _conv(width, 2 * width), _conv(n_side, 2 * width), _conv(width, 2 * width)

    def forward(self, x: Tensor, side: Tensor, step: Tensor, policy: Tensor) -> tuple[Tensor, Tensor]:
        b, k, n, c = x.shape
        y = x + (self.step(step) + self.policy(policy))[:, None, None]
        if self.time is not None:
            y = self.time(y.reshape(b * k, n, c)).reshape(b, k, n, c)
        if self.feature is not None:
            y = self.feature(y.transpose(1, 2).reshape(b * n, k, c)).reshape(b, n, k, c).transpose(1, 2)
        gate, value = (self.middle(y) + self.side(side)).chunk(2, dim=-1)
        residual, skip = self.out(torch.sigmoid(gate) * torch.tanh(value)).chunk(2, dim=-1)
        return (x + residual) / math.sqrt(2.0), skip


class ImputationNet(nn.Module):
    """Predict the noise in every cell of windows.

    Parameters
    ----------
    n_features, window : int
        Channels K of the series and steps L of a window.
    channels, n_layers, n_heads : int, default 64, 4 and 8
    dropout : float, default 0.1
    conditional : bool, default False
        The input has two channels (shown truth, noised rest) and the mask is part of the side information.

    Examples
    --------
    >>> net = ImputationNet(3, 8, channels=8, n_layers=1, n_heads=2)
    >>> zero = torch.zeros(2, dtype=torch.long)
    >>> float(net(torch.ones(2, 3, 8, 1), zero, zero).detach().abs().max())
    0.0
    """

    def __init__(
        self,
        n_features: int,
        window: int,
        channels: int = 64,
        n_layers: int = 4,
        n_heads: int = 8,
        conditional: bool = False,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        n_side = EMBEDDING + CHANNEL_EMBEDDING + conditional
        self.channel = nn.Embedding(n_features, CHANNEL_EMBEDDING)
        self.policy = nn.Embedding(2, EMBEDDING)
        self.step = nn.Sequential(
            nn.Linear(EMBEDDING, EMBEDDING), nn.SiLU(), nn.Linear(EMBEDDING, EMBEDDING), nn.SiLU()
        )
        self.inlet, self.place = _conv(1 + conditional, channels), _conv(n_side, channels)
        self.blocks = nn.ModuleList(
            _Block(channels, n_heads, n_side, dropout, window > 1, n_features > 1) for _ in range(n_layers)
        )
        self.last, self.head = _conv(channels, channels), _conv(channels, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        half = EMBEDDING // 2
        angle = torch.arange(window)[:, None] / 10_000.0 ** (torch.arange(half) / half)
        time = torch.stack([angle.sin(), angle.cos()], dim=-1).reshape(window, EMBEDDING)
        self.register_buffer("time", time, persistent=False)
        self.register_buffer("frequency", 10.0 ** (torch.arange(half) * 4.0 / (half - 1)), persistent=False)

    def forward(self, inputs: Tensor, t: Tensor, policy: Tensor, shown: Tensor | None = None) -> Tensor:
        """Return the noise (B, K, L) of inputs (B, K, L, 1 or 2); ``shown`` (B, K, L) in the conditional form only."""
        b, k, n, _ = inputs.shape
        angle = t[:, None] * self.frequency
        step = self.step(torch.cat([angle.sin(), angle.cos()], dim=1))
        side = torch.cat([self.time.expand(k, n, -1), self.channel.weight[:, None].expand(k, n, -1)], dim=-1)[None]
        if shown is not None:
            side = torch.cat([side.expand(b, -1, -1, -1), shown[..., None]], dim=-1)
        x, total = torch.relu(self.inlet(inputs)) + self.place(side), 0.0
        for block in self.blocks:
            x, skip = block(x, side, step, self.policy(policy))
            total = total + skip
        x = torch.relu(self.last(total / math.sqrt(len(self.blocks))))
        return self.head(x)[..., 0]
