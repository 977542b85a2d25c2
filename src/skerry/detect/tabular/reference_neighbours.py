"""Distance to the nearest twentieth of a random reference set: a neighbourhood score in linear time.

A small uniform sample of the training rows stands for the whole, as in Sugiyama and Borgwardt (NIPS 2013), but
with the distance to its k-th nearest member, k a twentieth of it, instead of the nearest: groups of outliers smaller
than a twentieth of the rows then cannot vouch for one another.
"""

from __future__ import annotations

from numbers import Integral, Real

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval

from skerry.core.detector import Detector
from skerry.kernels.reference_distance import kth_reference_distance, reference_column_squares

__all__ = ["ReferenceNeighbours"]

SPREAD_ROWS = 50_000  # rows that set centre and spread of the columns


class ReferenceNeighbours(Detector):
    """Euclidean distance, on standardised columns, to the k-th nearest row of a random reference set.

    Parameters
    ----------
    n_reference : int, default 512
        Rows of the reference set (all rows where there are fewer).
    share : float in (0, 1], default 0.05
        k as a share of the reference set.
    random_state : int, RandomState or None, default None
    threshold : str, float or Threshold, default "auto"

    Attributes
    ----------
    reference_ : ndarray of shape (m, d), standardised
    n_neighbors_ : int

    References
    ----------
    M. Sugiyama, K. Borgwardt, "Rapid Distance-Based Outlier Detection via Sampling", NIPS 2013.

    Examples
    --------
    >>> X = np.r_[np.random.default_rng(0).normal(size=(300, 3)), [[6.0, -6.0, 6.0]]]
    >>> int(ReferenceNeighbours(random_state=0).fit(X).anomaly_score(X).argmax())
    300
    """

    _parameter_constraints = {
        "n_reference": [Interval(Integral, 1, None, closed="left")],
        "share": [Interval(Real, 0, 1, closed="right")],
    }

    def __init__(self, n_reference=512, share=0.05, random_state=None, threshold="auto"):
        self.n_reference = n_reference
        self.share = share
        self.random_state = random_state
        self.threshold = threshold

    def _fit(self, X: NDArray) -> None:
        rng = check_random_state(self.random_state)
        n = len(X)
        rows = np.sort(rng.choice(n, min(n, max(self.n_reference, SPREAD_ROWS)), replace=False))
        sample = np.asarray(X[rows], dtype=np.float64)
        self.location_ = sample.mean(axis=0)
        spread = sample.std(axis=0)
        self.scale_ = np.where(spread > 0, spread, 1.0)
        kept = np.sort(rng.choice(len(rows), min(n, self.n_reference), replace=False))
        self.reference_ = np.asfortranarray(self._standard(sample[kept]))  # columns are what is read
        self.n_neighbors_ = max(1, round(self.share * len(kept)))

    def _standard(self, X: NDArray) -> NDArray[np.float64]:
        Z = np.asarray(X, dtype=np.float64) - self.location_
        Z /= self.scale_
        return Z

    def _score(self, X: NDArray) -> NDArray[np.float64]:
        return kth_reference_distance(self._standard(X), self.reference_, self.n_neighbors_)

    def _explain(self, X: NDArray) -> NDArray[np.float64]:
        """Squared differences to the nearest k reference rows, shared so that rows sum to the score."""
        Z = self._standard(X)
        out = reference_column_squares(Z, self.reference_, self.n_neighbors_)
        score = kth_reference_distance(Z, self.reference_, self.n_neighbors_)
        total = out.sum(axis=1)
        return out * (score / np.where(total > 0, total, 1.0))[:, None]
