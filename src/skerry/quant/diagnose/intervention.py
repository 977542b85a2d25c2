"""What activation outliers are for: the loss when they are set to zero, or to their mean."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from skerry.core.errors import ParameterError
from skerry.deep.stream import first_tensor
from skerry.quant.calibration import as_batches
from skerry.quant.comparison import language_loss
from skerry.quant.diagnose.report import OutlierReport, described_blocks

__all__ = ["intervene"]


@torch.no_grad()
def intervene(
    model: nn.Module, report: OutlierReport, mode: str = "zero", *, batches: Any, floor: float = 0.0
) -> float:
    """Return the next-token loss with the outlier elements of every layer's output replaced.

    Parameters
    ----------
    model : Module
    report : OutlierReport
        Its layers' means set the threshold; its systematic channels' means fill in under "mean".
    mode : {"zero", "mean"}, default "zero"
        "mean" puts the mean of the outlier elements of the channel, over all batches, in their place: a constant.
    batches : Tensor, mapping or list of them
    floor : float, default 0.0
        Use this threshold (times the mean) in place of the report's; 0 keeps it.

    Returns
    -------
    float
        Compare it with ``language_loss`` of the untouched model.

    Raises
    ------
    ParameterError
        For another mode.
    """
    if mode not in ("zero", "mean"):
        raise ParameterError(f"mode must be 'zero' or 'mean', got {mode!r}")
    batches = as_batches(batches)
    times = floor or report.threshold
    limits = {layer.name: times * layer.mean for layer in report.activation.layers}
    blocks = described_blocks(model)
    means: dict[str, Tensor] = {}
    if mode == "mean":
        sums: dict[str, tuple[Tensor, Tensor]] = {}
        with ExitStack() as stack:
            for name, block in blocks.items():
                stack.callback(block.register_forward_hook(partial(_sum, sums, name, limits[name])).remove)
            for batch in batches:
                language_loss(model, batch)
        means = {name: total / count.clamp(min=1.0) for name, (total, count) in sums.items()}
    with ExitStack() as stack:
        for name, block in blocks.items():
            stack.callback(block.register_forward_hook(partial(_replace, means.get(name), limits[name])).remove)
        losses = [language_loss(model, batch) for batch in batches]
    return sum(losses) / len(losses)


def _sum(
    sums: dict[str, tuple[Tensor, Tensor]], name: str, limit: float, module: nn.Module, inputs: tuple, output: Any
) -> None:
    x = first_tensor(output).float().flatten(0, -2)
    loud = x.abs() > limit
    total, count = (x * loud).sum(0), loud.sum(0).float()
    if name in sums:
        total, count = total + sums[name][0], count + sums[name][1]
    sums[name] = total, count


def _replace(mean: Tensor | None, limit: float, module: nn.Module, inputs: tuple, output: Any) -> Any:
    x = first_tensor(output)
    other = torch.zeros_like(x) if mean is None else mean.to(x).expand_as(x)
    changed = torch.where(x.abs().float() > limit, other, x)
    return (changed, *output[1:]) if isinstance(output, tuple) else changed
