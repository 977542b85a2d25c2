"""Measures of alarms on a time series: ranges, delays, the NAB score, the UCR hit, point adjustment.

``y`` is 1 for the steps of an anomaly; a run of ones is one anomaly. ``flags`` are the steps that were flagged.
Rankings that forgive a small shift are in :mod:`skerry.core.vus`, chances of nearness in
:mod:`skerry.core.affiliation`. A precision of no flags at all is 0.

Headline figures are VUS-PR, average precision and the delay. :func:`best_f1` picks its threshold with the label,
and :func:`point_adjusted_f1` calls a whole anomaly found for one flagged step, so that random scores reach 0.9 on
long anomalies (Kim et al., "Towards a Rigorous Evaluation of Time-Series Anomaly Detection", AAAI 2022): both are
for reference only.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skerry.core.errors import DataError, ParameterError, nearest
from skerry.core.events import check_flags, flag_runs
from skerry.core.vus import check_label_and_scores

__all__ = [
    "average_detection_delay",
    "detection_delays",
    "nab_score",
    "point_adjust",
    "point_adjusted_f1",
    "range_f1",
    "range_precision",
    "range_recall",
    "ucr_hit",
]

Bias = Literal["flat", "front", "middle", "back"]
Cardinality = Literal["reciprocal", "one"]

NAB_PROFILES = {  # weights of a true positive, a false positive, a false negative
    "standard": (1.0, 0.11, 1.0),
    "reward_low_fp": (1.0, 0.22, 1.0),
    "reward_low_fn": (1.0, 0.11, 2.0),
}


def _check(y: ArrayLike, flags: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    label, flagged = check_flags(y, "labels"), check_flags(flags)
    if label.shape != flagged.shape:
        raise DataError(f"labels and flags differ in shape: {label.shape} and {flagged.shape}")
    return label, flagged


def _check_anomaly(y: ArrayLike, flags: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    label, flagged = _check(y, flags)
    if not label.any():
        raise DataError("the label holds no anomaly: this measure needs at least one")
    return label, flagged


# ---- ranges (Tatbul et al., 2018) ----------------------------------------------------------------------------


def range_recall(
    y: ArrayLike,
    flags: ArrayLike,
    *,
    alpha: float = 0.0,
    bias: Bias = "flat",
    cardinality: Cardinality = "reciprocal",
) -> float:
    """Return the range-based recall: the mean reward of the anomalies.

    Parameters
    ----------
    y : array of shape (T,), 0 or 1
    flags : array of shape (T,), bool or 0/1
    alpha : float in [0, 1], default 0
        Weight of existence (1 if any step of the anomaly is flagged) against overlap.
    bias : {"flat", "front", "middle", "back"}, default "flat"
        Which steps of an anomaly count most in its overlap: all alike, the first, those in the middle, the last.
    cardinality : {"reciprocal", "one"}, default "reciprocal"
        What an overlap is multiplied by where x > 1 flagged runs share it: 1 / x or 1.

    Raises
    ------
    DataError
        If there is no anomaly, the lengths differ, or a value is not 0 or 1.
    ParameterError
        For an unknown bias or cardinality, or alpha out of range.

    Notes
    -----
    Tatbul et al., "Precision and Recall for Time Series" (NeurIPS 2018), eq. 4 to 6.

    Examples
    --------
    >>> range_recall([0, 1, 1, 1, 1, 0], [0, 1, 1, 0, 0, 0])
    0.5
    >>> range_recall([0, 1, 1, 1, 1, 0], [0, 1, 0, 1, 0, 0])  # in two pieces
    0.25
    """
    label, flagged = _check_anomaly(y, flags)
    if not 0.0 <= alpha <= 1.0:
        raise ParameterError(f"alpha must lie in [0, 1], got {alpha!r}")
    overlap, touched = _overlap(label, flagged, bias, cardinality)
    return float(np.mean(alpha * touched + (1.0 - alpha) * overlap))


def range_precision(
    y: ArrayLike, flags: ArrayLike, *, bias: Bias = "flat", cardinality: Cardinality = "reciprocal"
) -> float:
    """Return the range-based precision: the mean overlap of the flagged runs with anomalies (eq. 7).

    Parameters and errors are those of :func:`range_recall`; a series without anomaly is allowed.

    Examples
    --------
    >>> range_precision([0, 1, 1, 0, 0, 0], [0, 0, 1, 1, 0, 1])
    0.25
    """
    label, flagged = _check(y, flags)
    overlap, _ = _overlap(flagged, label, bias, cardinality)
    return float(overlap.mean()) if overlap.size else 0.0


def range_f1(
    y: ArrayLike,
    flags: ArrayLike,
    *,
    alpha: float = 0.0,
    bias: Bias = "flat",
    cardinality: Cardinality = "reciprocal",
) -> float:
    """Return the harmonic mean of :func:`range_precision` and :func:`range_recall` (0 if both are 0).

    Examples
    --------
    >>> range_f1([0, 1, 1, 0], [0, 1, 1, 0])
    1.0
    """
    recall = range_recall(y, flags, alpha=alpha, bias=bias, cardinality=cardinality)
    precision = range_precision(y, flags, bias=bias, cardinality=cardinality)
    return 2.0 * precision * recall / (precision + recall) if precision + recall else 0.0


def _overlap(
    ranges: NDArray[np.bool_], other: NDArray[np.bool_], bias: str, cardinality: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the overlap reward of each run of ``ranges`` with ``other``, and whether they touch."""
    if cardinality not in ("reciprocal", "one"):
        raise ParameterError(f"cardinality must be 'reciprocal' or 'one', got {cardinality!r}")
    starts, stops = flag_runs(ranges)
    length = stops - starts
    run = np.repeat(np.arange(starts.size), length)
    t = np.flatnonzero(ranges)
    from_front, from_back = t - starts[run] + 1, stops[run] - t
    if bias == "flat":
        weight = np.ones(t.size)
    elif bias == "front":
        weight = from_back.astype(np.float64)
    elif bias == "back":
        weight = from_front.astype(np.float64)
    elif bias == "middle":
        weight = np.minimum(from_front, from_back).astype(np.float64)
    else:
        raise ParameterError(f"unknown bias {bias!r}; {nearest(str(bias), ('flat', 'front', 'middle', 'back'))}")
    covered = np.bincount(run, weights=weight * other[t], minlength=starts.size)
    share = covered / np.bincount(run, weights=weight, minlength=starts.size)
    other_starts, other_stops = flag_runs(other)
    pieces = np.searchsorted(other_starts, stops, "left") - np.searchsorted(other_stops, starts, "right")
    if cardinality == "reciprocal":
        share = share / np.maximum(pieces, 1)
    return share, (pieces > 0).astype(np.float64)


