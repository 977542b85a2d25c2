"""Beta-Rank with the input windows of the published code, kept for comparison (arXiv 2304.07461)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from skerry.core.errors import MissingExtra

try:
    import torch
    from torch import Tensor, nn
except ImportError as error:
    raise MissingExtra("torch", "deep") from error

from skerry.rank.filter_observation import evaluating

__all__ = ["official_scores"]


def official_scores(net: nn.Module, x: Tensor) -> dict[str, NDArray[np.float64]]:
    """Return R with the slices of the published code, which reads (N, C, H, W) as if channels came last.

    The window runs over the channel and height axes, at a step of ``W_in // W_out`` without padding; empty windows are
    skipped. It is not the receptive field.
    """
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    convs = {n: m for n, m in net.named_modules() if isinstance(m, nn.Conv2d)}
    handles = [
        m.register_forward_hook(lambda _, args, out, n=n: seen.__setitem__(n, (args[0], out.detach())))
        for n, m in convs.items()
    ]
    with evaluating(net), torch.no_grad():
        net(x)
    for handle in handles:
        handle.remove()
    scores = {}
    for name, (source, out) in seen.items():
        data, spread = source.double().numpy(), out.double().std(0, correction=0).numpy()
        step, size = data.shape[3] // out.shape[3], convs[name].kernel_size[0]
        ratios = np.full(spread.shape, np.nan)
        for u in range(spread.shape[1]):
            for v in range(spread.shape[2]):
                window = data[:, u * step : u * step + size, v * step : v * step + size]
                if window.size and window.std() > 0:
                    ratios[:, u, v] = spread[:, u, v] / window.std()
        norms = convs[name].weight.detach().double().abs().sum((1, 2, 3)).numpy()
        seen_at = ~np.isnan(ratios[0])
        scores[name] = norms * (ratios[:, seen_at].mean(1) if seen_at.any() else 1.0)
    return scores
