"""Range-AUC and the volume under the surface (VUS): rankings of time steps that forgive small shifts of a label.

Paparrizos et al., "Volume Under the Surface" (PVLDB 15(11), 2022). Around every anomaly a buffer of ``window / 2``
steps on each side gets a soft label ``sqrt(1 - distance / window)`` (eq. 1; overlapping buffers add up to at most
1). With ``TP`` the sum of the labels of the flagged steps, ``Y`` the number of anomalous steps and ``B`` the sum of
the soft labels in the buffers:

* recall is ``min(TP / (Y + B / 2), 1)`` times the share of anomalies (with buffer) that hold a flagged step,
* precision is ``TP`` over the number of flagged steps,
* the false-positive rate is ``(flagged - TP) / (T - Y - B / 2)``.

The area under the ROC or PR curve of these is the range-AUC; its mean over the windows 0..L is the VUS. In the
paper ``B`` runs over the whole buffer, so that an alarm pays for buffer it leaves out; the authors' code since
2024, and TSB-AD, the benchmark made with it, count only the flagged part. That is the default here.

Only steps within reach of an anomaly change ``TP``, so the curves are followed over these steps alone, at every
distinct score; the steps between two of them add a rectangle. And since every soft label is at least ``sqrt(1/2)``,
two overlapping buffers always add up to 1: the two nearest edges of a step are all that is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skerry.core.errors import DataError, ParameterError
from skerry.core.events import check_flags, flag_runs

__all__ = ["range_areas", "range_auc_pr", "range_auc_roc", "vus_pr", "vus_roc"]


def check_label_and_scores(y: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return label and scores of shape (T,); one class only, NaN and unequal lengths are errors."""
    label = check_flags(y, "labels")
    s = np.asarray(scores, dtype=np.float64)
    if label.shape != s.shape:
        raise DataError(f"labels and scores differ in shape: {label.shape} and {s.shape}")
    missing = np.flatnonzero(np.isnan(s))
    if missing.size:
        raise DataError(f"the score at row {missing[0]} is NaN ({missing.size} in all); interpolate or drop the step")
    if label.all() or not label.any():
        raise DataError("the label holds only one class: a measure needs both 0 and 1")
    return label, s


