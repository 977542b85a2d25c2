"""VDQS of QuantMCU (arXiv 2401.13714): a width for every feature map of a branch, from its values and without training.

Map ``i`` at ``b`` bits scores ``S(i, b) = -lambda * Omega(i, b) + (1 - lambda) * Phi(i, b)``: Phi is the share of the
branch's bit operations that it saves, divided by the largest such share; Omega the share of its entropy that is lost.
The score's form is the paper's. Its code was never published: both normalisations are a reconstruction.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from skerry.core.errors import ParameterError
from skerry.quant.patches.executor import PatchExecutor, as_images, run_segment
from skerry.quant.patches.graph import Op
from skerry.quant.patches.grids import MapRange, entropy, entropy_after, range_of, round_map
from skerry.quant.patches.receptive import Segment

__all__ = ["VDQS", "Score", "check_bits", "ranges_of"]

SAMPLE = 2**18  # values of a map that its entropy is estimated from


@dataclass(frozen=True)
class Score:
    """Score of one map at one width.

    Attributes
    ----------
    score, gain, loss : float
        S, Phi and Omega.
    entropy : float
        Bits of entropy that are left.
    """

    score: float
    gain: float
    loss: float
    entropy: float


Table = dict[int, dict[int, Score]]


def check_bits(bits: tuple[int, ...]) -> tuple[int, ...]:
    """Return candidate widths, largest first.

    Raises
    ------
    ParameterError
        If there are none, or one is not an integer of 2 to 8.
    """
    found = tuple(sorted(set(bits), reverse=True))
    if not found or any(isinstance(b, bool) or not isinstance(b, int) or not 2 <= b <= 8 for b in found):
        raise ParameterError(f"bits are {bits!r}: give widths of feature maps that are integers from 2 to 8")
    return found


def ranges_of(ops: tuple[Op, ...], segment: Segment, x: Tensor, tail: float = 0.001) -> dict[int, MapRange]:
    """Return the range of every map that a segment reads, from calibration values of its first map.

    Operands of one addition get one range, which holds both.
    """
    found: dict[int, MapRange] = {}

    def visit(m: int, values: Tensor) -> Tensor:
        found[m] = range_of(values, tail)
        return values

    if not len(segment.maps):
        return found
    run_segment(ops, segment, x, visit)
    group = {m: m for m in found}
    for j in range(segment.first, segment.end):
        sources = ops[j].sources
        if ops[j].kind == "add" and group[sources[0]] != group[sources[1]]:
            old, new = group[sources[1]], group[sources[0]]
            group = {m: new if g == old else g for m, g in group.items()}
    joined: dict[int, MapRange] = {}
    for m, g in group.items():
        joined[g] = found[m].joined(joined[g]) if g in joined else found[m]
    return {m: joined[g] for m, g in group.items()}


class VDQS:
    """Value-driven quantization search.

    Parameters
    ----------
    lam : float, default 0.6
        Weight of the entropy lost against the bit operations saved: 1 keeps every map wide, 0 makes all narrow.
    bits : tuple of int, default (8, 4, 2)
        Candidate widths.
    reference : {"top", "float"}, default "top"
        What entropy is lost against: the map at the largest width, or unrounded.
    tail : float, default 0.001
        Share of values left out at either end of the range at 2 bits.
    bins : int, default 256
        Of the histograms; their grid is fixed, whatever the width.

    Raises
    ------
    ParameterError
        For values out of range.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> conv = torch.nn.Conv2d(3, 8, 3, 2, 1)
    >>> net = torch.nn.Sequential(conv, torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3, 2, 1), torch.nn.AdaptiveAvgPool2d(1))
    >>> executor = PatchExecutor(net, (3, 32, 32), patches=2)
    >>> table = VDQS(lam=0.6).scores(executor, torch.randn(8, 3, 32, 32), branch=0)
    >>> sorted(table), table[0][8].score, table[0][2].loss > table[0][4].loss > 0
    ([0, 1], 0.0, True)
    """

    def __init__(
        self,
        lam: float = 0.6,
        bits: tuple[int, ...] = (8, 4, 2),
        reference: str = "top",
        tail: float = 0.001,
        bins: int = 256,
    ) -> None:
        if not 0.0 <= lam <= 1.0:
            raise ParameterError(f"lam is {lam}: give a weight from 0 to 1")
        if reference not in ("top", "float"):
            raise ParameterError(f"reference must be 'top' or 'float', got {reference!r}")
        if not 0.0 <= tail < 0.5:
            raise ParameterError(f"tail is {tail}: give a share from 0 to below 0.5")
        if bins < 2:
            raise ParameterError(f"bins is {bins}: give 2 or more")
        self.lam, self.bits, self.reference = float(lam), check_bits(bits), reference
        self.tail, self.bins = tail, bins

    @torch.no_grad()
    def scores(self, executor: PatchExecutor, images: Tensor, branch: int = 0) -> Table:
        """Return the score of every map of a branch at every width, from maps that nothing has rounded yet."""
        segment = executor.layout.branches[branch]
        a, b, c, d = segment.windows[0]
        x = as_images(images, executor.graph.image_shape)[:, :, a:b, c:d]
        ranges = ranges_of(executor.rounded_ops, segment, x, self.tail)
        table: Table = {}

        def visit(m: int, values: Tensor) -> Tensor:
            table[m] = self.score_map(segment, m, values, ranges[m])
            return values

        run_segment(executor.rounded_ops, segment, x, visit)
        return table

    @torch.no_grad()
    def search(
        self, ops: tuple[Op, ...], segment: Segment, x: Tensor, ranges: dict[int, MapRange]
    ) -> tuple[dict[int, int], Table]:
        """Return the width of every map that a segment reads, and the scores they were chosen by.

        Maps are visited in dataflow order, each with the values that the widths chosen upstream leave. A map's score
        depends on what is upstream alone, so a second sweep finds what the first did: one sweep is the fixed point.
        """
        widths: dict[int, int] = {}
        table: Table = {}

        def visit(m: int, values: Tensor) -> Tensor:
            table[m] = self.score_map(segment, m, values, ranges[m])
            widths[m] = best_width(table[m])
            return round_map(values, ranges[m].at(widths[m]), widths[m])

        if len(segment.maps):
            run_segment(ops, segment, x, visit)
        return widths, table

    def score_map(self, segment: Segment, m: int, values: Tensor, span: MapRange) -> dict[int, Score]:
        """Return the scores of one map from its values."""
        values = _sampled(values)
        own = tuple(float(v) for v in torch.aminmax(values))
        left = {b: entropy_after(values, span, b, own, self.bins) for b in self.bits}
        top = self.bits[0]
        whole = left[top] if self.reference == "top" else entropy(values, *own, self.bins)
        largest = max(segment.loads.values()) * (top - self.bits[-1])
        found = {}
        for b in self.bits:
            loss = min(max((whole - left[b]) / whole, 0.0), 1.0) if whole > 0.0 else 0.0
            gain = segment.loads[m] * (top - b) / largest if largest else 0.0
            found[b] = Score((1.0 - self.lam) * gain - self.lam * loss, gain, loss, left[b])
        return found


def best_width(scores: dict[int, Score]) -> int:
    """Return the width of the best score; of equals the largest."""
    return max(scores, key=lambda b: (scores[b].score, b))


def _sampled(values: Tensor) -> Tensor:
    flat = values.flatten()
    if len(flat) <= SAMPLE:
        return flat
    return flat[torch.randint(len(flat), (SAMPLE,), generator=torch.Generator().manual_seed(0))]
