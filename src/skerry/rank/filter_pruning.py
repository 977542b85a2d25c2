"""Remove filters from a convolutional network and rebuild every layer that reads them (Beta-Rank, arXiv 2304.07461).

Which filters stand or fall together is worked out in ``channel_graph``; weights and batch norm statistics are copied
unchanged, with the kept indices in their old order.
"""

from __future__ import annotations

import copy
import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skerry.core.errors import DataError, MissingExtra, ModelError, ParameterError, nearest
from skerry.rank.channel_graph import Bucket, ChannelGraph
from skerry.rank.filter_observation import evaluating

try:
    import torch
    from torch import Tensor, nn
    from torch.nn.modules.batchnorm import _NormBase
except ImportError as error:
    raise MissingExtra("torch", "deep") from error

__all__ = ["LayerChange", "PruningReport", "prune_filters"]

RUNS, WARM_UP = 5, 2  # forward passes behind a latency


@dataclass(frozen=True)
class LayerChange:
    """One layer before and after: filters, FLOPs and milliseconds of a forward pass, and parameters."""

    layer: str
    kept: int
    of: int
    flops_before: int
    flops_after: int
    params_before: int
    params_after: int
    latency_before: float
    latency_after: float


@dataclass(frozen=True)
class PruningReport:
    """What :func:`prune_filters` did.

    Attributes
    ----------
    layers : tuple of LayerChange
        Convolutions, norms and linear layers in the order they run. FLOPs are two per multiplication, of one image;
        latency is the median in milliseconds for the whole example.
    total : LayerChange
        The network; ``kept`` and ``of`` count filters of convolutions.
    kept : dict of str to ndarray of int64
        Sorted indices of the filters that each convolution keeps.
    fixed : dict of str to str
        Convolutions of which some filters may not be removed, and why.
    """

    layers: tuple[LayerChange, ...]
    total: LayerChange
    kept: dict[str, NDArray[np.int64]] = field(repr=False)
    fixed: dict[str, str] = field(repr=False)

    def to_frame(self) -> Any:
        """Return a polars frame with one row per layer and a last one, ``(network)``."""
        import polars as pl

        return pl.DataFrame([vars(layer) for layer in (*self.layers, self.total)])


def prune_filters(
    model: nn.Module,
    scores: Mapping[str, NDArray[np.float64]],
    *,
    example: Tensor,
    rates: float | Mapping[str, float] | None = None,
    target_flops: float | None = None,
    min_keep: float = 0.1,
    scale_kept: bool = False,
) -> tuple[nn.Module, PruningReport]:
    """Return a smaller copy of ``model`` without the filters that score lowest, and a report.

    Of C filters a layer keeps ``int(C * (1 - rate))``, as in the paper. Layers whose outputs are added have one set of
    indices: the mean of their scores decides, at the lowest of their rates (0 for one without a rate).

    Parameters
    ----------
    model : nn.Module
        Not changed. Must be traceable by ``torch.fx``.
    scores : mapping of str to array of shape (filters,)
        From :func:`skerry.rank.rank_filters`; min-max normalised per layer here. Grouped convolutions need none.
    example : Tensor of shape (N, C, H, W)
        An input, for shapes and timing.
    rates : float or mapping of str to float in [0, 1), default None
        Share of filters to remove: everywhere, or by name of a layer or of a module that holds layers (the longest
        name wins, ``""`` is all).
    target_flops : float in (0, 1], default None
        Instead of rates: the share of FLOPs that may remain. Filters leave in the order of their normalised scores
        over all layers until it is met.
    min_keep : float in [0, 1], default 0.1
        With ``target_flops``: each layer keeps this share of its filters, and two at least.
    scale_kept : bool, default False
        Multiply kept filters by 1 + score, as the published code does for residual networks.

    Returns
    -------
    nn.Module
        With new, smaller layers; gradients are not copied. With nothing to remove, an exact copy.
    PruningReport

    Raises
    ------
    ParameterError
        For neither or both of ``rates`` and ``target_flops``, values out of range, unknown layers, or a target that
        ``min_keep`` does not allow.
    DataError
        If scores are missing, of another length, or not finite.
    ModelError
        If the network cannot be traced, or a filter to remove reaches an operation that cannot be followed; the
        message names both.

    Examples
    --------
    >>> import torch
    >>> from skerry.rank.filters import rank_filters
    >>> net = torch.nn.Sequential(
    ...     torch.nn.Conv2d(1, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Flatten(), torch.nn.Linear(32, 2)
    ... )
    >>> scores = rank_filters(net, criterion="l1")
    >>> small, report = prune_filters(net, scores, rates=0.5, example=torch.zeros(1, 1, 4, 4))
    >>> small[0].out_channels, small[1].num_features, small[3].in_features
    (4, 4, 16)
    """
    if (rates is None) == (target_flops is None):
        raise ParameterError("give either rates or target_flops")
    if target_flops is not None and not 0 < target_flops <= 1:
        raise ParameterError(f"target_flops is {target_flops}: give the share that may remain, in (0, 1]")
    if not 0 <= min_keep <= 1:
        raise ParameterError(f"min_keep is {min_keep}: give a share in [0, 1]")
    plan = ChannelGraph(model, example)
    known = _normalised(scores, plan)
    buckets = plan.buckets(known)
    keep = np.ones(len(plan.parent), dtype=bool)
    if rates is not None:
        remove = _by_rates(rates, buckets, plan)
    else:
        remove = _by_flops(target_flops, min_keep, buckets, plan)
    keep[remove] = False
    small = copy.deepcopy(model)
    modules = dict(small.named_modules())
    for site in plan.sites:
        _rebuild(modules[site.name], keep[plan.roots(site.inputs)], keep[plan.roots(site.outputs)])
        if scale_kept and site.name in known and not keep[plan.roots(site.outputs)].all():
            gain = torch.from_numpy(1 + known[site.name][keep[plan.roots(site.outputs)]])
            weight = modules[site.name].weight
            weight.data *= gain.to(weight).view(-1, 1, 1, 1)
    _check_runs(model, small, example)
    return small, _report(model, small, plan, keep, example)


