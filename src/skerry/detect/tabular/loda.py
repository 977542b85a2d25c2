"""LODA (Pevny 2016): how empty, on average, the histograms of sparse random projections are around a row.

The score is the mean negative log density over the projections (nats). Time and memory are linear in the rows.
"""

from __future__ import annotations

import math
from numbers import Integral

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions

from skerry.core.detector import Detector
from skerry.kernels.projections import projection_contrasts, projection_counts, projection_range, projection_scores

__all__ = ["LODA"]

FEWEST, MOST = 10, 200  # bins under "auto"


class LODA(Detector):
    """Lightweight on-line detector of anomalies, fitted on a whole table.

    Parameters
    ----------
    n_projections : int, default 100
        Random directions; each has ceil(sqrt(d)) columns with standard normal weights.
    n_bins : int or "auto", default "auto"
        Bins of equal width per projection; ``"auto"`` is ``ceil(2 n^(1/3))`` (Rice's rule) held between 10
        and 200.
    random_state : int, RandomState or None, default None
    threshold : str, float or Threshold, default "auto"

    Attributes
    ----------
    columns_ : ndarray of shape (n_projections, ceil(sqrt(n_features))), int64
    weights_ : ndarray of the same shape, float64
    low_, high_ : ndarray of shape (n_projections,), float64
        Range of the training projections.
    terms_ : ndarray of shape (n_projections, bins), float64
        Negative log density of each bin.
    empty_ : ndarray of shape (n_projections,), float64
        That of a bin holding half a row, the floor of the densities.

    Notes
    -----
    A bin without training rows counts as half a row. A projection outside the training range gets that term and,
    beyond the paper, ``log(1 + distance in bin widths)``, so the score keeps growing with distance.

    Columns are mixed as they are, so they should share a scale. When not to use: a few very long tails, which
    stretch bins of equal width until everything ordinary falls in one.

    ``explain`` returns the statistic of the paper's section 3.3: Welch's t of the terms of the projections with a
    feature against those without. Where all (or all but one) projections have every feature, as with one or two
    features, it returns how far the score drops when a feature is set to its training median.

    References
    ----------
    T. Pevny, "Loda: Lightweight on-line detector of anomalies", Machine Learning 102, 2016, eqs. 2 and 4.

    Examples
    --------
    >>> X = np.r_[np.random.default_rng(0).normal(size=(200, 2)), [[8.0, 8.0]]]
    >>> int(LODA(random_state=0).fit(X).anomaly_score(X).argmax())
    200
    """

    _parameter_constraints = {
        "n_projections": [Interval(Integral, 1, None, closed="left")],
        "n_bins": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
    }

    def __init__(self, n_projections=100, n_bins="auto", random_state=None, threshold="auto"):
        self.n_projections = n_projections
        self.n_bins = n_bins
        self.random_state = random_state
        self.threshold = threshold

    def _fit(self, X: NDArray) -> None:
        rng = check_random_state(self.random_state)
        n, d = X.shape
        k, kept = self.n_projections, math.ceil(math.sqrt(d))
        self.columns_ = np.array([np.sort(rng.permutation(d)[:kept]) for _ in range(k)], dtype=np.int64)
        self.weights_ = rng.normal(size=(k, kept))
        self.low_, self.high_ = projection_range(X, self.columns_, self.weights_)
        span = self.high_ - self.low_
        flat = span < 1e-290  # one value: one bin of width 1
        bins = min(max(math.ceil(2 * n ** (1 / 3)), FEWEST), MOST) if self.n_bins == "auto" else self.n_bins
        self.n_bins_ = np.where(flat, 1, bins).astype(np.int64)
        self.per_unit_ = np.where(flat, 1.0, self.n_bins_ / np.where(flat, 1.0, span))
        counts = projection_counts(X, self.columns_, self.weights_, self.low_, self.per_unit_, self.n_bins_)
        width = -np.log(self.per_unit_)
        self.terms_ = np.log(n / np.maximum(counts, 0.5)) + width[:, None]
        self.empty_ = np.log(2.0 * n) + width

    def _state(self) -> tuple[NDArray, ...]:
        return self.low_, self.high_, self.per_unit_, self.n_bins_, self.terms_, self.empty_

    def _score(self, X: NDArray) -> NDArray[np.float64]:
        return projection_scores(X, self.columns_, self.weights_, *self._state()) / self.columns_.shape[0]

    def _explain(self, X: NDArray) -> NDArray[np.float64]:
        d, k = X.shape[1], self.columns_.shape[0]
        within = np.bincount(self.columns_.ravel(), minlength=d)
        if max(within.max(), k - within.min()) > k - 2:  # a mean and a variance need two projections on each side
            return super()._explain(X)
        return projection_contrasts(X, self.columns_, self.weights_, *self._state())
