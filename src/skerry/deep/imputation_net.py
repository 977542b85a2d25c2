"""The network of CSDI (Tashiro et al., 2021) with ImDiffusion's policy embedding: which of two gratings hides what.

Tensors are (B, K, L, channels): a 1x1 convolution is then a linear layer, and attention over time needs no copy.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["ImputationNet"]

EMBEDDING, CHANNEL_EMBEDDING = 128, 16


def _conv(n_in: int, n_out: int) -> nn.Linear:
    layer = nn.Linear(n_in, n_out)
    nn.init.kaiming_normal_(layer.weight)
    return layer


class _Block(nn.Module):
    """Attention over time, then over channels, then a gate that the side information opens."""

    def __init__(self, width: int, n_heads: int, n_side: int, in_time: bool, in_channels: bool) -> None:
        super().__init__()

        def attention() -> nn.TransformerEncoderLayer:
            return nn.TransformerEncoderLayer(width, n_heads, 64, 0.1, "gelu", batch_first=True)

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
    conditional : bool, default False
        The input has two channels (shown truth, noised rest) and the mask is part of the side information.

    Examples
    --------
    >>> net = ImputationNet(3, 8, channels=8, n_layers=1, n_heads=2)
    >>> zero = torch.zeros(2, dtype=torch.long)
    >>> float(net(torch.ones(2, 3, 8, 1), zero, zero).abs().max())
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
    ) -> None:
        super().__init__()
        n_side = EMBEDDING + CHANNEL_EMBEDDING + conditional
        self.channel = nn.Embedding(n_features, CHANNEL_EMBEDDING)
        self.policy = nn.Embedding(2, EMBEDDING)
        self.step = nn.Sequential(
            nn.Linear(EMBEDDING, EMBEDDING), nn.SiLU(), nn.Linear(EMBEDDING, EMBEDDING), nn.SiLU()
        )
        self.inlet = _conv(1 + conditional, channels)
        self.blocks = nn.ModuleList(
            _Block(channels, n_heads, n_side, window > 1, n_features > 1) for _ in range(n_layers)
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
        x, total = torch.relu(self.inlet(inputs)), 0.0
        for block in self.blocks:
            x, skip = block(x, side, step, self.policy(policy))
            total = total + skip
        x = torch.relu(self.last(total / math.sqrt(len(self.blocks))))
        return self.head(x)[..., 0]
