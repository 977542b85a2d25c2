"""A similarity matrix as a picture inside a page: every moment of a window against every other, the event marked."""

from __future__ import annotations

import base64
import struct
import zlib
from html import escape

import numpy as np
from numpy.typing import NDArray

__all__ = ["heat_map", "pooled", "png"]

SIDE, LEFT, TOP = 360, 8, 8
CELLS = 120  # on a side, at most
LIGHT, DARK = (247, 249, 251), (29, 66, 104)  # no resemblance, and full


def pooled(S: NDArray[np.float64], most: int = CELLS) -> NDArray[np.float64]:
    """Return the means of equal blocks of a square matrix, at most ``most`` on a side.

    >>> pooled(np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5], [0.5, 0.5, 1.0]]), 2).shape
    (2, 2)
    """
    n = len(S)
    edges = np.unique(np.linspace(0, n, min(n, most), endpoint=False).astype(np.int64))
    size = np.diff(np.r_[edges, n])
    return np.add.reduceat(np.add.reduceat(S, edges, axis=0), edges, axis=1) / np.outer(size, size)


def png(values: NDArray[np.float64]) -> bytes:
    """Return numbers in [0, 1] as a PNG of 256 shades, a pixel each.

    >>> png(np.eye(2))[:8] == bytes([137]) + b"PNG" + bytes([13, 10, 26, 10])
    True
    """
    shades = np.rint(np.clip(np.nan_to_num(values), 0.0, 1.0) * 255).astype(np.uint8)
    mix = np.linspace(0.0, 1.0, 256)[:, None]
    palette = np.rint((1.0 - mix) * np.array(LIGHT) + mix * np.array(DARK)).astype(np.uint8)
    rows = np.concatenate([np.zeros((len(shades), 1), dtype=np.uint8), shades], axis=1)  # each without a filter

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", shades.shape[1], shades.shape[0], 8, 3, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"PLTE", palette.tobytes()), chunk(b"IDAT", zlib.compress(rows.tobytes(), 9))
    return bytes([137]) + b"PNG\r\n" + bytes([26, 10]) + b"".join(parts) + chunk(b"IEND", b"")


def heat_map(S: NDArray[np.float64], start: int, event: tuple[int, int], first: str, last: str) -> str:
    """Return the matrix as SVG with an image inside; the event's rows and columns stand between red lines.

    Parameters
    ----------
    S : ndarray of shape (L, L)
        Resemblance in [0, 1] of the steps ``start`` .. ``start + L``.
    start : int
    event : (int, int)
        First step, and the one after the last.
    first, last : str
        Stamps of the first and the last step of the window.
    """
    n = len(S)
    cells = pooled(S)
    low, high = float(cells.min()), float(cells.max())
    shown = (cells - low) / (high - low) if high - low > 1e-9 else np.ones(cells.shape)
    data = base64.b64encode(png(shown)).decode()
    a, b = (float(np.clip((e - start) / n, 0.0, 1.0)) * SIDE for e in event)
    b = max(b, a + 1.5)
    image = (
        f'<image x="{LEFT}" y="{TOP}" width="{SIDE}" height="{SIDE}" preserveAspectRatio="none" '
        f'style="image-rendering: pixelated" href="data:image/png;base64,{data}"/>'
    )
    lines = "".join(
        f'<line class="cut" x1="{LEFT + x:.1f}" x2="{LEFT + x:.1f}" y1="{TOP}" y2="{TOP + SIDE}"/>'
        f'<line class="cut" x1="{LEFT}" x2="{LEFT + SIDE}" y1="{TOP + x:.1f}" y2="{TOP + x:.1f}"/>'
        for x in (a, b)
    )
    side = LEFT + SIDE + 14
    words = [
        f'<text x="{LEFT}" y="{TOP + SIDE + 18}">{escape(first)}</text>',
        f'<text x="{LEFT + SIDE}" y="{TOP + SIDE + 18}" text-anchor="end">{escape(last)}</text>',
        f'<text x="{side + 22}" y="{TOP + 12}">alike ({high:.2f})</text>',
        f'<text x="{side + 22}" y="{TOP + 120}">unlike ({low:.2f})</text>',
    ]
    scale = base64.b64encode(png(np.repeat(np.linspace(1.0, 0.0, 64)[:, None], 8, axis=1))).decode()
    bar = (
        f'<image x="{side}" y="{TOP}" width="14" height="120" preserveAspectRatio="none" '
        f'style="image-rendering: pixelated" href="data:image/png;base64,{scale}"/>'
    )
    box = f'<rect class="panel" x="{LEFT}" y="{TOP}" width="{SIDE}" height="{SIDE}"/>'
    return (
        f'<svg class="heat" viewBox="0 0 {side + 130} {TOP + SIDE + 26}" role="img" '
        f'aria-label="similarity of the moments around the event">{image}{box}{lines}{bar}{"".join(words)}</svg>'
    )
