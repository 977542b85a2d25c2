"""SVDQuant: smoothing moves the outliers into the weights, a low-rank branch in 16 bits takes them out of there.

Li et al. (ICLR 2025), "SVDQuant" (arXiv 2411.05007). ``y = x_hat L + Q(x_hat) Q(R)`` with ``x_hat = x / lam``,
``W_hat = W lam`` and ``R = W_hat - L`` after the best rank-r L. :class:`BranchSmooth` searches lam by the error of
the output that matters, with weights, inputs AND the branch in place; :class:`LiftedInput` moves GELU outputs above
zero so that all unsigned codes are used; :class:`LowRankAbsorb` finds the branch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from skerry.core.errors import ParameterError
from skerry.quant.groups import Group
from skerry.quant.parts import ActivationQuantizer, Format, LowRank, Solved, Solver
from skerry.quant.probe import GroupContext
from skerry.quant.statistics import LayerStatistics
from skerry.quant.transforms.smooth import smoothing_scale

__all__ = ["BranchSmooth", "LiftedInput", "LowRankAbsorb", "candidates", "truncated"]

GELU_LIFT = 0.171875  # GELU is never below -0.16997
EXACT = 2048  # smaller sides up to here take the full decomposition


@dataclass(frozen=True)
class LiftedInput:
    """Add a constant to inputs that are bounded below by -``lift``, and take it back in the bias.

    Parameters
    ----------
    lift : float, default 0.171875
        Applied to groups whose calibrated minimum is negative and not below ``-lift``.
    """

    lift: float = GELU_LIFT

    needs = frozenset({"range"})
    keeps_inputs = True

    def apply(self, group: Group, statistics: LayerStatistics, context: GroupContext) -> Mapping[str, Any]:
        """Lift one group; see :class:`~skerry.quant.parts.Transform`."""
        assert statistics.low is not None and statistics.high is not None
        low, high = float(statistics.low.min()), float(statistics.high.max())
        if not -self.lift <= low < 0.0 or high < 2 * self.lift:
            return {}
        if group.folds:  # a norm's output is no GELU's, and nothing passes a shift through "rows"
            return {}
        ones = torch.ones_like(statistics.low)
        group.rescale(context.model, ones, -self.lift * ones)
        return {"lift": self.lift}


@dataclass(frozen=True)
class BranchSmooth:
    """Smooth by the best of the grid ``max|x|^alpha / max|W|^beta``, judged with the low-rank branch in place.

    Parameters
    ----------
    rank : int, default 32
    n_grid : int, default 20
        Gives ``2 n_grid - 1`` candidates: none, ``(i/n, 0)`` and ``(i/n, 1 - i/n)``.
    fold : bool, default True
        Divide in the layer before where that is possible; False divides at run time, as the paper's engine does, which
        leaves every layer's own input as it was (see :func:`skerry.quant.attach_lora`).

    Raises
    ------
    ParameterError
        For a negative rank or an empty grid.
    """

    rank: int = 32
    n_grid: int = 20
    fold: bool = True

    needs = frozenset({"absmax"})

    def __post_init__(self) -> None:
        if self.rank < 0 or self.n_grid < 1:
            raise ParameterError(f"rank must be >= 0 and n_grid >= 1, got {self.rank} and {self.n_grid}")

    @property
    def keeps_inputs(self) -> bool:
        """Whether what is done to an input stays in front of its layer."""
        return not self.fold

    def apply(self, group: Group, statistics: LayerStatistics, context: GroupContext) -> Mapping[str, Any]:
        """Smooth one group; see :class:`~skerry.quant.parts.Transform`."""
        assert statistics.absmax is not None
        W = group.weight()
        top = W.abs().amax(0)
        activation = context.activation.calibrated(statistics) if context.activation is not None else None
        best, chosen, least = torch.ones_like(top), (0.0, 0.0), float("inf")
        for alpha, beta in candidates(self.n_grid):
            lam = smoothing_scale(statistics.absmax, top, alpha, beta)
            branch = truncated(W * lam, self.rank)[0]
            error = _error(group, context, W * lam, branch, lam, activation)
            if error < least:
                best, chosen, least = lam, (alpha, beta), error
        group.rescale(context.model, best, fold=self.fold)
        return {"alpha": chosen[0], "beta": chosen[1], "error": least}


@dataclass(frozen=True)
class LowRankAbsorb:
    """A branch of rank r in 16 bits beside the stored residual; layers with one input share the branch's first half.

    Parameters
    ----------
    rank : int, default 32
    iterations : int, default 100
        Rounds of "branch of what rounding left, round what the branch left"; 1 is the plain decomposition. It stops
        at the first round that does not lower the error.
    residual : Solver or None, default None
        For the residual, for example GPTQ; None rounds to nearest.
    dtype : {"bfloat16", "float16", "float32"}, default "bfloat16"
        Of the branch.

    Raises
    ------
    ParameterError
        For settings out of range.
    """

    rank: int = 32
    iterations: int = 100
    residual: Any = None
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        if self.rank < 0 or self.iterations < 1:
            raise ParameterError(f"rank must be >= 0 and iterations >= 1, got {self.rank} and {self.iterations}")
        if self.dtype not in ("bfloat16", "float16", "float32"):
            raise ParameterError(f"dtype must be bfloat16, float16 or float32, got {self.dtype!r}")

    @property
    def needs(self) -> frozenset[str]:
        """Statistics wanted: the residual solver's."""
        return frozenset(getattr(self.residual, "needs", ()))

    def split(self, W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (up (out, r), down (r, in), residual (out, in)) of the plain decomposition of ``W``."""
        product, up, down = truncated(W, self.rank)
        return up, down, W.float() - product

    def solve(self, W: Tensor, statistics: LayerStatistics, grid: Format, *, name: str = "the weight") -> Solved:
        """Store one weight by the plain decomposition (no probe, no rounds)."""
        up, down, _ = self.split(W)
        return self._store(W, up, down, statistics, grid, name, (), {})

    def solve_in(
        self,
        W: Tensor,
        statistics: LayerStatistics,
        grid: Format,
        *,
        group: Group,
        layer: str,
        context: GroupContext,
    ) -> Solved:
        """Store one weight of a group; the branch is found once for all its layers."""
        if "branch" not in context.memo:
            context.memo["branch"] = self._branch(group, statistics, grid, context)
        ups, down, trace = context.memo["branch"]
        return self._store(W, ups[layer], down, statistics, grid, layer, trace, {"shared_by": len(ups)})

    def _branch(
        self, group: Group, statistics: LayerStatistics, grid: Format, context: GroupContext
    ) -> tuple[dict[str, Tensor], Tensor, tuple[float, ...]]:
        W = group.weight()
        activation = context.activation.calibrated(statistics) if context.activation is not None else None
        ones = torch.ones(W.shape[1])
        rounded = torch.zeros_like(W)
        best: tuple[Tensor, Tensor] | None = None
        trace: list[float] = []
        for _ in range(self.iterations if context.probe.calls and self.rank else 1):
            product, up, down = truncated(W - rounded, self.rank)
            error = _error(group, context, W, product, ones, activation) if context.probe.calls else 0.0
            if best is not None and error >= trace[-1]:
                break
            best = up, down
            trace.append(error)
            rounded = torch.cat([_rounded(grid, part) for part in (W - product).split(_heights(group))])
        assert best is not None
        pieces = best[0].split(_heights(group))
        return dict(zip(group.consumers, pieces, strict=True)), best[1], tuple(trace)

    def _store(
        self,
        W: Tensor,
        up: Tensor,
        down: Tensor,
        statistics: LayerStatistics,
        grid: Format,
        name: str,
        trace: tuple[float, ...],
        info: dict[str, Any],
    ) -> Solved:
        branch = None
        residual = W.float()
        if self.rank:
            kept = getattr(torch, self.dtype)
            branch = LowRank(up.to(kept).contiguous(), down.to(kept).contiguous(), info.get("shared_by", 1))
            residual = residual - branch.dense()
            info = info | {"rank": self.rank, "residual_share": float((residual.norm() / W.float().norm()).square())}
        inner: Solver | None = self.residual
        if inner is None:
            return Solved(grid.quantize(residual), low_rank=branch, trace=trace, info=info)
        found = inner.solve(residual, statistics, grid, name=name)
        return Solved(found.weight, found.sparse, branch, found.objective, trace, {**found.info, **info})


def candidates(n_grid: int) -> list[tuple[float, float]]:
    """Return the (alpha, beta) pairs that are tried, "no smoothing" first.

    Examples
    --------
    >>> len(candidates(20))
    39
    """
    inner = [i / n_grid for i in range(1, n_grid)]
    return [(0.0, 0.0), *((a, 0.0) for a in inner), *((a, 1.0 - a) for a in inner)]


def truncated(W: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return (product, up (out, r), down (r, in)) of the best rank-r approximation, computed in float64."""
    rank = min(rank, *W.shape)
    if rank == 0:
        empty = W.float()
        return torch.zeros_like(empty), empty[:, :0], empty[:0]
    if min(W.shape) <= EXACT:
        u, s, vt = torch.linalg.svd(W.double(), full_matrices=False)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(W.double(), q=min(rank + 16, *W.shape), niter=4)
            vt = v.T
    up, down = u[:, :rank] * s[:rank], vt[:rank]
    return (up @ down).float(), up.float(), down.float()


@dataclass(frozen=True)
class _Divided:
    """Rounds ``x / lam`` and multiplies back, so that weights divided by lam see it."""

    lam: Tensor
    inner: ActivationQuantizer
    bits: int = 16

    def calibrated(self, statistics: LayerStatistics) -> _Divided:
        return self

    def fake(self, x: Tensor) -> Tensor:
        lam = self.lam.to(x)
        return self.inner.fake(x / lam) * lam


def _error(
    group: Group, context: GroupContext, W: Tensor, branch: Tensor, lam: Tensor, activation: ActivationQuantizer | None
) -> float:
    """Return the output error with ``W`` (already times lam) split into ``branch`` and a rounded residual."""
    heights = _heights(group)
    weight = context.weight
    stored = {
        name: (part if weight is None else _rounded(weight, part)) / lam
        for name, part in zip(group.consumers, (W - branch).split(heights), strict=True)
    }
    branches = {n: part / lam for n, part in zip(group.consumers, branch.split(heights), strict=True)}
    rounding = None if activation is None else _Divided(lam, activation)
    return context.error(group, stored, rounding, branches=branches)


def _heights(group: Group) -> list[int]:
    return [layer.out_features for layer in group.consumers.values()]


def _rounded(grid: Any, W: Tensor) -> Tensor:
    return grid.round(W) if hasattr(grid, "round") else grid.quantize(W).dequantize()
