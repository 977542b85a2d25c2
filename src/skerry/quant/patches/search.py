"""QuantMCU (arXiv 2401.13714): classify patches, search widths for the quiet ones, and bring memory under the limit.

The paper's code was never published; this is a reconstruction from what its abstract and digests say, in which the
order of the search, the classes by majority and the repair of memory are ours.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skerry.core.errors import ParameterError
from skerry.quant.patches.classification import VDPC
from skerry.quant.patches.cost import InfeasibleError, peak_of
from skerry.quant.patches.executor import PatchExecutor, as_images
from skerry.quant.patches.grids import MapRange
from skerry.quant.patches.plan import Plan, Program
from skerry.quant.patches.scores import VDQS, Table, check_bits, ranges_of

__all__ = ["QuantMCU", "uniform_plan"]

Ranges = dict[int, MapRange]
ENOUGH = 8  # images that a program of the dynamic mode is calibrated on, at least


def uniform_plan(
    executor: PatchExecutor, images: Any, bits: int = 8, rest_bits: int = 8, *, tail: float = 0.001
) -> Plan:
    """Return the plan with one width for all maps of the stage, and one for those after it.

    With ``executor.layout.patches == 1`` and 8 bits that is ordinary layer-based int8 inference; with more patches it
    is patch-based int8 inference (MCUNetV2).

    Parameters
    ----------
    executor : PatchExecutor
    images : array or Tensor of shape (N, C, H, W)
        For calibration.
    bits, rest_bits : int, default 8
        2 to 8.
    tail : float, default 0.001
        Share of values left out at either end of a range at 2 bits.

    Returns
    -------
    Plan

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, 2, 1), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3))
    >>> executor = PatchExecutor(net, (1, 16, 16), patches=2, n_stage=1)
    >>> uniform_plan(executor, torch.rand(4, 1, 16, 16), bits=4).bitops_ratio > 1
    True
    """
    check_bits((bits, rest_bits))
    x = as_images(images, executor.graph.image_shape)
    ranges = [ranges_of(executor.rounded_ops, b, _crop(b, x), tail) for b in executor.layout.branches]
    programs = tuple(_program(r, bits) for r in ranges)
    plan = _bare(executor, programs, programs, "O" if bits == 8 else "N", top=8)
    rest = _rest_ranges(executor, plan, x, tail)
    return replace(plan, rest=_program(rest, rest_bits))


class QuantMCU:
    """Value-driven mixed precision for patch-based inference.

    Parameters
    ----------
    phi : float, default 0.96
        Central mass of the values; what lies outside counts as outliers (:class:`VDPC`).
    rho : float or None, default None
        Share of outliers above which a patch keeps the highest width; None is ``1 - phi``.
    lam : float, default 0.6
        Weight of lost entropy against saved bit operations (:class:`VDQS`).
    bits : tuple of int, default (8, 4, 2)
        Candidate widths of feature maps; the largest is that of patches with outliers.
    sram : int or None, default None
        Bytes that feature maps may take; None sets no limit.
    mode : {"static", "dynamic"}, default "static"
        Class by position (the majority of calibration images), or of each image's patch when it is run.
    vdpc : bool, default True
        False searches every patch: the paper's ablation.
    layerwise : bool, default False
        Search the layers after the stage, too.
    reference : {"top", "float"}, default "top"
        What entropy is lost against.
    tail : float, default 0.001
        Share of values left out at either end of a range at 2 bits.

    Raises
    ------
    ParameterError
        For values out of range.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3, 2, 1), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3, 2, 1))
    >>> images = torch.rand(32, 1, 32, 32) * 0.1
    >>> images[:, :, :10, :10] += torch.rand(32, 1, 10, 10)
    >>> plan = QuantMCU().search(PatchExecutor(net, (1, 32, 32), patches=3, n_stage=2), images)
    >>> plan.classes.tolist()
    [['O', 'N', 'N'], ['N', 'N', 'N'], ['N', 'N', 'N']]
    """

    def __init__(
        self,
        phi: float = 0.96,
        rho: float | None = None,
        lam: float = 0.6,
        bits: tuple[int, ...] = (8, 4, 2),
        sram: int | None = None,
        mode: str = "static",
        *,
        vdpc: bool = True,
        layerwise: bool = False,
        reference: str = "top",
        tail: float = 0.001,
    ) -> None:
        if mode not in ("static", "dynamic"):
            raise ParameterError(f"mode must be 'static' or 'dynamic', got {mode!r}")
        if mode == "dynamic" and not vdpc:
            raise ParameterError("without VDPC there is nothing to classify at run time: use mode='static'")
        if sram is not None and (isinstance(sram, bool) or not sram > 0):
            raise ParameterError(f"sram is {sram!r}: give a number of bytes, or None for no limit")
        self.vdqs = VDQS(lam, bits, reference, tail)
        self.classifier = VDPC(phi, rho)
        self.sram, self.mode, self.vdpc, self.layerwise = sram, mode, vdpc, layerwise

    @torch.no_grad()
    def search(self, executor: PatchExecutor, images: Any) -> Plan:
        """Return the plan for an executor, from calibration images (N, C, H, W); labels are not needed.

        Raises
        ------
        DataError
            For images of another shape, with NaN, or all constant.
        InfeasibleError
            If no widths bring memory under ``sram``.
        """
        started = time.perf_counter()
        x = as_images(images, executor.graph.image_shape)
        top, layout = self.vdqs.bits[0], executor.layout
        vdpc = VDPC(self.classifier.phi, self.classifier.rho).fit(x, layout.patches)
        outlier = vdpc.outlier(x).reshape(len(x), -1) if self.vdpc else np.zeros((len(x), len(layout.tiles)), bool)
        quiet = np.ones(len(layout.tiles), bool) if not self.vdpc else (vdpc.classes_ == "N").ravel()
        high, low, tables, ranges = [], [], {}, {}
        for k, branch in enumerate(layout.branches):
            crop = _crop(branch, x)
            found = ranges_of(executor.rounded_ops, branch, crop, self.vdqs.tail)
            high.append(_program(found, top))
            if self.mode == "static" and not quiet[k]:
                low.append(high[k])
                continue
            calm = torch.from_numpy(~outlier[:, k])
            if self.mode == "dynamic" and ENOUGH <= int(calm.sum()) < len(x):
                crop = crop[calm]  # the program of quiet patches sees quiet patches alone
                found = ranges_of(executor.rounded_ops, branch, crop, self.vdqs.tail)
            widths, tables[k] = self.vdqs.search(executor.rounded_ops, branch, crop, found)
            low.append(Program(widths, {m: found[m].at(b) for m, b in widths.items()}))
            ranges[k] = found
        plan = _bare(executor, tuple(high), tuple(low), "N", top)
        if self.vdpc:
            plan = replace(plan, classes=vdpc.classes_, share=vdpc.share_, vdpc=vdpc, mode=self.mode)
        ranges[-1] = _rest_ranges(executor, plan, x, self.vdqs.tail)
        rest = _program(ranges[-1], top)
        if self.layerwise and len(layout.rest.maps):
            widths, tables[-1] = self.vdqs.search(
                executor.rounded_ops, layout.rest, _stage(executor, plan, x), ranges[-1]
            )
            rest = Program(widths, {m: ranges[-1][m].at(b) for m, b in widths.items()})
        plan, repairs = self._repair(replace(plan, rest=rest), tables, ranges)
        told = {"tables": tables, "sweeps": 1, "repairs": repairs, "seconds": time.perf_counter() - started}
        return replace(plan, search=told)

    def _repair(
        self, plan: Plan, tables: dict[int, Table], ranges: dict[int, Ranges]
    ) -> tuple[Plan, list[dict[str, Any]]]:
        """Lower maps of the peak, the least loss of score first, until memory suffices."""
        steps: list[dict[str, Any]] = []
        while self.sram is not None:
            peak = peak_of(plan)
            if peak.bytes <= self.sram:
                break
            options = []
            maps = {*peak.maps, plan.layout.n_stage} if peak.branch > 0 else peak.maps  # tiles that are done
            for m in sorted(maps):
                k = -1 if m >= plan.layout.n_stage else peak.branch
                searched = k in tables and (k == -1 or peak.searched)
                program = (plan.rest if k == -1 else plan.searched[k]) if searched else None
                if program is None or m not in program.widths or program.widths[m] == self.vdqs.bits[-1]:
                    continue
                now = program.widths[m]
                lower = next(b for b in self.vdqs.bits if b < now)
                loss = tables[k][m][now].score - tables[k][m][lower].score
                options.append((loss, k, m, lower, program))
            if not options:
                raise InfeasibleError(self._infeasible(plan, peak.bytes, peak.branch, peak.operator))
            loss, k, m, lower, program = min(options, key=lambda o: o[:3])
            changed = Program({**program.widths, m: lower}, {**program.spans, m: ranges[k][m].at(lower)})
            steps.append({"branch": k, "map": m, "from": program.widths[m], "to": lower, "loss": loss})
            if k == -1:
                plan = replace(plan, rest=changed)
            else:
                plan = replace(plan, searched=(*plan.searched[:k], changed, *plan.searched[k + 1 :]))
        return plan, steps

    def _infeasible(self, plan: Plan, needed: int, branch: int, operator: int) -> str:
        name = plan.layout.graph.ops[operator].name
        where = f"patch {branch}" if branch >= 0 else "the layers after the stage"
        rest = "" if self.layerwise else ", layerwise=True to lower the layers after the stage"
        return (
            f"operator {name!r} of {where} needs {needed} bytes and sram is {self.sram}; no map there can be lowered "
            f"further. Try more patches (now {plan.layout.patches}), another end of the stage (n_stage, now "
            f"{plan.layout.n_stage}){rest}, or a larger phi (fewer patches with outliers)"
        )


def _crop(branch: Any, x: Tensor) -> Tensor:
    a, b, c, d = branch.windows[0]
    return x[:, :, a:b, c:d]


def _program(ranges: Ranges, bits: int) -> Program:
    return Program(dict.fromkeys(ranges, bits), {m: r.at(bits) for m, r in ranges.items()})


def _bare(
    executor: PatchExecutor, outlier: tuple[Program, ...], searched: tuple[Program, ...], kind: str, top: int
) -> Plan:
    """Return a plan without classes and without the layers after the stage."""
    size = (executor.layout.patches,) * 2
    classes, share = np.full(size, kind), np.full(size, float(kind == "O"))
    rest = Program({}, {})
    return Plan(
        executor.layout, classes, outlier, searched, rest, share=share, weight_bits=executor.weight_bits, top=top
    )


def _stage(executor: PatchExecutor, plan: Plan, x: Tensor) -> Tensor:
    outlier = None if plan.mode == "static" else plan.classify(x)
    return executor.stage(x, plan, outlier)


@torch.no_grad()
def _rest_ranges(executor: PatchExecutor, plan: Plan, x: Tensor, tail: float) -> Ranges:
    """Return ranges of the layers after the stage, from what the rounded stage hands them."""
    if not len(executor.layout.rest.maps):
        return {}
    return ranges_of(executor.rounded_ops, executor.layout.rest, _stage(executor, plan, x), tail)
