"""Which columns carry information about a target, linear or not: screening by mutual information.

Paper: K. Yang, "fastHDMI: fast mutual information estimation for high-dimensional data", arXiv 2410.10082, and his
thesis (McGill, 2025). The published package computes bandwidths and never passes them on; here they are used, and
``bandwidth="official"`` gives its over-smoothed values back.
"""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, Self

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import digamma
from sklearn.base import BaseEstimator
from sklearn.feature_selection import SelectorMixin
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, InvalidParameterError, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

from skerry.core.errors import DataError, ParameterError
from skerry.kernels import bandwidths
from skerry.kernels.binned_information import MAX_BINS, bin_columns, binned_information
from skerry.kernels.mutual_information import kde_classes, kde_continuous
from skerry.kernels.neighbour_information import knn_classes, knn_continuous

__all__ = ["MutualInformationScreen", "benjamini_hochberg", "mutual_information"]

_ESTIMATORS = ("fftkde", "binning", "knn", "pearson")
_BANDWIDTHS = ("silverman", "scott", "sheather-jones", "official")
_FEW = 10  # a numeric target with at most this many distinct whole values is a target of classes
_SHUFFLES = 20


def mutual_information(
    X: ArrayLike,
    y: ArrayLike,
    *,
    estimator: str = "fftkde",
    discrete_target: bool | str = "auto",
    bandwidth: str | float = "silverman",
    correction: str = "none",
    n_neighbors: int = 3,
    n_jobs: int = -1,
    random_state: Any = 0,
) -> NDArray[np.float64]:
    """Estimate the mutual information of each column of ``X`` with ``y``.

    Parameters
    ----------
    X : array-like of shape (n, p) or (n,)
        Numeric; NaN is dropped pairwise. Discrete columns are not for ``fftkde``: bin them.
    y : array-like of shape (n,)
        Continuous or classes.
    estimator : {"fftkde", "binning", "knn", "pearson"}, default="fftkde"
        ``fftkde``: Epanechnikov product density on a grid, 300 x 300 (500 for classes), linear binning; the kernel
        is compact and separable, so its sums are done directly and equal those of the FFT. ``binning``: equal-width
        bins, their number by the penalty of Birge and Rozenholc. ``knn``: Kraskov (Ross for classes).
        ``pearson``: -ln(1 - r^2)/2 (correlation ratio for classes).
    discrete_target : bool or "auto", default="auto"
        "auto": classes if y is not numeric or has at most 10 distinct whole values.
    bandwidth : {"silverman", "scott", "sheather-jones", "official"} or float, default="silverman"
        Rule per axis; a float multiplies Silverman's. "sheather-jones" (improved, Botev et al. 2010) assumes no
        normal shape: for columns of several modes. "official" is 1 after robust scaling, as published.
    correction : {"none", "miller-madow", "shuffle"}, default="none"
        Bias correction of ``binning``: its plug-in value of independent columns is far from 0.
    n_neighbors : int, default=3
        For ``knn``.
    n_jobs : int, default=-1
        Threads; -1 for all. The result does not depend on it.
    random_state : int, RandomState or None, default=0
        Draws the 20 permutations of ``correction="shuffle"``.

    Returns
    -------
    ndarray of shape (p,), float64
        Nats, at least 0 (corrected values too are clipped at 0). A constant column has 0.

    Raises
    ------
    DataError
        If lengths differ, a value is infinite or there is no row.
    ParameterError
        For an unknown estimator or option.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(500, 2))
    >>> mutual_information(x, x[:, 0] ** 2).round(1)
    array([0.6, 0. ])
    """
    X = np.asarray(X, dtype=np.float64)
    X = X[:, None] if X.ndim == 1 else X
    if X.ndim != 2 or X.shape[0] == 0 or np.ndim(y) != 1 or len(np.asarray(y)) != X.shape[0]:
        raise DataError(f"X of shape (n, p) and y of shape (n,) are needed, got {X.shape} and {np.shape(y)}")
    if np.isinf(X).any():
        raise DataError(
            f"X has an infinite value, first at (row, column) {tuple(np.argwhere(np.isinf(X))[0].tolist())}"
        )
    target, n_classes = _target(y, discrete_target)
    if estimator == "pearson" and n_classes and n_classes <= 2:
        n_classes = 0  # the same number, and simpler
    columns = np.ascontiguousarray(X.T)
    return _estimate(columns, target, n_classes, estimator, bandwidth, correction, n_neighbors, n_jobs, random_state)


