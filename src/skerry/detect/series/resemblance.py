"""The pictures of a detector that compares moments with each other: the matrix around each of the largest events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from skerry.core.events import Event
from skerry.core.series_detector import SeriesDetector
from skerry.core.series_findings import Similarity
from skerry.data.series import SeriesFrame

__all__ = ["resemblances"]

PICTURES = 10  # of one series; a matrix holds the square of a window's steps


def resemblances(
    frame: SeriesFrame, model: SeriesDetector, events: Sequence[Event], blame: Mapping[int, NDArray[np.float64]] | None
) -> dict[int, Similarity]:
    """Return the matrix around the peak of each of the ten highest events, by peak, in the channel most to blame.

    Parameters
    ----------
    frame : SeriesFrame
    model : SeriesDetector
        Fitted; without a method ``similarity`` (only :class:`~skerry.detect.series.themis.Themis` has one) nothing is
        returned.
    events : sequence of Event
    blame : mapping of int to ndarray of shape (c,), or None
        What ``explain`` said of the peaks; None, and nothing is returned.

    Examples
    --------
    >>> import polars as pl
    >>> from skerry.data.series import read_series
    >>> from skerry.detect.series.themis import Themis
    >>> x = np.sin(np.arange(300) / 6)
    >>> frame = read_series(pl.DataFrame({"x": x}), time=False)[0]
    >>> model = Themis(window=100).fit(frame.values)
    >>> look = resemblances(frame, model, [Event(120, 124, 121, 9.0)], {121: np.ones(1)})[121]
    >>> look.channel, look.start, look.values.shape
    ('x', 71, (100, 100))
    """
    if blame is None or not hasattr(model, "similarity"):
        return {}
    out = {}
    for event in sorted(events, key=lambda e: -e.score)[:PICTURES]:
        channel = int(model.channels_[np.argmax(blame[event.peak][model.channels_])])
        start, S = model.similarity(frame.values, at=event.peak, channel=channel)
        last = start + len(S) - 1
        square = S[:, : len(S)].astype(np.float32)
        out[event.peak] = Similarity(frame.channels[channel], start, frame.when(start), frame.when(last), square)
    return out
