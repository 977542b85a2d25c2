"""Rows cut into compact blocks and turned along their principal axes, as the neighbour search multiplies them.

Blocks hold at most 512 rows. They are cut along the most spread of the first principal axes, at a gap where there is
one, else near the median; rows far from the middle of their block are set apart, lest a few strays stretch its box
over the whole table. Each block is centred and scaled by itself, so that float32 keeps its precision whatever the
offset and the range of the table are. Axes are those of the table's sample; a turn changes no distance, but puts most
of every distance into the first few coordinates and lets boxes fit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skerry.kernels.neighbour_tiles import GROUP, LANES, TILE, aligned

__all__ = ["Axes", "Blocks", "cut_blocks", "find_axes"]

SAMPLE = 4096  # rows that set the axes
CUT_AXES = 16  # axes along which blocks are cut
WIDEST = 1024  # beyond so many columns the axes are those of the table
HEAD_SHARE = 0.8  # share of the variance that the first groups must hold to be tested alone


@dataclass(frozen=True, eq=False)
class Axes:
    """The turned frame of a table.

    Attributes
    ----------
    middle : ndarray of shape (d,), float64
    turn : ndarray of shape (d, d) or None, float64
        Orthonormal columns, most variance first; None leaves the columns as they are.
    unit : float
        Largest absolute deviation from the middle.
    haze : float
        Bound of the float64 rounding errors of a turned row.
    place : ndarray of shape (d,), int64
        Line of a block in which a coordinate lies.
    lines : int
        Lines of a block: coordinates, two norms for each part, and padding.
    head : int
        Groups of lines in the first part.
    """

    middle: NDArray[np.float64]
    turn: NDArray[np.float64] | None
    unit: float
    haze: float
    place: NDArray[np.int64]
    lines: int
    head: int

    def turned(self, Z: NDArray) -> NDArray[np.float64]:
        """Return differences of rows ``Z`` of shape (n, d) along the axes."""
        return Z if self.turn is None else Z @ self.turn


@dataclass(frozen=True, eq=False)
class Blocks:
    """Rows in blocks.

    Attributes
    ----------
    order : ndarray of shape (n,), int64
        Row numbers, block after block.
    first : ndarray of shape (n_blocks + 1,), int64
    cols : ndarray of shape (n_blocks, lines, LANES), float32
        Coordinates relative to the block's centre in units of its scale, transposed, and norms.
    centre : ndarray of shape (n_blocks, d), float64
        In the turned frame.
    scale, radius : ndarray of shape (n_blocks,), float64
        Unit of the block, and the largest norm of its rows in that unit.
    half : ndarray of shape (n_blocks, d), float32
        Half widths of the box around the centre, in that unit.
    """

    order: NDArray[np.int64]
    first: NDArray[np.int64]
    cols: NDArray[np.float32]
    centre: NDArray[np.float64]
    scale: NDArray[np.float64]
    radius: NDArray[np.float64]
    half: NDArray[np.float32]

    def as_queries(self) -> tuple[NDArray, ...]:
        """Return what the kernel reads of the asking side."""
        return self.order, self.first, self.cols, self.centre, self.scale, self.radius


def find_axes(rows: NDArray[np.float64]) -> Axes:
    """Return the principal axes of ``rows`` (n, d), from an evenly spaced sample."""
    n, d = rows.shape
    sample = rows[np.linspace(0, n - 1, min(n, SAMPLE)).astype(np.int64)]
    middle = sample.mean(axis=0)
    unit = float(np.abs(rows - middle).max()) if n * d < 1 << 20 else _largest(rows, middle)
    unit = unit if unit > 0.0 else 1.0
    Z = (sample - middle) / unit
    turn, variance = None, (Z * Z).mean(axis=0)
    if 1 < d <= min(WIDEST, n):
        values, vectors = np.linalg.eigh(Z.T @ Z / Z.shape[0])
        turn, variance = np.ascontiguousarray(vectors[:, ::-1]), values[::-1]
    largest = unit + float(np.abs(middle).max())
    haze = 4e-16 * (d + 4) * largest
    head, lines = _layout(d, variance)
    place = np.arange(d) + 2 + 2 * (np.arange(d) >= head * GROUP - 2)
    return Axes(middle, turn, unit, haze, place.astype(np.int64), lines, head)


def _largest(rows: NDArray, middle: NDArray) -> float:
    """Largest absolute deviation, a slab at a time."""
    step = max(1, (1 << 20) // rows.shape[1])
    return max(float(np.abs(rows[at : at + step] - middle).max()) for at in range(0, rows.shape[0], step))


def _layout(d: int, variance: NDArray) -> tuple[int, int]:
    """Return (groups tested first, lines)."""
    whole = -(-(d + 2) // GROUP)
    share = np.cumsum(np.maximum(variance, 0.0))
    if d > 3 * GROUP and share[-1] > 0.0:
        needed = int(np.searchsorted(share, HEAD_SHARE * share[-1])) + 1
        head = -(-(needed + 2) // GROUP)
        split = -(-(d - (head * GROUP - 2) + 2) // GROUP)
        if 2 * head <= whole and split > 0:
            return head, (head + split) * GROUP
    return whole, whole * GROUP


def cut_blocks(rows: NDArray[np.float64], axes: Axes) -> Blocks:
    """Return ``rows`` (n, d), n >= 1, in blocks."""
    n, d = rows.shape
    cut = _coarse(rows, axes)
    leaves, strays = [], []
    for part in _cut(cut, np.arange(n)):
        far = _far_from_median(cut[part])
        leaves.append(part[~far])
        strays.append(part[far])
    apart = np.concatenate(strays)
    leaves += _cut(cut, apart) if apart.size else []
    del cut
    n_blocks = len(leaves)
    first = np.r_[0, np.cumsum([leaf.size for leaf in leaves])].astype(np.int64)
    cols = aligned(n_blocks, axes.lines, LANES)
    centre, half = np.empty((n_blocks, d)), np.empty((n_blocks, d), dtype=np.float32)
    scale, radius = np.empty(n_blocks), np.empty(n_blocks)
    parts = [(0, axes.lines)]
    if axes.head * GROUP < axes.lines:
        parts = [(0, axes.head * GROUP), (axes.head * GROUP, axes.lines)]
    for b, leaf in enumerate(leaves):
        block = rows[leaf]
        pivot = block.mean(axis=0)
        w = axes.turned(block - pivot)
        middle = 0.5 * w.min(axis=0) + 0.5 * w.max(axis=0)
        w -= middle
        centre[b] = axes.turned((pivot - axes.middle)[None])[0] + middle
        unit = float(np.abs(w).max())
        scale[b] = unit if unit > 0.0 else axes.unit
        w /= scale[b]
        radius[b] = np.sqrt((w * w).sum(axis=1).max()) * 1.000001
        half[b] = np.abs(w).max(axis=0) * 1.000001
        tile = cols[b]
        tile[axes.place, : leaf.size] = w.T
        for start, stop in parts:
            body = tile[start + 2 : stop].astype(np.float64)
            tile[start] = -0.5 * (body * body).sum(axis=0)
            tile[start, leaf.size :] = -1e37  # no row: further than any test
            tile[start + 1] = 1.0
    return Blocks(np.concatenate(leaves).astype(np.int64), first, cols, centre, scale, radius, half)


def _coarse(rows: NDArray, axes: Axes) -> NDArray[np.float32]:
    """Return float32 coordinates along the axes that decide the cuts, a slab of rows at a time."""
    turn = None if axes.turn is None else axes.turn[:, :CUT_AXES]
    n, d = rows.shape
    out = np.empty((n, d if turn is None else turn.shape[1]), dtype=np.float32)
    step = max(1, (1 << 20) // d)
    for at in range(0, n, step):
        Z = (rows[at : at + step] - axes.middle) / axes.unit
        out[at : at + step] = np.clip(Z if turn is None else Z @ turn, -1e15, 1e15)
    return out


def _cut(rows: NDArray, part: NDArray) -> list[NDArray]:
    """Cut along the most spread column, at a gap or else near the median, into full blocks."""
    leaves, stack = [], [part]
    while stack:
        part = stack.pop()
        if part.size <= TILE:
            leaves.append(np.sort(part))
            continue
        sample = rows[part[:: max(1, part.size // 2048)]]
        axis = int(np.argmax(sample.std(axis=0)))
        values = rows[part, axis]
        quantiles = np.quantile(sample[:, axis], np.linspace(0.1, 0.9, 33))
        gaps = np.diff(quantiles)
        widest = int(np.argmax(gaps))
        left = values <= 0.5 * (quantiles[widest] + quantiles[widest + 1])
        share = left.mean()
        if gaps[widest] > 4.0 * np.median(gaps) and 0.05 < share < 0.95:
            stack += [part[~left], part[left]]
        else:
            half = max(1, round(part.size / (2 * TILE))) * TILE
            cut = np.argpartition(values, half)
            stack += [part[cut[half:]], part[cut[:half]]]
    return leaves


def _far_from_median(block: NDArray) -> NDArray[np.bool_]:
    """Mark at most a tenth of the rows: those over twice the usual distance from the middle."""
    gap = np.sqrt(((block - np.median(block, axis=0)) ** 2).sum(axis=1))
    return gap > max(2.0 * np.median(gap), np.quantile(gap, 0.9))
