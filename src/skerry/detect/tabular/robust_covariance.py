"""RobustCovariance: squared Mahalanobis distance from a centre and a scatter that outliers cannot move.

Rousseeuw and Van Driessen (1999), "A fast algorithm for the minimum covariance determinant estimator",
Technometrics 41; deterministic starts in the manner of Hubert, Rousseeuw and Verdonck (2012). The score is a
squared distance, about chi-squared with d degrees of freedom on ordinary Gaussian rows.
"""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammainc, gammaincinv
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval
from threadpoolctl import threadpool_limits

from skerry.core.detector import Detector
from skerry.core.threshold import Threshold

__all__ = ["RobustCovariance"]

FIT_ROWS = 200_000  # more rows than this add nothing to an estimate with a breakdown point
START_ROWS = 3_000  # starts are compared on a subsample
RANDOM_STARTS = 10
MAX_STEPS = 30
FLAT = 1e-4  # smallest eigenvalue, as a share of the mean one; less lets seeds disagree on discrete columns
FAR = 1e70  # standardised values are held within +-FAR, so that squares stay finite
BLOCK_VALUES = 1 << 15  # standardised values held at a time: they stay in the second-level cache
FEW_PRODUCTS = 1e10  # multiplications of one Gram matrix below which one BLAS thread is faster
ROWS_PER_DIRECTION = 5  # fewer leave a scatter that follows the draw of its rows
FEW_DIRECTIONS, MANY_DIRECTIONS = 10, 256  # never fewer than the first, never more than the second


