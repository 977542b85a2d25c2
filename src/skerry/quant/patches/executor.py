"""Run a CNN patch by patch: exactly in floats, or with every branch on the integer grids of its own program.

Each branch gets the window of the image that its tile needs, is padded only where the window sticks out of the real
map, and writes its tile; the layers after the stage run on the whole map (MCUNetV2; QuantMCU, arXiv 2401.13714).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from skerry.core.errors import DataError, ModelError
from skerry.quant.numerics import AffineGrid
from skerry.quant.patches.graph import CnnGraph, Op, apply_op, read_cnn
from skerry.quant.patches.grids import round_map
from skerry.quant.patches.receptive import Layout, Segment

if TYPE_CHECKING:
    from skerry.quant.patches.plan import Plan, Program

__all__ = ["PatchExecutor", "as_images", "run_segment"]

Visit = Callable[[int, Tensor], Tensor]


def as_images(images: Any, shape: tuple[int, int, int] | None = None) -> Tensor:
    """Return images (N, C, H, W) as a float32 tensor.

    Raises
    ------
    DataError
        For another shape, no images, or values that are NaN or infinite.
    """
    try:
        x = torch.as_tensor(np.asarray(images) if not isinstance(images, Tensor) else images)
    except (TypeError, ValueError) as error:
        raise DataError(f"images are not an array of numbers: {error}") from None
    x = x.detach().cpu().float()
    if x.ndim != 4 or 0 in x.shape:
        raise DataError(f"images have shape {tuple(x.shape)}; give (N, C, H, W) with at least one image")
    if shape is not None and tuple(x.shape[1:]) != shape:
        raise DataError(f"images have shape {tuple(x.shape[1:])}, but the network was laid out for {shape}")
    broken = ~torch.isfinite(x).flatten(1).all(1)
    if broken.any():
        raise DataError(
            f"image {int(broken.nonzero()[0])} has values that are NaN or infinite ({int(broken.sum())} in all)"
        )
    return x


def run_segment(ops: tuple[Op, ...], segment: Segment, x: Tensor, visit: Visit | None = None) -> Tensor:
    """Run the operators of a segment on its windows, and return its last map.

    Parameters
    ----------
    ops : tuple of Op
        Those of the whole network, with the weights to use.
    segment : Segment
    x : Tensor of shape (N, C, h, w)
        The segment's window of its first map.
    visit : callable, optional
        Gets (map, values) for each map that the segment reads, in dataflow order; what it returns is used further.
    """
    held = {segment.first: x if visit is None else visit(segment.first, x)}
    for j in range(segment.first, segment.end):
        inputs = []
        for slot, source in enumerate(ops[j].sources):
            (a, b, c, d), pads = segment.crop(j, slot)
            inputs.append(held[source][:, :, a:b, c:d])
        y = apply_op(ops[j], inputs, pads)
        for source in set(ops[j].sources):
            if segment.last_reader[source] == j:
                del held[source]
        if j + 1 == segment.end:
            return y
        held[j + 1] = y if visit is None else visit(j + 1, y)
    return held[segment.first]


class PatchExecutor:
    """A network laid out for patch-based inference.

    Parameters
    ----------
    model : nn.Module
        A CNN of convolutions, batch norms, ReLU(6), pools, additions and linear layers; it is copied.
    image_shape : tuple of int
        (C, H, W).
    patches : int, default 3
        P of the P x P grid; 1 is ordinary layer-based inference.
    n_stage : int or "auto", default "auto"
        Operators run in patches, see :class:`~skerry.quant.patches.Layout`.
    weight_bits : int, default 8
        Of the weights in :meth:`run` with a plan: symmetric, one scale an output channel.
    batch_size : int, default 256
        Images run together.

    Attributes
    ----------
    graph : CnnGraph
    layout : Layout

    Raises
    ------
    ModelError
        For an operator that is not known.
    ParameterError
        For a grid larger than the stage's last map, or a stage that ends inside a residual block.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.AdaptiveAvgPool2d(1))
    >>> x = torch.randn(2, 3, 32, 32)
    >>> executor = PatchExecutor(net, (3, 32, 32), patches=3)
    >>> bool((executor.run(x) - net(x)).abs().max() < 1e-5)
    True
    """

    def __init__(
        self,
        model: nn.Module,
        image_shape: tuple[int, int, int],
        *,
        patches: int = 3,
        n_stage: int | str = "auto",
        weight_bits: int = 8,
        batch_size: int = 256,
    ) -> None:
        grid = AffineGrid(weight_bits)
        self.graph: CnnGraph = read_cnn(model, image_shape)
        self.layout = Layout(self.graph, patches, n_stage)
        self.weight_bits, self.batch_size = weight_bits, batch_size
        self.rounded_ops = tuple(
            op if op.weight is None else replace(op, weight=grid.round(op.weight.flatten(1)).reshape(op.weight.shape))
            for op in self.graph.ops
        )

    @torch.no_grad()
    def run(self, images: Any, plan: Plan | None = None) -> Tensor:
        """Return the network's result for images, patch by patch.

        Parameters
        ----------
        images : array or Tensor of shape (N, C, H, W)
        plan : Plan, optional
            Widths and ranges; without one everything stays in floats.

        Raises
        ------
        DataError
            For images of another shape or with NaN.
        ModelError
            For a plan made for another layout.
        """
        x = as_images(images, self.graph.image_shape)
        if plan is not None and not plan.fits(self.layout):
            raise ModelError("the plan was made for another network, patch grid, stage or image size")
        return torch.cat([self._batch(part, plan) for part in x.split(self.batch_size)])

    def stage(self, x: Tensor, plan: Plan | None = None, outlier: NDArray[np.bool_] | None = None) -> Tensor:
        """Return the stage's last map, assembled from tiles; ``outlier`` (N, P, P) are classes found at run time."""
        ops = self.graph.ops if plan is None else self.rounded_ops
        out = x.new_zeros((len(x), *self.graph.shape(self.layout.n_stage)))
        for k, branch in enumerate(self.layout.branches):
            a, b, c, d = branch.windows[0]
            r0, r1, c0, c1 = self.layout.tiles[k]
            crop = x[:, :, a:b, c:d]
            if plan is None:
                out[:, :, r0:r1, c0:c1] = run_segment(ops, branch, crop)
                continue
            for program, rows in plan.assign(k, len(x), outlier):
                if len(rows):
                    out[rows, :, r0:r1, c0:c1] = run_segment(ops, branch, crop[rows], rounding(program))
        return out

    def _batch(self, x: Tensor, plan: Plan | None) -> Tensor:
        outlier = None if plan is None or plan.mode == "static" else plan.classify(x)
        y = self.stage(x, plan, outlier)
        if plan is None:
            y = run_segment(self.graph.ops, self.layout.rest, y)
        elif len(self.layout.rest.maps):
            y = run_segment(self.rounded_ops, self.layout.rest, y, rounding(plan.rest))
        return y.reshape(len(x), *self.graph.output_shape)


def rounding(program: Program) -> Visit:
    """Return what rounds each map to its width in a program."""
    return lambda m, v: round_map(v, program.spans[m], program.widths[m])
