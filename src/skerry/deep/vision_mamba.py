"""A small Vision Mamba: patches in a row that state space models read from both ends, the class token in the middle.

Zhu et al. (ICML 2024), "Vision Mamba" (arXiv 2401.09417). A block is an RMSNorm, a mixer and a residual; its mixer
projects once, reads states forwards and backwards with convolutions, time steps, B, C, A and D of each direction's own,
adds the two, gates and projects back::

    xs, z = u W_in^T                       out = ((scan(xs) + reversed(scan'(reversed(xs)))) SiLU(z)) W_out^T
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from skerry.core.errors import ParameterError
from skerry.deep.recurrence import linear_recurrence

__all__ = ["BidirectionalMixer", "DirectionalScan", "VisionMamba", "VisionMambaBlock"]

KERNEL = 4


class VisionMamba(nn.Module):
    """Logits of images from the class token of a bidirectional Mamba.

    Parameters
    ----------
    image_size : int, default 28
        Height and width of the images.
    patch_size : int, default 4
    in_channels : int, default 1
    width : int, default 64
        Of the stream between blocks; inside a mixer it is twice that.
    blocks : int, default 4
    states : int, default 16
        Numbers that each channel remembers.
    rank : int, default 8
        Channels that the time step is made from.
    n_classes : int, default 10

    Raises
    ------
    ParameterError
        If patches do not fill the image.

    Examples
    --------
    >>> model = VisionMamba(image_size=8, width=16, blocks=2, states=4, rank=4)
    >>> model(torch.zeros(3, 1, 8, 8)).shape
    torch.Size([3, 10])
    """

    def __init__(
        self,
        image_size: int = 28,
        patch_size: int = 4,
        in_channels: int = 1,
        width: int = 64,
        blocks: int = 4,
        states: int = 16,
        rank: int = 8,
        n_classes: int = 10,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ParameterError(f"patches of {patch_size} do not fill an image of {image_size}")
        self.config = SimpleNamespace(
            model_type="vim",
            image_size=image_size,
            patch_size=patch_size,
            in_channels=in_channels,
            hidden_size=width,
            num_hidden_layers=blocks,
            state_size=states,
            time_step_rank=rank,
            n_classes=n_classes,
        )
        count = (image_size // patch_size) ** 2
        self.middle = count // 2
        self.patch_embed = nn.Linear(in_channels * patch_size**2, width)
        self.positions = nn.Embedding(count + 1, width)  # the row in the middle is the class token
        self.layers = nn.ModuleList(VisionMambaBlock(width, states, rank) for _ in range(blocks))
        self.norm_f = nn.RMSNorm(width, eps=1e-5)
        self.head = nn.Linear(width, n_classes)
        nn.init.normal_(self.positions.weight, std=0.02)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return logits (images, classes) of images (images, channels, height, width)."""
        p = self.config.patch_size
        x = self.patch_embed(nn.functional.unfold(pixel_values, p, stride=p).transpose(1, 2))
        before, behind = x[:, : self.middle], x[:, self.middle :]
        x = torch.cat([before, torch.zeros_like(x[:, :1]), behind], 1) + self.positions.weight
        for block in self.layers:
            x = block(x)
        return self.head(self.norm_f(x[:, self.middle]))


class VisionMambaBlock(nn.Module):
    """Norm, :class:`BidirectionalMixer`, residual.

    Parameters
    ----------
    width, states, rank : int
    """

    def __init__(self, width: int, states: int, rank: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.mixer = BidirectionalMixer(width, states, rank)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the block's output (images, tokens, width)."""
        return hidden_states + self.mixer(self.norm(hidden_states))


class BidirectionalMixer(nn.Module):
    """What the head of this file shows; without the halving that some of the authors' models have before W_out.

    Parameters
    ----------
    width, states, rank : int
    """

    def __init__(self, width: int, states: int, rank: int) -> None:
        super().__init__()
        self.in_proj = nn.Linear(width, 4 * width, bias=False)
        self.forward_scan = DirectionalScan(2 * width, states, rank)
        self.backward_scan = DirectionalScan(2 * width, states, rank)
        self.out_proj = nn.Linear(2 * width, width, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return (images, tokens, width)."""
        xs, z = self.in_proj(hidden_states).chunk(2, -1)
        y = self.forward_scan(xs) + self.backward_scan(xs.flip(1)).flip(1)
        return self.out_proj(y * nn.functional.silu(z))


class DirectionalScan(nn.Module):
    """One direction: causal convolution, time step, B and C, and the recurrence of states.

    Parameters
    ----------
    channels, states, rank : int
    """

    def __init__(self, channels: int, states: int, rank: int) -> None:
        super().__init__()
        self.conv1d = nn.Conv1d(channels, channels, KERNEL, groups=channels, padding=KERNEL - 1)
        self.x_proj = nn.Linear(channels, rank + 2 * states, bias=False)
        self.dt_proj = nn.Linear(rank, channels)
        self.A_log = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(channels, 1))
        self.D = nn.Parameter(torch.ones(channels))
        step = torch.exp(torch.linspace(math.log(1e-3), math.log(1e-1), channels))  # softplus(bias) at the start
        self.dt_proj.bias.data.copy_(step + torch.log(-torch.expm1(-step)))

    def forward(self, xs: Tensor) -> Tensor:
        """Return (images, tokens, channels) of the same."""
        count, (rank, states) = xs.shape[1], (self.dt_proj.in_features, self.A_log.shape[1])
        c = nn.functional.silu(self.conv1d(xs.transpose(1, 2))[..., :count]).transpose(1, 2)
        t, B, C = self.x_proj(c).transpose(0, 1).split([rank, states, states], -1)  # tokens first
        dt, first = nn.functional.softplus(self.dt_proj(t)), c.transpose(0, 1)
        decay = torch.exp(dt[..., None] * -torch.exp(self.A_log))
        h = linear_recurrence(decay, (dt * first)[..., None] * B[:, :, None, :])
        y = (h @ C[..., None]).squeeze(-1) + first * self.D
        return y.transpose(0, 1)
