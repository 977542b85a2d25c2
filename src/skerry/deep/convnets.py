"""Small convolutional networks for 28 to 64 pixel images: a plain one, residual ones, and VGG-16 with batch norm.

The residual networks follow He et al. (2016) for CIFAR (three stages, 6 n + 2 layers) and VGG-16 Simonyan and Zisserman
(2015) with one hidden linear layer. Shortcuts that change shape are 1 x 1 convolutions, not zero-padded channels, so
that the width of a stage may be pruned.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from skerry.core.errors import ParameterError

__all__ = ["BasicBlock", "CifarResNet", "SmallCNN", "VGG16"]


def _conv_norm(n_in: int, n_out: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(n_in, n_out, kernel, stride=stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return [conv, nn.BatchNorm2d(n_out)]


def _positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ParameterError(f"{name} is {value}: give 1 or more")


class SmallCNN(nn.Module):
    """One convolution, batch norm, ReLU and halving per width; then the mean over positions and a linear layer.

    Parameters
    ----------
    n_classes : int
    in_channels : int, default 1
    widths : sequence of int, default (16, 32, 48)

    Raises
    ------
    ParameterError
        If a size is under 1.

    Examples
    --------
    >>> import torch
    >>> SmallCNN(10)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(self, n_classes: int, in_channels: int = 1, widths: Sequence[int] = (16, 32, 48)) -> None:
        super().__init__()
        _positive(n_classes=n_classes, in_channels=in_channels, width=min(widths, default=0))
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(zip([in_channels, *widths], widths, strict=False)):
            layers += [*_conv_norm(a, b), nn.ReLU()]
            if i + 1 < len(widths):
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(widths[-1], n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, n_classes) of images (N, in_channels, H, W)."""
        return self.classifier(torch.flatten(self.pool(self.features(x)), 1))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with batch norm beside a shortcut, added before the last ReLU.

    Parameters
    ----------
    n_in, n_out : int
        Channels.
    stride : int, default 1
        Of the first convolution; with a stride, or a change of channels, the shortcut is a 1 x 1 convolution.
    """

    def __init__(self, n_in: int, n_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv_norm(n_in, n_out, stride=stride)
        self.conv2, self.bn2 = _conv_norm(n_out, n_out)
        same = stride == 1 and n_in == n_out
        self.shortcut = nn.Identity() if same else nn.Sequential(*_conv_norm(n_in, n_out, kernel=1, stride=stride))

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, n_out, H / stride, W / stride) of (N, n_in, H, W)."""
        inner = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """Residual network of ``depth`` = 6 n + 2 layers: 20, 32, 44, 56, 110 ...

    Parameters
    ----------
    depth : int
    n_classes : int
    in_channels : int, default 3
    width : int, default 16
        Of the stem and the first stage; the second has twice, the third four times as many filters.

    Raises
    ------
    ParameterError
        If ``depth`` is not 6 n + 2 with n >= 1, or a size is under 1.

    Examples
    --------
    >>> import torch
    >>> CifarResNet(20, 10, width=4)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(self, depth: int, n_classes: int, in_channels: int = 3, width: int = 16) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ParameterError(f"depth is {depth}: give 6 n + 2, such as 20, 56 or 110")
        _positive(n_classes=n_classes, in_channels=in_channels, width=width)
        self.conv1, self.bn1 = _conv_norm(in_channels, width)
        stages, n_in = [], width
        for factor in (1, 2, 4):
            blocks = []
            for i in range((depth - 2) // 6):
                blocks.append(BasicBlock(n_in, factor * width, stride=2 if factor > 1 and i == 0 else 1))
                n_in = factor * width
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3 = stages
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(n_in, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, n_classes) of images (N, in_channels, H, W)."""
        x = self.layer3(self.layer2(self.layer1(torch.relu(self.bn1(self.conv1(x))))))
        return self.classifier(torch.flatten(self.pool(x), 1))


class VGG16(nn.Module):
    """VGG-16 with batch norm for small images: thirteen convolutions, four halvings, two linear layers.

    Parameters
    ----------
    n_classes : int
    in_channels : int, default 3
    width : int, default 64
        Of the first two convolutions; the widest have eight times as many filters.

    Raises
    ------
    ParameterError
        If a size is under 1.

    Examples
    --------
    >>> import torch
    >>> VGG16(10, width=4).eval()(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 10])
    """

    def __init__(self, n_classes: int, in_channels: int = 3, width: int = 64) -> None:
        super().__init__()
        _positive(n_classes=n_classes, in_channels=in_channels, width=width)
        layers: list[nn.Module] = []
        n_in = in_channels
        for i, factors in enumerate(((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8))):
            if i:
                layers.append(nn.MaxPool2d(2))
            for factor in factors:
                layers += [*_conv_norm(n_in, factor * width), nn.ReLU()]
                n_in = factor * width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Linear(n_in, n_in), nn.BatchNorm1d(n_in), nn.ReLU(), nn.Linear(n_in, n_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, n_classes) of images (N, in_channels, H, W)."""
        return self.classifier(torch.flatten(self.pool(self.features(x)), 1))