class RobustCovariance(Detector):
    """Fast minimum covariance determinant, reweighted.

    Parameters
    ----------
    support_fraction : float in (0, 1] or None, default None
        Share of the rows whose covariance has the smallest determinant. ``None`` takes ``(n + d + 1) / 2``
        rows, which withstands the most outliers; 0.75 is more efficient where at most a quarter can be
        outliers.
    threshold : str, float or Threshold, default "auto"
    random_state : int, RandomState or None
        Draws the subsamples and the random starts.

    Attributes
    ----------
    location_ : ndarray of shape (n_features,), float64
        Robust centre in the units of the input.
    scale_ : ndarray of shape (n_features,), float64
        Scale of each feature; infinite for a constant one, which is left out.
    covariance_ : ndarray of shape (n_features, n_features), float64
        Robust scatter of the features divided by ``scale_``.
    n_support_ : int
        Rows that the reweighted estimate stands on (of at most 200,000 that were used).
    n_floored_ : int
        Directions in which the scatter was (nearly) singular and was raised to the floor.
    n_directions_ : int
        Directions that the scatter was estimated in; less than ``n_features_in_`` for wide or short tables.

    Notes
    -----
    From a start, C-steps alternate: estimate mean and covariance of h rows, take the h rows nearest to
    them. The determinant falls at every step (Theorem 1 of the paper). Starts are four deterministic ones
    (nearest half, tanh, rank and sign correlations) and, up to 50 features, ten random sets of d + 1 rows;
    they are compared after two steps on 3,000 rows, three are run to the end there, the best two take two
    more steps on all rows, and the better one is run to the end. The result is scaled by ``(h / n) /
    P(chi2_{d + 2} <= q_{h / n})`` to be consistent at the Gaussian, and re-estimated from the rows whose
    distance is within the 97.5 % quantile. Small-sample corrections are not applied.

    A determinant needs rows: with fewer than five for each feature, or more than 256 features, the search runs in
    the leading ``max(10, n // 5)`` (at most 256) directions of the rows' spatial signs, which outliers cannot turn
    (Locantore et al. 1999), and what lies outside of them counts by its squared length over its usual one, in the
    manner of ROBPCA (Hubert, Rousseeuw and Vanden Branden 2005).

    Where the scatter is singular (constant or repeated features, more than half of the rows on a plane),
    eigenvalues are raised to 0.0001 of their mean, so every distance is finite and rows off the plane
    are far. :meth:`explain` returns ``z_j (P z)_j`` with P the inverse scatter: the terms sum to the score,
    and single ones may be negative.

    Examples
    --------
    >>> X = np.r_[np.random.default_rng(0).normal(size=(200, 2)), np.full((40, 2), 6.0)]
    >>> s = RobustCovariance(random_state=0).fit(X).anomaly_score(X)
    >>> bool(s[200:].min() > s[:200].max())
    True
    """

    _parameter_constraints: dict[str, list[Any]] = {"support_fraction": [Interval(Real, 0, 1, closed="right"), None]}

    def __init__(
        self,
        support_fraction: float | None = None,
        *,
        threshold: str | float | Threshold = "auto",
        random_state: Any = None,
    ) -> None:
        self.support_fraction = support_fraction
        self.threshold = threshold
        self.random_state = random_state

    def _fit(self, X: NDArray) -> None:
        # many small products: on more threads BLAS would spend its time waiting
        with threadpool_limits(1 if X.size * X.shape[1] < FEW_PRODUCTS else None, user_api="blas"):
            self._estimate(X)

    def _estimate(self, X: NDArray) -> None:
        rng = check_random_state(self.random_state)
        n, d = X.shape
        if n > FIT_ROWS:
            X = X[np.sort(rng.choice(n, FIT_ROWS, replace=False))]
            n = FIT_ROWS
        centre, self.scale_ = _centre_and_scale(X)
        Z = np.clip((X - centre) / self.scale_, -FAR, FAR)
        self.axes_ = _leading_directions(Z, min(d, MANY_DIRECTIONS, max(FEW_DIRECTIONS, n // ROWS_PER_DIRECTION)))
        inside = Z @ self.axes_ if self.axes_.size else Z
        q = inside.shape[1]
        share = (n + q + 1) / (2 * n) if self.support_fraction is None else self.support_fraction
        mean, covariance, distances = _minimum_determinant(inside, min(share, 1.0), rng)
        # reweighting: rows within the 97.5 % quantile of the Gaussian
        near = distances <= 2.0 * gammaincinv(q / 2, 0.975)
        if near.sum() > q:
            mean, covariance = _moments(inside[near])
            covariance *= _consistency(0.975, q)
        self.n_support_, self.n_directions_ = int(near.sum()), q
        self.root_, _, self.n_floored_ = _inverse_root(covariance)
        self.outside_precision_ = 0.0
        if self.axes_.size:
            usual = np.median(_outside(Z, inside)) / max(np.isfinite(self.scale_).sum() - q, 1)
            usual = max(float(usual), FLAT * np.trace(covariance) / q, 1e-12)
            self.outside_precision_ = 1.0 / usual
            self.root_ = self.axes_ @ self.root_
            mean = self.axes_ @ mean
            covariance = self.axes_ @ (covariance - usual * np.eye(q)) @ self.axes_.T + usual * np.eye(d)
        self.covariance_ = covariance
        self.location_ = centre + np.where(np.isfinite(self.scale_), self.scale_, 0.0) * mean

    def _standardised(self, X: NDArray) -> NDArray[np.float64]:
        z = X - self.location_
        z /= self.scale_
        return np.clip(z, -FAR, FAR, out=z)

    def _score(self, X: NDArray) -> NDArray[np.float64]:
        step = max(1, BLOCK_VALUES // X.shape[1])
        out = np.empty(X.shape[0])
        for start in range(0, X.shape[0], step):
            z = self._standardised(X[start : start + step])
            y = z @ self.root_
            out[start : start + step] = np.einsum("ij,ij->i", y, y)
            if self.axes_.size:
                out[start : start + step] += self.outside_precision_ * _outside(z, z @ self.axes_)
        return out

    def _explain(self, X: NDArray) -> NDArray[np.float64]:
        """Return ``z_j (P z)_j``; the terms add up to the score."""
        step = max(1, BLOCK_VALUES // X.shape[1])
        precision = self.root_ @ self.root_.T
        out = np.empty(X.shape)
        for start in range(0, X.shape[0], step):
            z = self._standardised(X[start : start + step])
            pulled = z @ precision
            if self.axes_.size:
                pulled += self.outside_precision_ * (z - (z @ self.axes_) @ self.axes_.T)
            np.multiply(z, pulled, out=out[start : start + step])
        return out


def _centre_and_scale(X: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return medians and scaled median absolute deviations; the standard deviation where the latter is 0."""
    centre = np.median(X, axis=0).astype(np.float64)
    away = np.abs(X - centre)
    scale = 1.4826 * np.median(away, axis=0)
    reach = away.max(axis=0)
    constant = reach <= 1e-12 * np.abs(centre)
    unit = np.where(reach > 1e-290, reach, 1.0)
    spread = unit * np.sqrt(np.mean((away / unit) ** 2, axis=0))
    scale = np.where(scale > 1e-9 * spread, scale, spread)
    return centre, np.where(constant | (scale <= 1e-290), np.inf, scale)


def _leading_directions(Z: NDArray[np.float64], q: int) -> NDArray[np.float64]:
    """Return the q leading directions of the spatial signs of standardised rows, (d, q); (d, 0) if q = d."""
    n, d = Z.shape
    if q >= d:
        return np.empty((d, 0))
    unit = np.maximum(np.abs(Z).max(axis=1, keepdims=True), 1e-290)  # huge rows must not overflow their own length
    length = unit * np.sqrt(np.mean((Z / unit) ** 2, axis=1, keepdims=True) * d)
    signs = Z / length
    if n >= d:
        return np.linalg.eigh(signs.T @ signs)[1][:, : -q - 1 : -1].copy()
    return np.linalg.svd(signs, full_matrices=False)[2][:q].T.copy()


def _outside(Z: NDArray, inside: NDArray) -> NDArray[np.float64]:
    """Return the squared length that the projections ``inside`` leave out."""
    return np.maximum(np.einsum("ij,ij->i", Z, Z) - np.einsum("ij,ij->i", inside, inside), 0.0)


def _moments(Z: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    mean = Z.mean(axis=0)
    centred = Z - mean
    return mean, centred.T @ centred / len(Z)


def _inverse_root(covariance: NDArray[np.float64]) -> tuple[NDArray[np.float64], float, int]:
    """Return (B with B B' the inverse, log determinant, eigenvalues raised to the floor)."""
    values, vectors = np.linalg.eigh(covariance)
    floor = max(FLAT * values.mean(), 1e-12)
    raised = np.maximum(values, floor)
    return vectors / np.sqrt(raised), float(np.log(raised).sum()), int((values < floor).sum())


def _consistency(share: float, d: int) -> float:
    """Return the factor that makes the covariance of the central ``share`` of a Gaussian consistent."""
    if share >= 1.0:
        return 1.0
    return share / float(gammainc(d / 2 + 1, gammaincinv(d / 2, share)))


def _distances(Z: NDArray, mean: NDArray, root: NDArray) -> NDArray[np.float64]:
    y = (Z - mean) @ root
    return np.einsum("ij,ij->i", y, y)


def _nearest(distances: NDArray[np.float64], h: int) -> NDArray[np.int64]:
    return np.argpartition(distances, h - 1)[:h]


def _concentrate(Z: NDArray, h: int, mean: NDArray, covariance: NDArray, steps: int):
    """Take C-steps until the determinant stops falling; return (log determinant, mean, covariance)."""
    root, log_det, _ = _inverse_root(covariance)
    best = (np.inf, mean, covariance)
    for _ in range(steps):
        mean, covariance = _moments(Z[_nearest(_distances(Z, mean, root), h)])
        root, log_det, _ = _inverse_root(covariance)
        if not log_det < best[0] - 1e-7:
            break
        best = (log_det, mean, covariance)
    return best


def _starts(Z: NDArray[np.float64], h: int, rng: np.random.RandomState):
    """Yield starting (mean, covariance) pairs of standardised rows (m, d)."""
    m, d = Z.shape
    yield _moments(Z[_nearest(np.einsum("ij,ij->i", Z, Z), h)])
    length = np.sqrt(np.einsum("ij,ij->i", Z, Z))
    ranks = np.argsort(np.argsort(Z, axis=0, kind="stable"), axis=0, kind="stable") / m - 0.5
    for shaped in (np.tanh(Z), ranks, Z / np.where(length > 0, length, 1.0)[:, None]):
        # directions from the bounded values, variances and centre from medians along them
        _, vectors = np.linalg.eigh(_moments(shaped)[1])
        along = Z @ vectors
        middle = np.median(along, axis=0)
        spread = np.maximum(1.4826 * np.median(np.abs(along - middle), axis=0), 1e-6)
        away = (along - middle) / spread
        yield _moments(Z[_nearest(np.einsum("ij,ij->i", away, away), max(1, m // 2))])
    for _ in range(RANDOM_STARTS if d <= 50 and m > d + 1 else 0):
        yield _moments(Z[rng.choice(m, d + 1, replace=False)])


def _minimum_determinant(Z: NDArray[np.float64], share: float, rng: np.random.RandomState):
    """Return (mean, consistent covariance, squared distances) of standardised rows ``Z`` (n, d)."""
    n, d = Z.shape
    part = Z if n <= 2 * START_ROWS else Z[np.sort(rng.choice(n, START_ROWS, replace=False))]
    h, h_part = max(1, int(share * n)), max(1, int(share * len(part)))
    found = [_concentrate(part, h_part, *start, steps=2) for start in _starts(part, h_part, rng)]
    found.sort(key=lambda f: f[0])
    found = [_concentrate(part, h_part, *f[1:], steps=MAX_STEPS) for f in found[:3]]
    found.sort(key=lambda f: f[0])
    if part is not Z:
        # two steps on all rows tell which of the two is better; only that one goes on
        found = [_concentrate(Z, h, *f[1:], steps=2) for f in found[:2]]
        found.sort(key=lambda f: f[0])
        found = [_concentrate(Z, h, *found[0][1:], steps=MAX_STEPS)]
    _, mean, covariance = found[0]
    covariance = covariance * _consistency(h / n, d)
    return mean, covariance, _distances(Z, mean, _inverse_root(covariance)[0])