# ---- the choice ------------------------------------------------------------------------------------------------------


def _normalised(scores: Mapping[str, NDArray[np.float64]], plan: ChannelGraph) -> dict[str, NDArray[np.float64]]:
    known = {}
    for name, values in scores.items():
        module = plan.modules.get(name)
        if not isinstance(module, nn.Conv2d):
            convs = [n for n, m in plan.modules.items() if isinstance(m, nn.Conv2d)]
            raise ParameterError(f"scores are of {name!r}, which is no Conv2d layer: {nearest(name, convs)}")
        values = np.asarray(values, dtype=np.float64)
        if values.shape != (module.out_channels,) or not np.isfinite(values).all():
            raise DataError(f"scores of {name!r}: give {module.out_channels} finite numbers, one per filter")
        spread = np.ptp(values)
        known[name] = (values - values.min()) / spread if spread > 0 else np.ones_like(values)
    return known


def _by_rates(rates: float | Mapping[str, float], buckets: list[Bucket], plan: ChannelGraph) -> list[int]:
    rates = rates if isinstance(rates, Mapping) else {"": rates}
    convs = [n for n, m in plan.modules.items() if isinstance(m, nn.Conv2d)]
    rate: dict[str, tuple[str, float]] = {}  # of a layer: the name that gave it, and the value
    for key in sorted(rates, key=len):
        value = float(rates[key])
        if not 0 <= value < 1:
            raise ParameterError(f"the rate of {key!r} is {value}: give a share in [0, 1)")
        found = [n for n in convs if key in ("", n) or n.startswith(f"{key}.")]
        if not found:
            raise ParameterError(f"no Conv2d layer is or lies in {key!r}: {nearest(key, convs)}")
        rate |= {n: (key, value) for n in found}
    fixed, walked = plan.fixed(), {s.name for s in plan.sites}
    for name, (_, value) in rate.items():
        if value > 0 and (name not in walked or name in fixed):
            why = fixed.get(name, "an operation that cannot be followed, or none at all")
            raise ModelError(f"layer {name!r} cannot lose filters: they reach {why}; set its rate to 0")
    remove: list[int] = []
    for bucket in buckets:
        # grouped convolutions follow their producer, unless they are named
        voters = [n for n in bucket.layers if plan.modules[n].groups == 1 or rate.get(n, ("", 0))[0] == n]
        without = [n for n in voters if n not in rate]
        for name in voters:
            key, wanted = rate.get(name, ("", 0.0))
            if key == name and wanted > 0 and without:
                raise ModelError(f"layer {name!r} is tied to {without[0]!r}, which has no rate: give it one too")
        value = min((rate.get(n, ("", 0.0))[1] for n in voters), default=0.0)
        n = len(bucket.roots)
        n_keep = max(1, int(n * (1 - value) + 1e-9))
        if n_keep < n:
            if np.isnan(bucket.score).any():
                raise DataError(f"there are no scores for layer {bucket.layers[0]!r}, of which filters are to go")
            remove += bucket.roots[np.argsort(bucket.score, kind="stable")[: n - n_keep]].tolist()
    return remove


def _by_flops(target: float, min_keep: float, buckets: list[Bucket], plan: ChannelGraph) -> list[int]:
    candidates: list[tuple[float, int]] = []
    for bucket in buckets:
        n = len(bucket.roots)
        free = n - min(n, max(2, math.ceil(min_keep * n - 1e-9)))
        if not np.isnan(bucket.score).any():
            order = np.argsort(bucket.score, kind="stable")[:free]
            candidates += [(float(bucket.score[i]), int(bucket.roots[i])) for i in order]
    candidates.sort(key=lambda c: c[0])
    order = np.array([root for _, root in candidates], dtype=np.int64)

    def remaining(n: int) -> int:
        keep = np.ones(len(plan.parent), dtype=bool)
        keep[order[:n]] = False
        return plan.flops(keep)

    base = remaining(0)
    if remaining(len(order)) > target * base:
        lowest = remaining(len(order)) / max(1, base)
        raise ParameterError(f"target_flops={target} cannot be reached: with min_keep={min_keep}, {lowest:.3f} remains")
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if remaining(middle) <= target * base else (middle + 1, high)
    return order[:low].tolist()


