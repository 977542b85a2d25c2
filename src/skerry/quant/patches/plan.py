"""What a microcontroller is to run: each patch's class and widths, and those of the layers after the stage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skerry.core.errors import ModelError
from skerry.quant.patches.classification import VDPC
from skerry.quant.patches.cost import Cost, bit_operations, cost_of, packed_bytes
from skerry.quant.patches.receptive import Layout, Segment

__all__ = ["Plan", "Program"]

FORMAT = "skerry-patch-plan-1"


@dataclass(frozen=True)
class Program:
    """Width and range of every map that a segment reads.

    Attributes
    ----------
    widths : dict of int to int
        Bits of each map.
    spans : dict of int to (float, float)
        Range of each map's grid.
    """

    widths: Mapping[int, int]
    spans: Mapping[int, tuple[float, float]]


@dataclass(frozen=True)
class Plan:
    """A program for every patch and for the layers after the stage.

    Attributes
    ----------
    layout : Layout
    classes : array (P, P) of "O" or "N"
        Class of each position, by the majority of calibration images.
    outlier, searched : tuple of Program
        For each branch the program of class O (the highest width everywhere) and that of class N.
    rest : Program
        Of the layers after the stage, the stage's last map included.
    mode : {"static", "dynamic"}
        One program a position, or the class of each image's patch found at run time.
    share : array (P, P) of float
        Of calibration images in class O; what the dynamic mode's costs are weighted by.
    vdpc : VDPC or None
        The fitted classifier; None if nothing was classified.
    weight_bits, top : int
        Width of weights, and of maps that are not lowered.
    search : dict
        What the search did: tables of scores, sweeps, repairs, seconds.
    """

    layout: Layout
    classes: NDArray[np.str_]
    outlier: tuple[Program, ...]
    searched: tuple[Program, ...]
    rest: Program
    mode: str = "static"
    share: NDArray[np.float64] = field(default_factory=lambda: np.zeros((1, 1)))
    vdpc: VDPC | None = None
    weight_bits: int = 8
    top: int = 8
    search: dict[str, Any] = field(default_factory=dict, repr=False)

    def programs(self, k: int) -> list[tuple[float, Program]]:
        """Programs that branch ``k`` may run, each with the share of images that take it."""
        i, j = divmod(k, self.layout.patches)
        if self.mode == "static":
            return [(1.0, self.outlier[k] if self.classes[i, j] == "O" else self.searched[k])]
        share = float(self.share[i, j])
        return [(share, self.outlier[k]), (1.0 - share, self.searched[k])]

    def assign(self, k: int, n: int, outlier: NDArray[np.bool_] | None) -> list[tuple[Program, Tensor]]:
        """Return the rows of a batch that take each program of branch ``k``."""
        if outlier is None:
            return [(self.programs(k)[0][1], torch.arange(n))]
        mask = torch.from_numpy(outlier.reshape(n, -1)[:, k])
        return [(self.outlier[k], mask.nonzero()[:, 0]), (self.searched[k], (~mask).nonzero()[:, 0])]

    def classify(self, images: Tensor) -> NDArray[np.bool_]:
        """Return which patches (N, P, P) of images are of class O."""
        return self.vdpc.outlier(images)

    def fits(self, layout: Layout) -> bool:
        """Whether the plan is for this layout."""
        mine = self.layout
        return mine is layout or (
            mine.graph.image_shape == layout.graph.image_shape
            and (mine.patches, mine.n_stage) == (layout.patches, layout.n_stage)
            and [(o.kind, o.sources, o.shape) for o in mine.graph.ops]
            == [(o.kind, o.sources, o.shape) for o in layout.graph.ops]
        )

    def cost(self) -> Cost:
        """Return bit operations, multiply-accumulates, peak memory and the redundancy of the plan."""
        return cost_of(self)

    @property
    def peak_sram(self) -> int:
        """Bytes of feature maps that are in memory at once, at most."""
        return self.cost().peak

    @property
    def bitops_ratio(self) -> float:
        """Bit operations with every map at the highest width, over those of the plan (both in patches)."""
        cost = self.cost()
        return cost.bitops_top / cost.bitops

    def diff(self, other: Plan) -> list[dict[str, Any]]:
        """Return the maps whose width differs: branch (-1 for the layers after), class, map, both widths."""
        rows = []
        pairs = [(-1, "rest", self.rest, other.rest)]
        for k in range(len(self.layout.tiles)):
            for name in ("outlier", "searched"):
                pairs.append((k, name, getattr(self, name)[k], getattr(other, name)[k]))
        for k, name, a, b in pairs:
            rows += [
                {"branch": k, "program": name, "map": m, "bits": a.widths[m], "other": b.widths[m]}
                for m in a.widths
                if a.widths[m] != b.widths.get(m)
            ]
        return rows

    # ---- what a runtime reads ----------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain data: header, and for each branch and program the steps of its operators."""
        cost = self.cost()
        return {
            "format": FORMAT,
            "image_shape": list(self.layout.graph.image_shape),
            "patches": self.layout.patches,
            "n_stage": self.layout.n_stage,
            "mode": self.mode,
            "classes": self.classes.tolist(),
            "share": self.share.tolist(),
            "vdpc": None if self.vdpc is None else self.vdpc.state(),
            "weight_bits": self.weight_bits,
            "top": self.top,
            "cost": cost.as_dict(),
            "branches": [
                {
                    "tile": list(tile),
                    "outlier": self._steps(branch, self.outlier[k]),
                    "searched": self._steps(branch, self.searched[k]),
                }
                for k, (tile, branch) in enumerate(zip(self.layout.tiles, self.layout.branches, strict=True))
            ],
            "rest": self._steps(self.layout.rest, self.rest),
        }

    def to_json(self) -> str:
        """Return :meth:`to_dict` as JSON text."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str, layout: Layout) -> Plan:
        """Rebuild a plan for the layout that it was made for.

        Raises
        ------
        ModelError
            If the text is no plan, or one for another network or grid.
        """
        try:
            told = json.loads(text)
            if told["format"] != FORMAT:
                raise ModelError(f"the plan has format {told['format']!r}, not {FORMAT!r}")
            header = (told["image_shape"], told["patches"], told["n_stage"], [b["tile"] for b in told["branches"]])
            mine = (list(layout.graph.image_shape), layout.patches, layout.n_stage, [list(t) for t in layout.tiles])
            if header != mine:
                raise ModelError("the plan was made for another image size, patch grid or stage")
            plan = cls(
                layout,
                np.array(told["classes"]),
                tuple(_program(b["outlier"]) for b in told["branches"]),
                tuple(_program(b["searched"]) for b in told["branches"]),
                _program(told["rest"]),
                told["mode"],
                np.array(told["share"], dtype=float),
                None if told["vdpc"] is None else VDPC.from_state(told["vdpc"]),
                told["weight_bits"],
                told["top"],
            )
            for segment, program in [(layout.rest, plan.rest), *zip(layout.branches, plan.searched, strict=True)]:
                if set(program.widths) != set(segment.maps):
                    raise ModelError("the plan has other feature maps than the network")
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, ModelError):
                raise
            raise ModelError(f"this is no plan of patches: {error!r}") from None
        return plan

    def _steps(self, segment: Segment, program: Program) -> list[dict[str, Any]]:
        steps = []
        for j in range(segment.first, segment.end):
            op = self.layout.graph.ops[j]
            written = program.widths.get(j + 1, self.rest.widths.get(j + 1, self.top))
            steps.append(
                {
                    "op": op.name,
                    "kind": op.kind,
                    "inputs": list(op.sources),
                    "output": j + 1,
                    "in_window": [list(segment.windows[s]) for s in op.sources],
                    "out_window": list(segment.windows[j + 1]),
                    "pads": list(segment.crop(j)[1]),
                    "w_bits": None if op.weight is None else self.weight_bits,
                    "a_bits_in": [program.widths[s] for s in op.sources],
                    "a_range_in": [list(program.spans[s]) for s in op.sources],
                    "a_bits_out": written,
                    "macs": segment.macs(j) * len(op.sources),
                    "bitops": bit_operations(segment, program.widths, self.weight_bits, j),
                    "bytes_in": sum(packed_bytes(segment.values(s), program.widths[s]) for s in op.sources),
                    "bytes_out": packed_bytes(segment.values(j + 1), written),
                }
            )
        return steps


def _program(steps: list[dict[str, Any]]) -> Program:
    widths: dict[int, int] = {}
    spans: dict[int, tuple[float, float]] = {}
    for step in steps:
        for m, bits, span in zip(step["inputs"], step["a_bits_in"], step["a_range_in"], strict=True):
            widths[int(m)] = int(bits)
            spans[int(m)] = (float(span[0]), float(span[1]))
    return Program(dict(sorted(widths.items())), dict(sorted(spans.items())))
