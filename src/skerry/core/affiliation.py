"""Affiliation precision and recall: how near, as a chance, flags are to the anomalies and anomalies to flags.

Huet, Navarro and Rossi, "Local Evaluation of Time Series Anomaly Detection Algorithms" (KDD 2022). Time 0..T is
cut into one zone per anomaly, halfway between neighbours; each anomaly is judged in its zone alone. Precision
asks, for every flagged moment, how likely a moment drawn uniformly from the zone is at least as far from the
anomaly (eq. 6); recall asks, for every moment of the anomaly, how likely a drawn moment is at least as far from it
as the nearest flag (eq. 8). Both are averaged over the moments, then over the anomalies. A step t is the stretch
``[t, t + 1)``; the integrals are taken in closed form over the stretches on which they are quadratic.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skerry.core.errors import DataError
from skerry.core.events import check_flags, flag_runs

__all__ = ["Affiliation", "affiliation"]


@dataclass(frozen=True, eq=False)
class Affiliation:
    """Affiliation measures of one series.

    Attributes
    ----------
    precision : float
        Mean over the anomalies whose zone holds a flag; 0 where nothing is flagged.
    recall : float
        Mean over all anomalies; 0 for one whose zone holds no flag.
    event_precision, event_recall : ndarray of shape (n_anomalies,), float64
        The same for each anomaly, in order of time; the precision is NaN where the zone holds no flag.
    """

    precision: float
    recall: float
    event_precision: NDArray[np.float64]
    event_recall: NDArray[np.float64]

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall (0 if both are 0)."""
        total = self.precision + self.recall
        return 2.0 * self.precision * self.recall / total if total else 0.0


def affiliation(y: ArrayLike, flags: ArrayLike) -> Affiliation:
    """Return affiliation precision and recall.

    Parameters
    ----------
    y : array of shape (T,), 0 or 1
        1 for the steps of an anomaly.
    flags : array of shape (T,), bool or 0/1
        The steps that were flagged.

    Returns
    -------
    Affiliation
        A flag drawn at random is worth about one half: compare with 0.5, not with 0.

    Raises
    ------
    DataError
        If there is no anomaly, the lengths differ, or a value is not 0 or 1; the message names the row.

    Examples
    --------
    >>> y = [0, 0, 0, 0, 1, 1, 0, 0, 0, 0]
    >>> near = affiliation(y, [0, 0, 0, 1, 0, 0, 0, 0, 0, 0])
    >>> far = affiliation(y, [1, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    >>> near.precision > 0.6 > 0.2 > far.precision
    True
    """
    label, flagged = check_flags(y, "labels"), check_flags(flags)
    if label.shape != flagged.shape:
        raise DataError(f"labels and flags differ in shape: {label.shape} and {flagged.shape}")
    if not label.any():
        raise DataError("the label holds no anomaly: affiliation needs at least one")
    start, stop = (a.astype(np.float64) for a in flag_runs(label))
    borders = (stop[:-1] + start[1:]) / 2.0
    low, high = np.r_[0.0, borders], np.r_[borders, float(label.size)]
    p0, p1 = (a.astype(np.float64) for a in flag_runs(flagged))
    if p0.size == 0:
        nothing = np.zeros(start.size)
        return Affiliation(0.0, 0.0, np.full(start.size, np.nan), nothing)
    p0, p1 = _cut(p0, p1, np.r_[borders, start, stop])  # no piece crosses a zone or an anomaly
    zone = np.searchsorted(borders, (p0 + p1) / 2.0, side="right")
    precision = _precision(p0, p1, zone, start, stop, low, high)
    recall = _recall(p0, p1, zone, start, stop, low, high)
    return Affiliation(float(np.nanmean(precision)), float(recall.mean()), precision, recall)


def _cut(p0: NDArray, p1: NDArray, at: NDArray) -> tuple[NDArray, NDArray]:
    """Cut the intervals ``[p0, p1)`` at the given places."""
    edges = np.unique(np.r_[p0, p1, at])
    middle = (edges[:-1] + edges[1:]) / 2.0
    owner = np.searchsorted(p0, middle, side="right") - 1
    inside = (owner >= 0) & (middle < p1[np.maximum(owner, 0)])
    return edges[:-1][inside], edges[1:][inside]


def _ramp(x: NDArray) -> NDArray[np.float64]:
    """Return the integral of max(u, 0) up to x."""
    return np.square(np.maximum(x, 0.0)) / 2.0


def _precision(
    p0: NDArray, p1: NDArray, zone: NDArray, start: NDArray, stop: NDArray, low: NDArray, high: NDArray
) -> NDArray[np.float64]:
    a, b, e0, e1 = start[zone], stop[zone], low[zone], high[zone]
    before, after = p1 <= a, p0 >= b
    near = np.where(before, a - p1, np.where(after, p0 - b, 0.0))
    far = np.where(before, a - p0, np.where(after, p1 - b, 0.0))
    # P(a drawn moment is at least d away) = ((a - d - e0)+ + (e1 - b - d)+) / (e1 - e0), over d in near..far
    outside = _ramp(a - e0 - near) - _ramp(a - e0 - far) + _ramp(e1 - b - near) - _ramp(e1 - b - far)
    worth = np.where(before | after, outside / (e1 - e0), p1 - p0)
    n = start.size
    length = np.bincount(zone, weights=p1 - p0, minlength=n)
    total = np.bincount(zone, weights=worth, minlength=n)
    return np.where(length > 0, total / np.where(length > 0, length, 1.0), np.nan)


def _recall(
    p0: NDArray, p1: NDArray, zone: NDArray, start: NDArray, stop: NDArray, low: NDArray, high: NDArray
) -> NDArray[np.float64]:
    same = zone[1:] == zone[:-1]
    halfway = ((p1[:-1] + p0[1:]) / 2.0)[same]  # between flags of one zone: where the nearest flag changes
    u, v = _cut(start, stop, np.r_[p0, p1, halfway])
    event = np.searchsorted(start, (u + v) / 2.0, side="right") - 1
    e0, e1 = low[event], high[event]
    left = np.searchsorted(p0, u, side="right") - 1  # the last piece that starts at or before u
    right = left + 1
    has_left = (left >= 0) & (zone[np.maximum(left, 0)] == event)
    has_right = (right < p0.size) & (zone[np.minimum(right, p0.size - 1)] == event)
    c_left, c_right = p1[np.maximum(left, 0)], p0[np.minimum(right, p0.size - 1)]
    flagged = has_left & (v <= c_left)
    d_left = np.where(has_left, u - c_left, np.inf)
    d_right = np.where(has_right, c_right - v, np.inf)
    from_left, from_right = ~flagged & has_left & (d_left <= d_right), ~flagged & has_right & (d_right < d_left)
    c = np.where(from_left, c_left, c_right)
    # with the nearest flag at c, P = ((y - d - e0)+ + (e1 - y - d)+) / (e1 - e0), d = |y - c|, over y in u..v
    after = (c - e0) * (v - u) + (_ramp(e1 + c - 2.0 * u) - _ramp(e1 + c - 2.0 * v)) / 2.0
    before = (e1 - c) * (v - u) + (_ramp(2.0 * v - c - e0) - _ramp(2.0 * u - c - e0)) / 2.0
    worth = np.where(flagged, v - u, 0.0) + np.where(from_left, after, np.where(from_right, before, 0.0)) / (e1 - e0)
    return np.bincount(event, weights=worth, minlength=start.size) / (stop - start)
