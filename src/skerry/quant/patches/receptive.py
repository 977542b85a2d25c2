"""Which window of every feature map a tile of the stage's output needs, and what the overlaps cost.

Patch-based inference (MCUNetV2; QuantMCU, arXiv 2401.13714) pushes each of P x P patches through the first layers
alone. The window of a tile is found backwards, layer by layer: output rows [a, b) read input rows
``[a * stride - pad, (b - 1) * stride + dilation * (kernel - 1) + 1 - pad)``, cut to the map. What sticks out is
padding, and only that is padded: a window's inner sides have real neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from skerry.core.errors import ModelError, ParameterError
from skerry.quant.patches.graph import CnnGraph, Op

__all__ = ["Layout", "Segment", "Window", "input_interval", "input_window", "tiles"]

Window = tuple[int, int, int, int]  # first row, end row, first column, end column


def _split(size: int, parts: int) -> list[int]:
    whole, left = divmod(size, parts)
    edges = [0]
    for i in range(parts):
        edges.append(edges[-1] + whole + (i < left))
    return edges


def tiles(height: int, width: int, patches: int) -> list[Window]:
    """Cut a map in ``patches x patches`` tiles, row by row; the first are one larger where it does not divide.

    Raises
    ------
    ParameterError
        If there are more patches along a side than values.

    Examples
    --------
    >>> tiles(16, 16, 3)[:2]
    [(0, 6, 0, 6), (0, 6, 6, 11)]
    """
    if patches < 1:
        raise ParameterError(f"patches is {patches}: give 1 or more")
    if patches > min(height, width):
        raise ParameterError(
            f"a grid of {patches} x {patches} patches does not fit a feature map of {height} x {width}: give at most "
            f"{min(height, width)} patches, or end the stage earlier (n_stage)"
        )
    rows, columns = _split(height, patches), _split(width, patches)
    return [(rows[i], rows[i + 1], columns[j], columns[j + 1]) for i in range(patches) for j in range(patches)]


def input_interval(start: int, end: int, kernel: int, stride: int, pad: int, dilation: int = 1) -> tuple[int, int]:
    """Return the rows (or columns) that outputs [start, end) read, before they are cut to the map.

    Examples
    --------
    >>> input_interval(0, 6, kernel=3, stride=2, pad=1)
    (-1, 12)
    """
    return start * stride - pad, (end - 1) * stride + dilation * (kernel - 1) + 1 - pad


def input_window(op: Op, window: Window) -> Window:
    """Return the window of its inputs, not yet cut to the map, that an operator reads to write ``window``."""
    rows = input_interval(window[0], window[1], op.kernel[0], op.stride[0], op.pad[0], op.dilation[0])
    columns = input_interval(window[2], window[3], op.kernel[1], op.stride[1], op.pad[1], op.dilation[1])
    return (*rows, *columns)


def clip(window: Window, height: int, width: int) -> Window:
    """Cut a window to the map."""
    a, b, c, d = window
    return max(a, 0), min(b, height), max(c, 0), min(d, width)


def _area(window: Window) -> int:
    return (window[1] - window[0]) * (window[3] - window[2])


@dataclass(frozen=True)
class Segment:
    """A run of operators on one window of every map: a branch of the stage, or the layers after it.

    Attributes
    ----------
    graph : CnnGraph
    first, end : int
        Operators ``first`` to ``end - 1``; the segment reads map ``first`` and ends with map ``end``.
    windows : dict of int to Window
        Of every map from ``first`` to ``end``, cut to the map.
    """

    graph: CnnGraph
    first: int
    end: int
    windows: dict[int, Window] = field(repr=False)

    @property
    def maps(self) -> range:
        """Maps whose width the segment decides: all that it reads. The last one belongs to who comes next."""
        return range(self.first, self.end)

    def values(self, index: int) -> int:
        """Number of values that the segment holds of a map."""
        return self.graph.shape(index)[0] * _area(self.windows[index])

    def macs(self, j: int) -> int:
        """Multiply-accumulates of operator ``j`` for one operand."""
        op = self.graph.ops[j]
        written = self.values(op.sources[0]) if op.kind == "global_pool" else self.values(j + 1)
        return written * op.macs_per_value

    @cached_property
    def loads(self) -> dict[int, int]:
        """Multiply-accumulates that read each map: what its width is multiplied with in BitOPs."""
        found = dict.fromkeys(self.maps, 0)
        for j in range(self.first, self.end):
            for source in self.graph.ops[j].sources:
                found[source] += self.macs(j)
        return found

    @cached_property
    def total_macs(self) -> int:
        """Multiply-accumulates of the whole segment."""
        return sum(self.loads.values())

    @cached_property
    def last_reader(self) -> dict[int, int]:
        """The last operator that reads each map."""
        return {s: j for j in range(self.first, self.end) for s in self.graph.ops[j].sources}

    def live(self, j: int) -> list[int]:
        """Maps in memory while operator ``j`` runs: those read now or later, and what it writes."""
        return [m for m in range(self.first, j + 1) if self.last_reader[m] >= j] + [j + 1]

    def crop(self, j: int, slot: int = 0) -> tuple[Window, tuple[int, int, int, int]]:
        """Return where operator ``j``'s input lies in the held window of its source, and its zero padding.

        Returns
        -------
        slice : Window
            Relative to the held window.
        pads : tuple of int
            Left, right, top, bottom.
        """
        op = self.graph.ops[j]
        source = op.sources[slot]
        height, width = self.graph.shape(source)[1:]
        whole = op.kind in ("linear", "global_pool")
        wanted = (0, height, 0, width) if whole else input_window(op, self.windows[j + 1])
        a, b, c, d = clip(wanted, height, width)
        held = self.windows[source]
        pads = (c - wanted[2], wanted[3] - d, a - wanted[0], wanted[1] - b)
        return (a - held[0], b - held[0], c - held[2], d - held[2]), pads


class Layout:
    """The branches of a stage cut in patches, and the layers after it.

    Parameters
    ----------
    graph : CnnGraph
    patches : int, default 3
        P of the P x P grid on the stage's last map.
    n_stage : int or "auto", default "auto"
        Operators run in patches. "auto": up to the map with fewest channels (of equals the first) among those that
        are 8 times smaller than the image (or as small as it gets, or as the grid allows) and alone carry everything.

    Raises
    ------
    ParameterError
        If the grid does not fit the stage's last map, or the stage ends inside a residual block.

    Examples
    --------
    >>> import torch
    >>> from skerry.quant.patches.graph import read_cnn
    >>> conv = torch.nn.Conv2d(3, 4, 3, stride=2, padding=1)
    >>> net = torch.nn.Sequential(conv, torch.nn.Conv2d(4, 4, 3, padding=1))
    >>> layout = Layout(read_cnn(net, (3, 32, 32)), patches=2, n_stage=2)
    >>> layout.branches[0].windows[0], round(layout.redundancy, 3)
    ((0, 18, 0, 18), 1.114)
    """

    def __init__(self, graph: CnnGraph, patches: int = 3, n_stage: int | str = "auto") -> None:
        if isinstance(patches, bool) or not isinstance(patches, int):
            raise ParameterError(f"patches must be an integer, got {patches!r}")
        self.graph, self.patches = graph, patches
        self.n_stage = self._stage(n_stage)
        _, height, width = graph.shape(self.n_stage)
        self.tiles = tiles(height, width, patches)
        self.branches = [Segment(graph, 0, self.n_stage, self._windows(tile)) for tile in self.tiles]
        whole = {m: (0, graph.shape(m)[1], 0, graph.shape(m)[2]) for m in range(len(graph.ops) + 1)}
        self.rest = Segment(graph, self.n_stage, len(graph.ops), whole)
        self.unpatched = Segment(graph, 0, self.n_stage, self._windows((0, height, 0, width)))

    @property
    def redundancy(self) -> float:
        """Multiply-accumulates of all branches over those of the stage run in one piece.

        At least 1, and 1 for one patch; the piece computes what the stage's output needs, so rows that a stride skips
        at the border count on neither side. (Kernels smaller than their stride leave gaps between tiles and may bring
        it below 1.)
        """
        return sum(b.total_macs for b in self.branches) / max(self.unpatched.total_macs, 1)

    def _stage(self, n_stage: int | str) -> int:
        cuts = self.graph.cuts()
        if not cuts:
            raise ModelError(
                "the network has no point where one feature map carries everything, before its first linear layer: "
                "patch-based inference needs a chain of layers or residual blocks"
            )
        if n_stage == "auto":
            sides = {n: min(self.graph.shape(n)[1:]) for n in cuts}
            fit = [n for n in cuts if sides[n] >= self.patches] or cuts[:1]
            target = max(min(self.graph.image_shape[1:]) // 8, min(sides[n] for n in fit))
            side = next(sides[n] for n in fit if sides[n] <= target)
            return min((n for n in fit if sides[n] == side), key=lambda n: (self.graph.shape(n)[0], n))
        if isinstance(n_stage, bool) or n_stage not in cuts:
            raise ParameterError(
                f"n_stage is {n_stage!r}: the stage can end after {', '.join(map(str, cuts))} of the network's "
                f"{len(self.graph.ops)} operators (elsewhere a residual connection crosses), or give 'auto'"
            )
        return int(n_stage)

    def _windows(self, tile: Window) -> dict[int, Window]:
        """Return the window of every map of the stage that the tile needs, found from the last map backwards."""
        found = {self.n_stage: tile}
        for j in reversed(range(self.n_stage)):
            op = self.graph.ops[j]
            window = input_window(op, found[j + 1])
            for source in op.sources:
                cut = clip(window, *self.graph.shape(source)[1:])
                old = found.get(source, cut)  # two readers: the smallest window that holds both
                found[source] = (min(old[0], cut[0]), max(old[1], cut[1]), min(old[2], cut[2]), max(old[3], cut[3]))
        return found