def _target(y: ArrayLike, discrete: bool | str) -> tuple[NDArray[np.float64], int]:
    """Return float values or class codes (NaN missing), and the number of classes (0: continuous)."""
    y = np.asarray(y)
    numeric = y.dtype.kind in "fiu"
    if numeric:
        values = y.astype(np.float64)
        if np.isinf(values).any():
            raise DataError(f"y has an infinite value, first at row {int(np.argmax(np.isinf(values)))}")
        present = values[~np.isnan(values)]
    if discrete == "auto":
        distinct = np.unique(present) if numeric else None
        discrete = not numeric or (distinct.size <= _FEW and bool(np.all(distinct == np.round(distinct))))
    elif not isinstance(discrete, (bool, np.bool_)):
        raise ParameterError(f"discrete_target={discrete!r}: use True, False or 'auto'")
    if not discrete:
        if not numeric:
            raise DataError("y is not numeric: use discrete_target=True")
        return values, 0
    if numeric:
        classes, inverse = np.unique(present, return_inverse=True)
        codes = np.full(y.size, np.nan)
        codes[~np.isnan(values)] = inverse
        return codes, max(1, classes.size)
    missing = np.array([v is None or v != v for v in y.tolist()])
    codes = np.full(y.size, np.nan)
    classes, inverse = np.unique(y[~missing].astype(str), return_inverse=True)
    codes[~missing] = inverse
    return codes, max(1, classes.size)


def _estimate(Xt, y, n_classes, estimator, bandwidth, correction, n_neighbors, n_jobs, random_state):
    if estimator not in _ESTIMATORS:
        raise ParameterError(f"estimator={estimator!r}: use one of {', '.join(_ESTIMATORS)}")
    if correction not in ("none", "miller-madow", "shuffle"):
        raise ParameterError(f"correction={correction!r}: use 'none', 'miller-madow' or 'shuffle'")
    rule, value = _bandwidth(bandwidth)
    limit = numba.config.NUMBA_NUM_THREADS
    threads = limit if n_jobs in (None, -1) else int(n_jobs)
    if threads < 1:
        raise ParameterError(f"n_jobs={n_jobs!r}: use -1 or a positive number")
    before = numba.get_num_threads()
    numba.set_num_threads(min(threads, limit))
    try:
        if estimator == "fftkde":
            if n_classes:
                return kde_classes(Xt, y, n_classes, rule, value)
            return kde_continuous(Xt, y, rule, value)
        if estimator == "knn":
            psi = np.r_[0.0, digamma(np.arange(1, y.size + 2))]
            if n_classes:
                return knn_classes(Xt, y, n_classes, n_neighbors, psi)
            return knn_continuous(Xt, y, n_neighbors, psi)
        if estimator == "binning":
            return _binning(Xt, y, n_classes, correction, random_state)
        return _pearson(Xt, y, n_classes)
    finally:
        numba.set_num_threads(before)


def _bandwidth(rule: str | float) -> tuple[int, float]:
    """Return the kernels' (rule, value)."""
    silverman = (4.0 / 3.0) ** 0.2
    if not isinstance(rule, str):
        if not rule > 0:
            raise ParameterError(f"bandwidth={rule!r}: a number must be positive")
        return bandwidths.SPREAD, silverman * float(rule)
    if rule not in _BANDWIDTHS:
        raise ParameterError(f"bandwidth={rule!r}: use {', '.join(map(repr, _BANDWIDTHS))} or a number")
    return {
        "silverman": (bandwidths.SPREAD, silverman),
        "scott": (bandwidths.SPREAD, 1.059),
        "sheather-jones": (bandwidths.PLUG_IN, 1.0),
        "official": (bandwidths.FIXED, 1.0),
    }[rule]


