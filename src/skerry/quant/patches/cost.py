"""What a plan costs on a microcontroller: bit operations, and the peak of memory that feature maps take.

BitOPs of an operator are multiply-accumulates x weight bits x bits of the map that it reads. Memory while an operator
runs: the windows that are still to be read (residual sources with them), the window that it writes, and the tiles of
the stage's output that are done; a map of b bits is packed. Weights lie in flash and do not count. After the brief of
QuantMCU (arXiv 2401.13714); the memory model is a reconstruction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from skerry.core.errors import ParameterError
from skerry.quant.patches.receptive import Segment

if TYPE_CHECKING:
    from skerry.quant.patches.plan import Plan

__all__ = ["Cost", "InfeasibleError", "Peak", "bit_operations", "cost_of", "packed_bytes", "peak_of"]


class InfeasibleError(ParameterError):
    """No widths bring the plan under the memory that is there."""


@dataclass(frozen=True)
class Peak:
    """The moment at which most memory is taken.

    Attributes
    ----------
    bytes : int
    branch : int
        -1 for the layers after the stage.
    searched : bool
        Whether it is in the program of class N.
    operator : int
    maps : tuple of int
        Maps of the segment that are in memory, what is written included.
    """

    bytes: int
    branch: int
    searched: bool
    operator: int
    maps: tuple[int, ...]


@dataclass(frozen=True)
class Cost:
    """Costs of one image.

    Attributes
    ----------
    bitops, bitops_top : float
        Bit operations of the plan, and with every map at the highest width.
    bitops_stage : float
        Those of the stage alone.
    macs, macs_unpatched : int
        Multiply-accumulates in patches and in one piece.
    peak : int
        Bytes.
    redundancy : float
        Multiply-accumulates of the stage's branches over those of the stage in one piece.
    """

    bitops: float
    bitops_top: float
    bitops_stage: float
    macs: int
    macs_unpatched: int
    peak: int
    redundancy: float

    def as_dict(self) -> dict[str, float]:
        """Return the figures by name."""
        return asdict(self)


def packed_bytes(values: int, bits: int) -> int:
    """Return the bytes that ``values`` numbers of ``bits`` take when packed.

    Examples
    --------
    >>> packed_bytes(5, 2)
    2
    """
    return (values * bits + 7) // 8


def bit_operations(
    segment: Segment, widths: Mapping[int, int], weight_bits: int = 8, operator: int | None = None
) -> int:
    """Return the bit operations of a segment, or of one of its operators."""
    ops = range(segment.first, segment.end) if operator is None else [operator]
    return sum(segment.macs(j) * weight_bits * widths[s] for j in ops for s in segment.graph.ops[j].sources)


def cost_of(plan: Plan) -> Cost:
    """Return what a plan costs; in the dynamic mode the mean over classes, and the worst for memory."""
    layout = plan.layout
    stage = sum(
        share * bit_operations(branch, program.widths, plan.weight_bits)
        for k, branch in enumerate(layout.branches)
        for share, program in plan.programs(k)
    )
    macs = sum(b.total_macs for b in layout.branches) + layout.rest.total_macs
    return Cost(
        bitops=stage + bit_operations(layout.rest, plan.rest.widths, plan.weight_bits),
        bitops_top=macs * plan.weight_bits * plan.top,
        bitops_stage=stage,
        macs=macs,
        macs_unpatched=layout.unpatched.total_macs + layout.rest.total_macs,
        peak=peak_of(plan).bytes,
        redundancy=layout.redundancy,
    )


def peak_of(plan: Plan) -> Peak:
    """Return the moment of a plan at which most memory is taken, the first of equals."""
    layout = plan.layout
    bits = plan.rest.widths.get(layout.n_stage, plan.top)  # of the stage's output, in every tile
    best = Peak(0, -1, False, 0, ())
    done = 0
    for k, branch in enumerate(layout.branches):
        for _, program in plan.programs(k):  # in the dynamic mode either may come, whatever its share was
            searched = program is plan.searched[k]
            best = _peak(best, branch, {**program.widths, branch.end: bits}, done, k, searched)
        done += packed_bytes(branch.values(branch.end), bits)
    return _peak(best, layout.rest, {**plan.rest.widths, layout.rest.end: plan.top}, 0, -1, False)


def _peak(best: Peak, segment: Segment, widths: Mapping[int, int], done: int, branch: int, searched: bool) -> Peak:
    sizes = {m: packed_bytes(segment.values(m), widths[m]) for m in range(segment.first, segment.end + 1)}
    for j in range(segment.first, segment.end):
        live = segment.live(j)
        total = done + sum(sizes[m] for m in live)
        if total > best.bytes:
            best = Peak(total, branch, searched, j, tuple(live))
    return best
