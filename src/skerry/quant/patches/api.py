"""One call: a trained CNN and some images in, a network that runs in patches of mixed precision out."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from skerry.quant.patches.executor import PatchExecutor, as_images
from skerry.quant.patches.plan import Plan
from skerry.quant.patches.search import QuantMCU

__all__ = ["PatchedModel", "quantize_patches"]


class PatchedModel(nn.Module):
    """A CNN with the plan it runs by; call it like the network itself.

    Attributes
    ----------
    executor : PatchExecutor
    plan : Plan
    """

    def __init__(self, executor: PatchExecutor, plan: Plan) -> None:
        super().__init__()
        self.executor, self.plan = executor, plan

    def forward(self, images: Tensor) -> Tensor:
        """Return the network's result for images (N, C, H, W), simulated on the plan's integer grids."""
        return self.executor.run(images, self.plan)

    def report(self) -> dict[str, Any]:
        """Return what the plan costs, beside the same patches in 8 bits, and each patch's class and mean width."""
        plan, cost = self.plan, self.plan.cost()
        widths = [
            sum(share * sum(p.widths.values()) / len(p.widths) for share, p in plan.programs(k))
            for k in range(len(plan.layout.tiles))
        ]
        p = plan.layout.patches
        return cost.as_dict() | {
            "bitops_ratio": plan.bitops_ratio,
            "classes": plan.classes.tolist(),
            "mean_bits": [[round(w, 2) for w in widths[i * p : (i + 1) * p]] for i in range(p)],
            "seconds": plan.search.get("seconds"),
            "repairs": len(plan.search.get("repairs", [])),
        }


def quantize_patches(
    model: nn.Module,
    images: Any,
    *,
    patches: int = 3,
    n_stage: int | str = "auto",
    sram: int | None = None,
    phi: float = 0.96,
    rho: float | None = None,
    lam: float = 0.6,
    bits: tuple[int, ...] = (8, 4, 2),
    mode: str = "static",
    layerwise: bool = False,
    weight_bits: int = 8,
) -> PatchedModel:
    """Plan patch-based inference of a CNN in mixed precision (QuantMCU, arXiv 2401.13714; a reconstruction).

    Parameters
    ----------
    model : nn.Module
        A CNN of convolutions, batch norms, ReLU(6), pools, additions and linear layers, with one image as its input.
    images : array or Tensor of shape (N, C, H, W)
        Some 128 images like those to come, prepared as for the model; no labels.
    patches : int, default 3
        P of the P x P grid that the first layers are run in.
    n_stage : int or "auto", default "auto"
        Operators run in patches; "auto" ends where the map is 8 times smaller than the image.
    sram : int, optional
        Bytes that feature maps may take.
    phi, rho : float, default 0.96 and 1 - phi
        A patch keeps the highest width if more than the share ``rho`` of its values lies outside the central mass.
    lam : float, default 0.6
        Weight of lost entropy against saved bit operations.
    bits : tuple of int, default (8, 4, 2)
        Candidate widths.
    mode : {"static", "dynamic"}, default "static"
        One program a position, or one chosen for each image's patch.
    layerwise : bool, default False
        Search the layers after the patches, too.
    weight_bits : int, default 8

    Returns
    -------
    PatchedModel
        Call it on images; ``.plan`` is what a runtime follows (``.plan.to_json()``), ``.report()`` what it costs.

    Raises
    ------
    ModelError
        For a network with an unknown operator, or whose path depends on its input.
    DataError
        For images of the wrong shape, with NaN, or constant.
    ParameterError
        For values out of range, or a grid that does not fit.
    InfeasibleError
        If no widths bring memory under ``sram``.

    Examples
    --------
    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> net = nn.Sequential(
    ...     nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)
    ... )
    >>> images = torch.rand(32, 1, 32, 32) * 0.1
    >>> images[:, :, :10, :10] += torch.rand(32, 1, 10, 10)
    >>> small = quantize_patches(net, images, lam=0.5)
    >>> small(images).shape, small.plan.bitops_ratio > 1, small.report()["classes"][0]
    (torch.Size([32, 10]), True, ['O', 'N', 'N'])
    """
    search = QuantMCU(phi, rho, lam, bits, sram, mode, layerwise=layerwise)  # arguments first: they are quick to check
    x = as_images(images)
    executor = PatchExecutor(model, tuple(x.shape[1:]), patches=patches, n_stage=n_stage, weight_bits=weight_bits)
    return PatchedModel(executor, search.search(executor, x))
