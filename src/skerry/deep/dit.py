"""A small diffusion transformer: patches, class and time in an adaptive LayerNorm that starts at zero (adaLN-zero).

Peebles and Xie (ICCV 2023), "Scalable diffusion models with transformers" (arXiv 2212.09748). The layers of a block
bear the names that ``DiTTransformer2DModel`` of diffusers gives them, so that whoever knows one knows the other.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from skerry.core.errors import ParameterError

__all__ = ["DiT", "DiTBlock"]

FREQUENCIES = 64  # channels of the sine and cosine code of a time step


class DiT(nn.Module):
    """Predicts the noise in an image from the image, the time step and the class.

    Parameters
    ----------
    sample_size : int, default 16
        Height and width of the images.
    patch_size : int, default 4
    in_channels : int, default 1
    width : int, default 128
    blocks : int, default 4
    heads : int, default 4
    n_classes : int, default 10

    Raises
    ------
    ParameterError
        If patches do not fill the image, or heads the width.

    Examples
    --------
    >>> model = DiT(sample_size=8, patch_size=2, width=16, blocks=2, heads=2)
    >>> model(torch.zeros(3, 1, 8, 8), torch.tensor([0, 5, 999]), torch.tensor([1, 2, 3])).shape
    torch.Size([3, 1, 8, 8])
    """

    def __init__(
        self,
        sample_size: int = 16,
        patch_size: int = 4,
        in_channels: int = 1,
        width: int = 128,
        blocks: int = 4,
        heads: int = 4,
        n_classes: int = 10,
    ) -> None:
        super().__init__()
        if sample_size % patch_size:
            raise ParameterError(f"patches of {patch_size} do not fill an image of {sample_size}")
        if width % (2 * heads):
            raise ParameterError(f"{heads} heads do not divide a width of {width} into even parts")
        self.config = SimpleNamespace(
            model_type="dit",
            sample_size=sample_size,
            patch_size=patch_size,
            in_channels=in_channels,
            hidden_size=width,
            num_hidden_layers=blocks,
            num_attention_heads=heads,
            n_classes=n_classes,
        )
        self.patch_size = patch_size
        self.patch_embed = nn.Linear(in_channels * patch_size**2, width)
        self.positions = nn.Parameter(0.02 * torch.randn((sample_size // patch_size) ** 2, width))
        self.time_embed = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.class_embed = nn.Embedding(n_classes, width)
        self.transformer_blocks = nn.ModuleList(DiTBlock(width, heads) for _ in range(blocks))
        self.norm_out = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.proj_out_1 = nn.Linear(width, 2 * width)
        self.proj_out_2 = nn.Linear(width, in_channels * patch_size**2)
        nn.init.normal_(self.class_embed.weight, std=0.02)
        for layer in (self.proj_out_1, self.proj_out_2):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, hidden_states: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        """Return the noise (B, C, H, W) in images (B, C, H, W) at steps (B,) of classes (B,)."""
        x = self.patch_embed(self._patches(hidden_states)) + self.positions
        told = self.time_embed(step_code(timestep).to(x)) + self.class_embed(class_labels)
        for block in self.transformer_blocks:
            x = block(x, told)
        shift, scale = self.proj_out_1(nn.functional.silu(told)).chunk(2, dim=-1)
        x = self.norm_out(x) * (1.0 + scale[:, None]) + shift[:, None]
        return self._image(self.proj_out_2(x), hidden_states.shape)

    def _patches(self, images: Tensor) -> Tensor:
        p = self.patch_size
        B, C, H, W = images.shape
        tiles = images.reshape(B, C, H // p, p, W // p, p).permute(0, 2, 4, 1, 3, 5)
        return tiles.reshape(B, (H // p) * (W // p), C * p * p)

    def _image(self, patches: Tensor, shape: torch.Size) -> Tensor:
        p = self.patch_size
        B, C, H, W = shape
        tiles = patches.reshape(B, H // p, W // p, C, p, p).permute(0, 3, 1, 4, 2, 5)
        return tiles.reshape(B, C, H, W)


class DiTBlock(nn.Module):
    """Attention and a GELU layer of four times the width, each between a modulated norm and a gate.

    Parameters
    ----------
    width, heads : int
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = _Modulation(width)
        self.attn1 = _Attention(width, heads)
        self.norm3 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.ff = _FeedForward(width)

    def forward(self, hidden_states: Tensor, told: Tensor) -> Tensor:
        """Return the stream (B, tokens, width) after the block; ``told`` (B, width) is time and class."""
        x, (gate, shift_ff, scale_ff, gate_ff) = self.norm1(hidden_states, told)
        hidden_states = hidden_states + gate * self.attn1(x)
        x = self.norm3(hidden_states) * (1.0 + scale_ff) + shift_ff
        return hidden_states + gate_ff * self.ff(x)


class _Modulation(nn.Module):
    """The first norm, and the six vectors that shift, scale and gate both halves of a block; all zero at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 6 * width)
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, told: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        shift, scale, *others = self.linear(nn.functional.silu(told))[:, None].chunk(6, dim=-1)
        return self.norm(x) * (1.0 + scale) + shift, tuple(others)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, hidden_states: Tensor) -> Tensor:
        q, k, v = (f(hidden_states).unflatten(-1, (self.heads, -1)) for f in (self.to_q, self.to_k, self.to_v))
        y = nn.functional.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self.to_out[0](y.transpose(1, 2).flatten(2))


class _FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([_GELU(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)])

    def forward(self, hidden_states: Tensor) -> Tensor:
        for layer in self.net:
            hidden_states = layer(hidden_states)
        return hidden_states


class _GELU(nn.Module):
    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(n_in, n_out)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return nn.functional.gelu(self.proj(hidden_states), approximate="tanh")


def step_code(timestep: Any, channels: int = FREQUENCIES) -> Tensor:
    """Return cosines and sines (B, channels) of time steps (B,), of periods from 2 pi to 10000 times that.

    Examples
    --------
    >>> step_code(torch.tensor([0]), 4).tolist()
    [[1.0, 1.0, 0.0, 0.0]]
    """
    half = channels // 2
    speed = torch.exp(-math.log(10_000.0) * torch.arange(half, device=timestep.device) / half)
    angle = timestep.float()[:, None] * speed
    return torch.cat((angle.cos(), angle.sin()), dim=-1)
