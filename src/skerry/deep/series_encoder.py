"""A small transformer that turns each step of a window into a vector: the trained encoder of Themis (arXiv 2510.03911).

Its weights come from :mod:`skerry.deep.pretrain_series` as one file of safetensors; sizes stand in the file's header.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from skerry.core.errors import ModelError
from skerry.deep.threads import one_thread

__all__ = ["FORMAT", "SeriesEncoder", "SeriesTransformer"]

FORMAT = "skerry series encoder 1"
CONVOLUTIONS, TAPS = 8, 9
MOST = {"width": 1_024, "layers": 32, "heads": 64}  # of a file from others


class _Layer(nn.Module):
    """Attention with rotary places, then a feed-forward part, each after a norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.last_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.inlet, self.outlet = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.inlet(self.norm(x)).view(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(_turned(q, turn), _turned(k, turn), v)
        x = x + self.outlet(y.transpose(1, 2).reshape(b, n, c))
        return x + self.narrow(F.gelu(self.wide(self.last_norm(x))))


def _turned(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Return x (..., L, d) with each pair of coordinates turned by the angle of its place."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * turn[0] - b * turn[1], a * turn[1] + b * turn[0]], dim=-1)


class SeriesTransformer(nn.Module):
    """Pre-norm transformer over value, difference and eight convolutions of each step.

    Parameters
    ----------
    width, layers, heads : int, default 96, 3 and 4
        ``width`` is a multiple of ``2 * heads``.

    Examples
    --------
    >>> net = SeriesTransformer(16, 1, 2)
    >>> x = torch.randn(2, 30)
    >>> tuple(net(x, torch.ones_like(x)).shape)
    (2, 30, 16)
    """

    def __init__(self, width: int = 96, layers: int = 3, heads: int = 4) -> None:
        super().__init__()
        self.sizes = {"width": width, "layers": layers, "heads": heads}
        self.convolution = nn.Conv1d(1, CONVOLUTIONS, TAPS)
        self.inlet = nn.Linear(2 + CONVOLUTIONS, width)
        self.hidden = nn.Parameter(torch.zeros(width))  # stands for a step without a value
        self.blocks = nn.ModuleList(_Layer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor, shown: Tensor) -> Tensor:
        """Return (B, L, width) for values (B, L) on a common scale; where ``shown`` is 0 there is no value."""
        x = x * shown
        both = shown[:, 1:] * shown[:, :-1]
        step = F.pad((x[:, 1:] - x[:, :-1]) * both, (1, 0))
        wide = F.pad(x[:, None], (TAPS // 2, TAPS // 2), mode="replicate")
        features = torch.cat([torch.stack([x, step]).permute(1, 2, 0), self.convolution(wide).transpose(1, 2)], dim=-1)
        y = self.inlet(features) * shown[..., None] + self.hidden * (1.0 - shown[..., None])
        half = self.sizes["width"] // self.sizes["heads"] // 2
        speed = 10_000.0 ** (-torch.arange(half, device=x.device) / half)
        angle = torch.arange(x.shape[1], device=x.device)[:, None] * speed
        turn = angle.cos(), angle.sin()
        for block in self.blocks:
            y = block(y, turn)
        return self.norm(y)

    def rebuild(self, x: Tensor, shown: Tensor) -> Tensor:
        """Return the values (B, L) that the network expects at every step."""
        return self.head(self(x, shown))[..., 0]


def scaled(x: Tensor, shown: Tensor) -> Tensor:
    """Return windows (B, L) about their mean, over their mean absolute value, squeezed by asinh."""
    count = shown.sum(dim=1, keepdim=True).clamp(min=1.0)
    x = (x - (x * shown).sum(dim=1, keepdim=True) / count) * shown
    scale = x.abs().sum(dim=1, keepdim=True) / count
    return torch.asinh(x / torch.where(scale > 0.0, scale, torch.ones_like(scale)))


class SeriesEncoder:
    """Frozen embeddings from a file of :mod:`skerry.deep.pretrain_series`.

    Parameters
    ----------
    path : path
        A ``.safetensors`` file.

    Attributes
    ----------
    width : int

    Raises
    ------
    ModelError
        If the file is missing, is not whole, or is not one of this encoder.
    """

    centers = True

    def __init__(self, path: str | Path) -> None:
        try:
            with safe_open(str(path), "pt") as file:
                text = (file.metadata() or {}).get("encoder", "")
                weights = {key: file.get_tensor(key) for key in file.keys()}
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path}: cannot be read as safetensors ({error}); make it anew") from None
        if FORMAT not in text:
            raise ModelError(f"{path}: was not written by skerry.deep.pretrain_series (no {FORMAT!r} in its header)")
        try:
            told = json.loads(text)["sizes"]
            sizes = {name: int(told[name]) for name in MOST}
            if not all(1 <= sizes[name] <= MOST[name] for name in MOST) or sizes["width"] % (2 * sizes["heads"]):
                raise ValueError(f"sizes {sizes} are out of range")
            self.net = SeriesTransformer(**sizes)
            self.net.load_state_dict(weights)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ModelError(f"{path}: header and weights do not fit each other ({error}); make it anew") from None
        self.net.eval().requires_grad_(False)
        self.width = self.net.sizes["width"]

    def embed(self, windows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (B, L, width) for windows (B, L) in which NaN is missing; each window has its own scale."""
        shown = torch.from_numpy(~np.isnan(windows)).double()
        x = scaled(torch.from_numpy(np.nan_to_num(windows)).double(), shown)
        with one_thread(), torch.inference_mode():
            return self.net(x.float(), shown.float()).double().numpy()
