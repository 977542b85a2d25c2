"""INNE (Bandaragoda et al. 2018): rows that small balls around sampled rows do not cover are outliers.

Scores lie in [0, 1]: 0 where the smallest covering ball is as small as its neighbour's, 1 where nothing covers.
"""

from __future__ import annotations

from numbers import Integral, Real

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval
from sklearn.utils.random import sample_without_replacement

from skerry.core.detector import Detector
from skerry.kernels.balls import attribute_isolation, grow_balls, isolation

__all__ = ["INNE"]


class INNE(Detector):
    """Isolation by nearest-neighbour ensembles.

    Parameters
    ----------
    n_estimators : int, default 200
        Samples.
    max_samples : int or float, default 16
        Rows of a sample, drawn without replacement; a float is a share of all rows.
    random_state : int, RandomState or None, default None
    threshold : str, float or Threshold, default "auto"

    Attributes
    ----------
    max_samples_ : int
        Rows per sample.
    centres_ : ndarray of shape (n_estimators, max_samples_, n_features), float64
    radii_, terms_ : ndarray of shape (n_estimators, max_samples_), float64
        Distance of each centre to the nearest other one of its sample, and the isolation of the rows whose
        smallest covering ball it is.

    Notes
    -----
    The isolation of a row in one sample is ``1 - radius(nn(c)) / radius(c)`` with ``c`` the centre of the
    smallest ball that covers the row and ``nn(c)`` the centre nearest to ``c``, and 1 where no ball does; the
    score is its mean over the samples. Balls are closed here (open in the paper), so that copies of one row,
    whose balls have no reach, cover each other and count 0.

    The score judges a row against its surroundings, so it finds local outliers that an isolation forest misses.
    Distances are Euclidean in the units of the table: columns should share a scale. When not to use: where far and
    very far must be told apart, since every row that no ball covers scores 1.

    ``explain`` splits each isolation by squared difference to the ball's centre (to the nearest centre where none
    covers); its rows sum to the score.

    References
    ----------
    T. R. Bandaragoda, K. M. Ting, D. Albrecht, F. T. Liu, Y. Zhu, J. R. Wells, "Isolation-based anomaly detection
    using nearest-neighbor ensembles", Computational Intelligence 34, 2018, definitions 1-3.

    Examples
    --------
    >>> X = np.r_[np.random.default_rng(0).normal(size=(200, 2)), [[8.0, 8.0]]]
    >>> int(INNE(random_state=0).fit(X).anomaly_score(X).argmax())
    200
    """

    _parameter_constraints = {
        "n_estimators": [Interval(Integral, 1, None, closed="left")],
        "max_samples": [
            Interval(Integral, 2, 1 << 16, closed="both"),
            Interval(Real, 0, 1, closed="neither"),
        ],
    }

    def __init__(self, n_estimators=200, max_samples=16, random_state=None, threshold="auto"):
        self.n_estimators = n_estimators
        self.max_samples = max_samples
        self.random_state = random_state
        self.threshold = threshold

    def _fit(self, X: NDArray) -> None:
        rng = check_random_state(self.random_state)
        n = X.shape[0]
        wanted = self.max_samples if isinstance(self.max_samples, Integral) else round(self.max_samples * n)
        self.max_samples_ = int(min(max(wanted, 2), n, 1 << 16))
        self.centres_ = np.empty((self.n_estimators, self.max_samples_, X.shape[1]))
        for t in range(self.n_estimators):
            self.centres_[t] = X[sample_without_replacement(n, self.max_samples_, random_state=rng)]
        self.radii_, self.terms_ = grow_balls(self.centres_)

    def _score(self, X: NDArray) -> NDArray[np.float64]:
        return isolation(X, self.centres_, self.radii_, self.terms_)

    def _explain(self, X: NDArray) -> NDArray[np.float64]:
        return attribute_isolation(X, self.centres_, self.radii_, self.terms_)