def _binning(Xt, y, n_classes, correction, random_state):
    codes = bin_columns(Xt)
    if not n_classes:
        y = bin_columns(y[None, :])[0]
        n_classes = MAX_BINS
    raw = binned_information(codes, y, n_classes, correction == "miller-madow")
    if correction == "shuffle":
        rng = check_random_state(random_state)
        null = np.zeros_like(raw)
        for _ in range(_SHUFFLES):
            null += binned_information(codes, rng.permutation(y), n_classes, False)
        raw = raw - null / _SHUFFLES
    return np.maximum(raw, 0.0)


def _pearson(Xt, y, n_classes):
    present = ~(np.isnan(Xt) | np.isnan(y))
    n = np.maximum(present.sum(axis=1), 1)
    x = np.where(present, Xt, 0.0)
    x = x / np.maximum(np.abs(x).max(axis=1, keepdims=True), 1e-300)
    x = np.where(present, x - x.sum(axis=1, keepdims=True) / n[:, None], 0.0)
    total = (x**2).sum(axis=1)
    explained = np.zeros_like(total)
    if n_classes:  # correlation ratio
        for c in range(n_classes):
            member = present & (y == c)
            size = np.maximum(member.sum(axis=1), 1)
            explained += np.where(member, x, 0.0).sum(axis=1) ** 2 / size
        share = explained / np.where(total > 0, total, 1.0)
    else:
        b = np.where(present, y, 0.0)
        b = b / np.maximum(np.abs(b).max(axis=1, keepdims=True), 1e-300)
        b = np.where(present, b - b.sum(axis=1, keepdims=True) / n[:, None], 0.0)
        bottom = total * (b**2).sum(axis=1)
        share = (x * b).sum(axis=1) ** 2 / np.where(bottom > 0, bottom, 1.0)
    share = np.where(total > n * 1e-28, share, 0.0)
    return -0.5 * np.log1p(-np.minimum(share, 1.0 - 1e-15))


