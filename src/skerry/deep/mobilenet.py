"""A small MobileNetV2 (Sandler et al., 2018) for images of 32 to 128 pixels: what microcontrollers run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from skerry.core.errors import ParameterError

__all__ = ["InvertedResidual", "MobileNetV2"]

BLOCKS = ((1, 16, 1, 1), (4, 24, 2, 2), (4, 32, 3, 2), (4, 64, 3, 2), (4, 96, 1, 1))  # expansion, width, blocks, stride


def _conv(
    n_in: int, n_out: int, kernel: int = 1, stride: int = 1, groups: int = 1, *, act: bool = True
) -> nn.Sequential:
    conv = nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out")
    return nn.Sequential(conv, nn.BatchNorm2d(n_out), nn.ReLU6() if act else nn.Identity())


class InvertedResidual(nn.Module):
    """Widen by 1 x 1, filter each channel by 3 x 3, narrow by 1 x 1; added to its input where shapes allow.

    Parameters
    ----------
    n_in, n_out : int
        Channels.
    stride : int, default 1
    expansion : int, default 4
        How much wider the middle is; 1 leaves the first convolution out.

    Examples
    --------
    >>> InvertedResidual(8, 8)(torch.zeros(2, 8, 6, 6)).shape
    torch.Size([2, 8, 6, 6])
    """

    def __init__(self, n_in: int, n_out: int, stride: int = 1, expansion: int = 4) -> None:
        super().__init__()
        middle = n_in * expansion
        self.residual = stride == 1 and n_in == n_out
        self.layers = nn.Sequential(
            *([_conv(n_in, middle)] if expansion > 1 else []),
            _conv(middle, middle, 3, stride, groups=middle),
            _conv(middle, n_out, act=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return a map (N, n_out, H / stride, W / stride)."""
        return x + self.layers(x) if self.residual else self.layers(x)


class MobileNetV2(nn.Module):
    """Ten inverted residual blocks between a convolution of stride 2 and the mean over positions.

    Parameters
    ----------
    n_classes : int
    in_channels : int, default 3
    width : float, default 0.5
        Factor on all channels, which are then multiples of 4.
    blocks : sequence of (expansion, channels, blocks, stride), optional

    Raises
    ------
    ParameterError
        If a size is not positive.

    Examples
    --------
    >>> MobileNetV2(10).eval()(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        n_classes: int,
        in_channels: int = 3,
        width: float = 0.5,
        blocks: Sequence[tuple[int, int, int, int]] = BLOCKS,
    ) -> None:
        super().__init__()
        if n_classes < 1 or in_channels < 1 or not width > 0:
            raise ParameterError(f"n_classes {n_classes}, in_channels {in_channels} and width {width} must be positive")

        def wide(channels: int) -> int:
            return max(8, round(channels * width / 4) * 4)

        n_in = wide(16)
        layers = [_conv(in_channels, n_in, 3, 2)]
        for expansion, channels, count, stride in blocks:
            for i in range(count):
                layers.append(InvertedResidual(n_in, wide(channels), stride if i == 0 else 1, expansion))
                n_in = wide(channels)
        self.features = nn.Sequential(*layers)
        self.head = _conv(n_in, 2 * n_in)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(2 * n_in, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, n_classes) of images (N, in_channels, H, W)."""
        return self.classifier(torch.flatten(self.pool(self.head(self.features(x))), 1))