# ---- how soon ------------------------------------------------------------------------------------------------


def detection_delays(y: ArrayLike, flags: ArrayLike) -> NDArray[np.int64]:
    """Return, for each anomaly in order of time, the steps from its start to its first flag.

    An anomaly without a flag counts with its whole length.

    Raises
    ------
    DataError
        If there is no anomaly, the lengths differ, or a value is not 0 or 1.

    Examples
    --------
    >>> detection_delays([0, 1, 1, 1, 0, 1, 1], [1, 0, 0, 1, 0, 0, 0])
    array([2, 2])
    """
    label, flagged = _check_anomaly(y, flags)
    starts, stops = flag_runs(label)
    hits = np.r_[np.flatnonzero(flagged), label.size]
    return np.minimum(hits[np.searchsorted(hits, starts)], stops) - starts


def average_detection_delay(y: ArrayLike, flags: ArrayLike) -> float:
    """Return the mean of :func:`detection_delays`, in steps.

    Flagging everything has delay 0: quote it at a fixed share of flagged steps.

    Examples
    --------
    >>> average_detection_delay([0, 1, 1, 1, 0, 1, 1], [1, 0, 0, 1, 0, 1, 0])
    1.0
    """
    return float(detection_delays(y, flags).mean())


def nab_score(
    y: ArrayLike,
    flags: ArrayLike,
    *,
    profile: Literal["standard", "reward_low_fp", "reward_low_fn"] = "standard",
    probation: float = 0.15,
    normalize: bool = True,
) -> float:
    """Return the score of the Numenta Anomaly Benchmark: early flags in a window earn most, others cost.

    Parameters
    ----------
    y : array of shape (T,), 0 or 1
        Each run of ones is an anomaly window.
    flags : array of shape (T,), bool or 0/1
    profile : {"standard", "reward_low_fp", "reward_low_fn"}, default "standard"
        Weights of the application: 1 for a window found, 0.11 (0.22) for a false alarm, 1 (2) for a window missed.
    probation : float in [0, 1), default 0.15
        Share of the series, counted up to 5,000 steps, that is not scored. 0 where it was cut off already.
    normalize : bool, default True
        100 for a detector that flags the first step of every window and nothing else, 0 for one that flags
        nothing. False gives the raw sum, which may be added up over series.

    Raises
    ------
    DataError
        If ``normalize`` is set and no window lies after the probation; lengths that differ; values not 0 or 1.
    ParameterError
        For an unknown profile or a probation out of range.

    Notes
    -----
    Lavin and Ahmad, "Evaluating Real-time Anomaly Detection Algorithms" (ICMLA 2015), eq. 1 and 2: a flag at
    relative position p in its window (-1 at the start, 0 just after the end) earns ``2 / (1 + exp(5 p)) - 1``, and
    only the earliest of a window counts; a flag after a window of w steps is at p = distance / (w - 1) and costs
    the same expression, at most 1.

    Examples
    --------
    >>> y = [0, 0, 0, 0, 1, 1, 1, 1, 0, 0]
    >>> nab_score(y, [0, 0, 0, 0, 1, 0, 0, 0, 0, 0], probation=0)
    100.0
    >>> nab_score(y, [0] * 10, probation=0)
    0.0
    """
    label, flagged = _check(y, flags)
    if profile not in NAB_PROFILES:
        raise ParameterError(f"unknown profile {profile!r}; {nearest(str(profile), NAB_PROFILES)}")
    if not 0.0 <= probation < 1.0:
        raise ParameterError(f"probation must lie in [0, 1), got {probation!r}")
    hit, false, miss = NAB_PROFILES[profile]
    first = int(np.ceil(min(np.floor(probation * label.size), probation * 5000)))
    starts, stops = flag_runs(label)
    t = np.flatnonzero(flagged)
    t = t[t >= first]

    outside = t[~label[t]]
    window = np.searchsorted(stops, outside, side="right") - 1  # the last one before the flag
    position = np.full(outside.size, 3.0)
    after = window >= 0
    right, width = stops[window[after]] - 1, np.maximum((stops - starts)[window[after]] - 1, 1)
    position[after] = (outside[after] - right) / width
    raw = false * float(np.where(position >= 3.0, -1.0, _sigmoid(np.minimum(position, 3.0))).sum())

    scored = stops > first
    starts, stops = starts[scored], stops[scored]
    if t.size:
        earliest = np.r_[t, label.size][np.searchsorted(t, starts)]
        found = earliest < stops
        position = (earliest - stops)[found] / (stops - starts)[found]
        raw += hit * float(_sigmoid(position).sum()) / float(_sigmoid(np.array(-1.0)))
        raw -= miss * float((~found).sum())
    else:
        raw -= miss * starts.size
    if not normalize:
        return raw
    if starts.size == 0:
        raise DataError("no anomaly window lies after the probation: only the raw score (normalize=False) exists")
    return 100.0 * (raw + miss * starts.size) / ((hit + miss) * starts.size)