def benjamini_hochberg(p: ArrayLike) -> NDArray[np.float64]:
    """Return the Benjamini-Hochberg adjusted p-values of ``p``, shape (m,).

    >>> benjamini_hochberg([0.01, 0.04, 0.03]).round(3)
    array([0.03, 0.04, 0.04])
    """
    p = np.asarray(p, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    scaled = p[order] * p.size / np.arange(1, p.size + 1)
    out = np.empty_like(p)
    out[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return out


class MutualInformationScreen(SelectorMixin, BaseEstimator):
    """Keep the columns that tell most about ``y``; linearity is not assumed.

    Parameters
    ----------
    estimator, discrete_target, bandwidth, correction, n_neighbors, n_jobs, random_state
        As in :func:`mutual_information`.
    n_keep : int, "n/log n" or None, default="n/log n"
        At most so many columns; None keeps all (that the other rules leave).
    n_permutations : int, default=0
        If positive, p-values from so many permutations of y (one set, shared by all columns; 999 is usual), and
        only columns with a Benjamini-Hochberg value of at most ``alpha`` are kept.
    alpha : float, default=0.05
    clump : float or None, default=None
        Nats: walking from the best, drop a column whose mutual information with a kept one is above it.

    Attributes
    ----------
    scores_ : ndarray of shape (p,), float64, nats
    linfoot_ : ndarray of shape (p,)
        sqrt(1 - exp(-2 I)), the correlation that a Gaussian pair of that information has.
    pvalues_, qvalues_ : ndarray of shape (p,) or None
    ranking_ : ndarray of shape (p,), int
        Columns from best to worst.
    support_ : ndarray of shape (p,), bool
    clumped_into_ : ndarray of shape (p,), int
        The kept column that made a column superfluous, else -1.

    References
    ----------
    K. Yang et al., arXiv 2410.10082. Y. Benjamini, Y. Hochberg, J. R. Stat. Soc. B 57, 1995.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(300, 6))
    >>> MutualInformationScreen(n_keep=2).fit(X, X[:, 4] ** 2 + np.abs(X[:, 1])).get_support(indices=True)
    array([1, 4])
    """

    _parameter_constraints: dict[str, list[Any]] = {
        "estimator": [StrOptions(set(_ESTIMATORS))],
        "n_keep": [Interval(Integral, 1, None, closed="left"), StrOptions({"n/log n"}), None],
        "discrete_target": ["boolean", StrOptions({"auto"})],
        "bandwidth": [
            StrOptions(set(_BANDWIDTHS)),
            Interval(Real, 0, None, closed="neither"),
            Interval(Integral, 1, None, closed="left"),
        ],
        "correction": [StrOptions({"none", "miller-madow", "shuffle"})],
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
        "clump": [Interval(Real, 0, None, closed="left"), Interval(Integral, 0, None, closed="left"), None],
        "n_permutations": [Interval(Integral, 0, None, closed="left")],
        "alpha": [Interval(Real, 0, 1, closed="right")],
        "n_jobs": [int, None],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        *,
        estimator="fftkde",
        n_keep="n/log n",
        discrete_target="auto",
        bandwidth="silverman",
        correction="none",
        n_neighbors=3,
        clump=None,
        n_permutations=0,
        alpha=0.05,
        n_jobs=-1,
        random_state=0,
    ):
        self.estimator = estimator
        self.n_keep = n_keep
        self.discrete_target = discrete_target
        self.bandwidth = bandwidth
        self.correction = correction
        self.n_neighbors = n_neighbors
        self.clump = clump
        self.n_permutations = n_permutations
        self.alpha = alpha
        self.n_jobs = n_jobs
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Score the columns of ``X`` of shape (n, p), NaN allowed, against ``y`` of shape (n,), and select."""
        try:
            self._validate_params()
        except InvalidParameterError as error:
            raise ParameterError(str(error)) from None
        X, checked = validate_data(
            self, X, y, dtype=np.float64, ensure_all_finite="allow-nan", y_numeric=False, ensure_min_samples=2
        )
        n, p = X.shape
        target, n_classes = _target(checked, self.discrete_target)
        if self.estimator == "pearson" and n_classes and n_classes <= 2:
            n_classes = 0
        Xt = np.ascontiguousarray(X.T)
        common = (self.bandwidth, self.correction, self.n_neighbors, self.n_jobs)
        rng = check_random_state(self.random_state)
        seed = int(rng.randint(2**31 - 1))
        self.scores_ = _estimate(Xt, target, n_classes, self.estimator, *common, seed)
        self.linfoot_ = np.sqrt(-np.expm1(-2.0 * self.scores_))
        self.ranking_ = np.argsort(-self.scores_, kind="stable")
        self.pvalues_ = self.qvalues_ = None
        allowed = np.ones(p, dtype=bool)
        if self.n_permutations:
            exceed = np.zeros(p)
            for _ in range(self.n_permutations):
                null = _estimate(Xt, rng.permutation(target), n_classes, self.estimator, *common, seed)
                exceed += null >= self.scores_
            self.pvalues_ = (1.0 + exceed) / (1.0 + self.n_permutations)
            self.qvalues_ = benjamini_hochberg(self.pvalues_)
            allowed = self.qvalues_ <= self.alpha
        most = p if self.n_keep is None else self.n_keep
        if most == "n/log n":
            most = max(1, int(n / np.log(n)))
        self.support_ = np.zeros(p, dtype=bool)
        self.clumped_into_ = np.full(p, -1)
        waiting = [int(j) for j in self.ranking_ if allowed[j]]
        while waiting and self.support_.sum() < most:
            j = waiting.pop(0)
            self.support_[j] = True
            if self.clump is not None and waiting:
                like = _estimate(Xt[waiting], Xt[j], 0, self.estimator, *common, seed)
                for k, value in zip(waiting, like, strict=True):
                    if value > self.clump:
                        self.clumped_into_[k] = j
                waiting = [k for k in waiting if self.clumped_into_[k] < 0]
        return self

    def _get_support_mask(self) -> NDArray[np.bool_]:
        check_is_fitted(self)
        return self.support_

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.target_tags.required = True
        return tags