def range_areas(
    y: ArrayLike,
    scores: ArrayLike,
    windows: int | Sequence[int] | NDArray[np.int64],
    *,
    buffer: Literal["flagged", "all"] = "flagged",
    n_thresholds: int | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the range-AUC for ROC and PR at every buffer in ``windows``.

    Parameters
    ----------
    y : array of shape (T,), 0 or 1
        1 for the steps of an anomaly.
    scores : array of shape (T,)
        Higher = more anomalous.
    windows : int or sequence of int >= 0
        Widths of the buffer, in steps; half lies before an anomaly and half after. 0 is no buffer.
    buffer : {"flagged", "all"}, default "flagged"
        The part of the buffer that recall asks for; "all" is the paper of 2022.
    n_thresholds : int, optional
        None: every distinct score is a threshold. A number: so many, equally spaced in rank, as the authors' code
        does with 250; use it only to reproduce figures of others, for it passes over rare anomalies.

    Returns
    -------
    roc, pr : ndarray of shape (n_windows,), float64

    Raises
    ------
    DataError
        For one class only, unequal lengths, or a NaN score; the message names the row.
    ParameterError
        For a negative window, an unknown ``buffer`` or fewer than 2 thresholds.

    Examples
    --------
    >>> y = [0, 0, 0, 0, 1, 1, 0, 0, 0, 0]
    >>> late = [0, 0, 0, 0, 0, 0, 9, 0, 0, 0]  # an alarm just after the anomaly
    >>> roc, pr = range_areas(y, late, [0, 4])
    >>> bool(pr[1] > pr[0] + 0.1)
    True
    """
    label, s = check_label_and_scores(y, scores)
    widths = np.atleast_1d(np.asarray(windows))
    if widths.ndim != 1 or widths.size == 0 or widths.dtype.kind not in "iu" or widths.min() < 0:
        raise ParameterError(f"windows must be whole numbers of at least 0, got {windows!r}")
    if buffer not in ("flagged", "all"):
        raise ParameterError(f"buffer must be 'flagged' or 'all', got {buffer!r}")
    if n_thresholds is not None and n_thresholds < 2:
        raise ParameterError(f"n_thresholds must be at least 2, got {n_thresholds!r}")
    curves = _Curves(label, s, int(widths.max()) // 2)
    areas = [curves.areas(int(w), buffer == "all", n_thresholds) for w in widths]
    return np.array([a[0] for a in areas]), np.array([a[1] for a in areas])


def range_auc_roc(y: ArrayLike, scores: ArrayLike, window: int = 100, **options: Any) -> float:
    """Return the range-AUC of the ROC curve at one buffer; the options are those of :func:`range_areas`.

    Examples
    --------
    >>> range_auc_roc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], window=0)
    0.75
    """
    return float(range_areas(y, scores, window, **options)[0][0])


def range_auc_pr(y: ArrayLike, scores: ArrayLike, window: int = 100, **options: Any) -> float:
    """Return the range-AUC of the precision-recall curve at one buffer; the options are those of :func:`range_areas`.

    Without a buffer and with one anomaly it is the average precision.

    Examples
    --------
    >>> round(range_auc_pr([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], window=0), 4)
    0.8333
    """
    return float(range_areas(y, scores, window, **options)[1][0])


def vus_roc(y: ArrayLike, scores: ArrayLike, window: int = 100, **options: Any) -> float:
    """Return the mean of :func:`range_auc_roc` over the buffers 0, 1, ..., ``window``.

    Examples
    --------
    >>> vus_roc([0, 0, 0, 1, 1, 0, 0, 0], [0, 0, 1, 5, 5, 1, 0, 0], window=2) > 0.95
    True
    """
    return float(range_areas(y, scores, np.arange(window + 1), **options)[0].mean())


def vus_pr(y: ArrayLike, scores: ArrayLike, window: int = 100, **options: Any) -> float:
    """Return the mean of :func:`range_auc_pr` over the buffers 0, 1, ..., ``window``.

    Examples
    --------
    >>> vus_pr([0, 0, 0, 1, 1, 0, 0, 0], [0, 0, 1, 5, 5, 1, 0, 0], window=2) > 0.95
    True
    """
    return float(range_areas(y, scores, np.arange(window + 1), **options)[1].mean())


class _Curves:
    """What all windows share: the steps within reach of an anomaly, and where they stand in the ranking."""

    def __init__(self, label: NDArray[np.bool_], s: NDArray[np.float64], reach: int) -> None:
        n = s.size
        _, group, size = np.unique(-s, return_inverse=True, return_counts=True)  # 0: the highest score
        self.n = n
        self.starts, self.stops = flag_runs(label)
        depth = np.zeros(n + 1, dtype=np.int64)
        np.add.at(depth, np.maximum(self.starts - reach, 0), 1)
        np.add.at(depth, np.minimum(self.stops + reach, n), -1)
        self.zone = np.flatnonzero(np.cumsum(depth[:-1]) > 0)
        used, place = np.unique(group[self.zone], return_inverse=True)
        self.used, self.place = used, place  # thresholds that flag a step of the zone, and which one each step needs
        self.flagged = np.cumsum(size)  # steps flagged at each threshold
        self.n_end = self.flagged[used].astype(np.float64)
        self.n_before = self.n_end - size[used]
        hard = label[self.zone]
        self.hard = np.cumsum(np.bincount(place[hard], minlength=used.size)).astype(np.float64)
        self.soft_place = place[~hard]
        t = self.zone[~hard]
        self.near, self.second = self._edge_distances(t)

    def _edge_distances(self, t: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the distances of unlabelled steps to the two nearest edges of anomalies."""
        last = self.stops - 1
        far = np.full(2, 4.0 * self.n)
        left, right = np.r_[-far, last], np.r_[self.starts, 5.0 * far]
        i, j = np.searchsorted(left, t), np.searchsorted(right, t)
        d = np.stack([t - left[i - 1], t - left[i - 2], right[j] - t, right[j + 1] - t])
        d.partition(1, axis=0)
        return d[0], d[1]

    def areas(self, window: int, whole: bool, n_thresholds: int | None) -> tuple[float, float]:
        half = window // 2
        gain = np.zeros(self.used.size)  # of soft labels, at each threshold
        if half:
            soft = np.where(self.near <= half, np.sqrt(np.maximum(1.0 - self.near / window, 0.0)), 0.0)
            soft[self.second <= half] = 1.0
            gain += np.bincount(self.soft_place, weights=soft, minlength=gain.size)
        buffered = np.cumsum(gain)
        tp = np.r_[0.0, self.hard + buffered]  # 0: nothing flagged yet
        positives = self.hard[-1] + (buffered[-1] if whole else np.r_[0.0, buffered]) / 2.0
        tpr = np.minimum(tp / positives, 1.0)
        tpr[1:] *= self._found(half)
        negatives = np.broadcast_to(self.n - positives, tp.shape)
        if n_thresholds is None:
            return self._exact(tp, tpr, negatives)
        return self._sampled(tp, tpr, negatives, n_thresholds)

    def _found(self, half: int) -> NDArray[np.float64]:
        """Return the share of anomalies with a flagged step, at each threshold; buffers that overlap are one."""
        apart = np.flatnonzero(self.stops[:-1] - 1 + half < self.starts[1:] - half)
        first = np.maximum(self.starts[np.r_[0, apart + 1]] - half, 0)
        stop = np.minimum(self.stops[np.r_[apart, self.stops.size - 1]] + half, self.n)
        bounds = np.c_[np.searchsorted(self.zone, first), np.searchsorted(self.zone, stop)].ravel()
        earliest = np.minimum.reduceat(np.r_[self.place, self.used.size], bounds)[::2]
        return np.cumsum(np.bincount(earliest, minlength=self.used.size)) / first.size

    def _exact(self, tp: NDArray, tpr: NDArray, negatives: NDArray) -> tuple[float, float]:
        at = (np.r_[0.0, self.n_end] - tp) / negatives  # false-positive rate at each threshold, and just before it
        before = (self.n_before - tp[:-1]) / negatives[:-1]
        between = np.sum((before - at[:-1]) * tpr[:-1])  # not @: the number of BLAS threads would change the sum
        steps = np.sum((at[1:] - before) * (tpr[1:] + tpr[:-1])) / 2.0
        end = (self.n - tp[-1]) / negatives[-1]
        rest = (end - at[-1]) * tpr[-1] + (1.0 - end) * (1.0 + tpr[-1]) / 2.0
        return float(between + steps + rest), float(np.sum(np.diff(tpr) * tp[1:] / self.n_end))

    def _sampled(self, tp: NDArray, tpr: NDArray, negatives: NDArray, n_thresholds: int) -> tuple[float, float]:
        ranks = np.linspace(0, self.n - 1, n_thresholds).astype(np.int64)
        group = np.searchsorted(self.flagged, ranks, side="right")
        i = np.searchsorted(self.used, group, side="right")
        flagged, rate = self.flagged[group], np.r_[0.0, tpr[i], 1.0]
        fpr = np.r_[0.0, (flagged - tp[i]) / negatives[i], 1.0]
        roc = np.sum(np.diff(fpr) * (rate[1:] + rate[:-1])) / 2.0
        return float(roc), float(np.sum(np.diff(rate[:-1]) * tp[i] / flagged))
