"""The layers of AutoOD's networks in torch, dense ones on rows and convolutions on images that lie flat in rows.

A block is a dictionary: ``weight`` (inputs, outputs) and ``bias``, ``norm`` with ``scale`` and ``shift``,
``activation``, ``dropout`` and ``skip``. A convolution has besides its ``kernel``, the sizes ``before`` and ``after``
(channels, height, width), ``pool`` with ``pool_size``, and enlarges first where ``after`` is larger than ``before``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["apply_block", "batch_moments", "ssim_terms"]

EPSILON = 1e-5
WINDOW = 7  # of the structural similarity
C1, C2 = 0.01**2, 0.03**2  # its constants, for values in [0, 1]


def _linear(b: dict[str, Any], x: Tensor) -> Tensor:
    if "kernel" not in b:
        a = x @ b["weight"]
        return a if b["bias"] is None else a + b["bias"]
    (c, h, w), after, k = b["before"], b["after"], b["kernel"]
    image = x.reshape(-1, c, h, w)
    if after[1] > h or after[2] > w:
        image = F.interpolate(image, size=tuple(after[1:]), mode="nearest")
    return F.conv2d(image, b["weight"].T.reshape(after[0], c, k, k), b["bias"], padding=k // 2)


def _channel(b: dict[str, Any], v: Tensor) -> Tensor:
    return v.reshape(1, -1, 1, 1) if "kernel" in b else v


def batch_moments(b: dict[str, Any], x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of each output before its activation, over rows (and pixels)."""
    a = _linear(b, x)
    axes = (0, 2, 3) if "kernel" in b else (0,)
    return a.mean(axes), a.var(axes, unbiased=False)


def apply_block(b: dict[str, Any], x: Tensor, train: bool, moments: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Return rows (n, outputs) of rows ``x`` (n, inputs).

    Parameters
    ----------
    b : dict
    x : Tensor
    train : bool
        Whether dropout acts, and batch normalisation takes its statistics from these rows.
    moments : pair of Tensor, optional
        Statistics of batch normalisation otherwise.
    """
    a = _linear(b, x)
    if b["norm"] != "none":
        if b["norm"] == "batch":
            own = train or moments is None
            axes = (0, 2, 3) if "kernel" in b else (0,)
            mean, var = (a.mean(axes), a.var(axes, unbiased=False)) if own else moments
            mean, var = _channel(b, mean), _channel(b, var)
        else:  # of every row, or of every channel of an image
            axes = (2, 3) if "kernel" in b else (1,)
            mean, var = a.mean(axes, keepdim=True), a.var(axes, unbiased=False, keepdim=True)
        a = (a - mean) / torch.sqrt(var + EPSILON)
        if b.get("scale") is not None:
            a = a * _channel(b, b["scale"]) + _channel(b, b["shift"])
    name = b["activation"]
    a = a if name == "linear" else getattr(torch if name in ("sigmoid", "tanh") else F, name)(a)
    if "kernel" in b:
        if b["pool_size"] > 1:
            size, pad = b["pool_size"], b["pool_size"] // 2
            if b["pool"] == "max":
                a = F.max_pool2d(a, size, stride=2, padding=pad)
            else:
                a = F.avg_pool2d(a, size, stride=2, padding=pad, count_include_pad=False)
        a = a.flatten(1)
    if train and b["dropout"]:
        a = F.dropout(a, b["dropout"])
    return a + x if b["skip"] else a


def ssim_terms(x: Tensor, y: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Return (n, d) parts of ``1 - SSIM`` of flat images with values in [0, 1] (Wang et al., 2004); rows sum to it.

    Means, variances and covariances are those of a square window of 7 pixels (of the sides, where they are smaller)
    around each pixel, cut at the border.
    """
    size = min(WINDOW, *(side - 1 + side % 2 for side in shape[1:]))

    def mean(image: Tensor) -> Tensor:
        return F.avg_pool2d(image, size, stride=1, padding=size // 2, count_include_pad=False)

    a, b = x.reshape(-1, *shape), y.reshape(-1, *shape)
    ma, mb = mean(a), mean(b)
    # of rounding alone a variance may be negative
    va, vb = (mean(a * a) - ma * ma).clamp_min(0), (mean(b * b) - mb * mb).clamp_min(0)
    cov = mean(a * b) - ma * mb
    similarity = (2 * ma * mb + C1) * (2 * cov + C2) / ((ma * ma + mb * mb + C1) * (va + vb + C2))
    return (1 - similarity).flatten(1) / x.shape[1]
