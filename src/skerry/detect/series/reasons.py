"""Which channels are to blame for a step, as shares and in words, in their own names and units."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from skerry.data.series import SeriesFrame

__all__ = ["blame_of"]

REASONS = 3  # channels named for an event
SMALLEST_BLAME = 0.1  # share of the score below which a channel is not named


def blame_of(
    frame: SeriesFrame, step: int, parts: NDArray[np.float64], usual: NDArray[np.float64]
) -> tuple[tuple[str, ...], dict[str, float]]:
    """Return the reasons for the score of a step in words, and the share of each channel.

    Parameters
    ----------
    frame : SeriesFrame
    step : int
    parts : ndarray of shape (c,)
        What each channel contributed to the score; negative parts count as 0.
    usual : ndarray of shape (2, c)
        Between which values each channel mostly lies.

    Examples
    --------
    >>> import polars as pl
    >>> from skerry.data.series import read_series
    >>> frame = read_series(pl.DataFrame({"t": [0, 1, 2], "load": [1.0, 9.0, 1.2]}), time="t")[0]
    >>> blame_of(frame, 1, np.array([3.0]), np.array([[1.0], [2.0]]))
    (('load 9 is above its usual 1 to 2',), {'load': 1.0})
    """
    part = np.maximum(parts, 0.0)
    total = part.sum()
    part = part / total if total > 0 else np.zeros(len(part))
    shares = {c: round(float(v), 4) for c, v in zip(frame.channels, part, strict=True)}
    words = []
    for j in np.argsort(-part, kind="stable")[:REASONS]:
        if part[j] < SMALLEST_BLAME:
            break
        value, (low, high) = frame.values[step, j], usual[:, j]
        name = frame.channels[j]
        if np.isnan(value):
            words.append(f"{name} is missing")
        elif low <= value <= high:
            words.append(f"{name} {value:.4g} is unusual for its moment (mostly {low:.4g} to {high:.4g})")
        else:
            side = "above" if value > high else "below"
            words.append(f"{name} {value:.4g} is {side} its usual {low:.4g} to {high:.4g}")
    return tuple(words), shares