def _sigmoid(position: NDArray) -> NDArray[np.float64]:
    return 2.0 / (1.0 + np.exp(5.0 * position)) - 1.0


# ---- where the top is, and what others report ----------------------------------------------------------------


def ucr_hit(y: ArrayLike, scores: ArrayLike, tolerance: int = 100) -> float:
    """Return 1 if the highest score lies in an anomaly or at most ``tolerance`` steps from one, else 0.

    Where several steps share the highest score, the share of them that lie so is returned.

    Parameters
    ----------
    y : array of shape (T,), 0 or 1
    scores : array of shape (T,)
    tolerance : int >= 0, default 100
        The UCR anomaly archive allows 100 steps (Wu and Keogh, TKDE 2021).

    Raises
    ------
    DataError
        For one class only, unequal lengths, or a NaN score.
    ParameterError
        If the tolerance is negative.

    Examples
    --------
    >>> ucr_hit([0, 0, 0, 1, 0, 0], [0, 0, 9, 1, 0, 0], tolerance=1)
    1.0
    """
    label, s = check_label_and_scores(y, scores)
    if tolerance < 0:
        raise ParameterError(f"tolerance must be at least 0, got {tolerance!r}")
    top = np.flatnonzero(s == s.max())
    starts, stops = flag_runs(label)
    before = np.searchsorted(starts, top, side="right") - 1  # the last anomaly that starts at or before the top
    distance_left = np.where(before >= 0, top - (stops[before] - 1), label.size)
    distance_right = np.r_[starts, 2 * label.size][before + 1] - top
    return float(np.mean(np.minimum(distance_left, distance_right) <= tolerance))


def point_adjust(y: ArrayLike, flags: ArrayLike) -> NDArray[np.bool_]:
    """Return flags of shape (T,) in which an anomaly with one flagged step is flagged as a whole.

    For reference only: it makes long anomalies almost free; see the top of this module.

    Examples
    --------
    >>> point_adjust([0, 1, 1, 1, 0], [1, 0, 0, 1, 0])
    array([ True,  True,  True,  True, False])
    """
    label, flagged = _check(y, flags)
    starts, stops = flag_runs(label)
    before = np.r_[0, np.cumsum(flagged)]
    found = before[stops] > before[starts]
    adjusted = flagged.copy()
    adjusted[label] = np.repeat(found, stops - starts)
    return adjusted


def point_adjusted_f1(y: ArrayLike, scores: ArrayLike) -> float:
    """Return the largest F1 over all thresholds after :func:`point_adjust`: an oracle, for reference only.

    Raises
    ------
    DataError
        For one class only, unequal lengths, or a NaN score.

    Examples
    --------
    >>> point_adjusted_f1([0, 1, 1, 1, 0], [0.1, 0.0, 0.0, 0.9, 0.2])
    1.0
    """
    label, s = check_label_and_scores(y, scores)
    starts, stops = flag_runs(label)
    bounds = np.c_[starts, stops].ravel()
    height = np.maximum.reduceat(np.r_[s, -np.inf], bounds)[::2]  # the sentinel lets a bound equal the length
    adjusted = s.copy()
    adjusted[label] = np.repeat(height, stops - starts)
    order = np.argsort(-adjusted, kind="stable")
    ranked = adjusted[order]
    ends = np.r_[np.flatnonzero(ranked[1:] != ranked[:-1]), s.size - 1]
    true = np.cumsum(label[order])[ends]
    return float(np.max(2.0 * true / (1.0 + ends + label.sum())))