# ---- the smaller network ---------------------------------------------------------------------------------------------


def _rebuild(module: nn.Module, keep_in: NDArray[np.bool_], keep_out: NDArray[np.bool_]) -> None:
    """Cut the parameters of a layer to the channels that are kept; leave it alone if all are."""
    if keep_in.all() and keep_out.all():
        return
    ins, outs = (torch.from_numpy(np.flatnonzero(k)) for k in (keep_in, keep_out))

    def cut(name: str, dim: int, index: Tensor) -> None:
        old = getattr(module, name)
        if old is None:
            return
        new = old.detach().index_select(dim, index.to(old.device)).clone()
        setattr(module, name, nn.Parameter(new, requires_grad=old.requires_grad) if name in module._parameters else new)

    if isinstance(module, nn.PReLU):
        if module.num_parameters > 1:
            cut("weight", 0, outs)
            module.num_parameters = len(outs)
        return
    if isinstance(module, _NormBase):
        for name in ("weight", "bias", "running_mean", "running_var"):
            cut(name, 0, outs)
        module.num_features = len(outs)
        return
    cut("weight", 0, outs)
    cut("bias", 0, outs)
    if isinstance(module, nn.Linear):
        cut("weight", 1, ins)
        module.in_features, module.out_features = len(ins), len(outs)
        return
    if module.groups == 1:
        cut("weight", 1, ins)
    else:
        module.groups = len(ins) // (module.in_channels // module.groups)
    module.in_channels, module.out_channels = len(ins), len(outs)


def _check_runs(model: nn.Module, small: nn.Module, example: Tensor) -> None:
    with evaluating(model), evaluating(small), torch.no_grad():
        try:
            small(example)
        except Exception as error:
            raise ModelError(f"{type(model).__name__} does not run with fewer filters: {error}") from error


# ---- the report ------------------------------------------------------------------------------------------------------


def _latencies(model: nn.Module, names: Sequence[str], example: Tensor) -> dict[str, float]:
    """Return the median milliseconds of each named layer, and of the network as ``""``."""
    times: dict[str, list[float]] = defaultdict(list)
    modules = dict(model.named_modules())
    started: dict[str, float] = {}

    def now() -> float:
        if example.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def before(name: str) -> Callable[..., None]:
        return lambda *_: started.__setitem__(name, now())

    def after(name: str) -> Callable[..., None]:
        return lambda *_: times[name].append(now() - started[name])

    with evaluating(model), torch.no_grad():
        for _ in range(WARM_UP):
            model(example)
        for _ in range(RUNS):
            begin = now()
            model(example)
            times[""].append(now() - begin)
        handles = [modules[n].register_forward_pre_hook(before(n)) for n in names]
        handles += [modules[n].register_forward_hook(after(n)) for n in names]
        try:
            for _ in range(RUNS):
                model(example)
        finally:
            for handle in handles:
                handle.remove()
    return {n: 1000 * float(np.median(v)) for n, v in times.items()}


def _report(
    model: nn.Module, small: nn.Module, plan: ChannelGraph, keep: NDArray[np.bool_], example: Tensor
) -> PruningReport:
    names = [s.name for s in plan.sites]
    then, now = (_latencies(m, names, example) for m in (model, small))
    after = dict(small.named_modules())

    def size(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    layers, kept = [], {}
    for site in plan.sites:
        ins, outs = keep[plan.roots(site.inputs)], keep[plan.roots(site.outputs)]
        if isinstance(site.module, nn.Conv2d):
            kept[site.name] = np.flatnonzero(outs)
        layers.append(
            LayerChange(
                layer=site.name,
                kept=int(outs.sum()),
                of=len(outs),
                flops_before=site.flops(len(ins), len(outs)),
                flops_after=site.flops(int(ins.sum()), int(outs.sum())),
                params_before=size(site.module),
                params_after=size(after[site.name]),
                latency_before=then[site.name],
                latency_after=now[site.name],
            )
        )
    total = LayerChange(
        layer="(network)",
        kept=sum(len(k) for k in kept.values()),
        of=sum(plan.modules[n].out_channels for n in kept),
        flops_before=sum(x.flops_before for x in layers),
        flops_after=sum(x.flops_after for x in layers),
        params_before=size(model),
        params_after=size(small),
        latency_before=then[""],
        latency_after=now[""],
    )
    return PruningReport(tuple(layers), total, kept, plan.fixed())
