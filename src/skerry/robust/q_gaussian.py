"""The q-Gaussian law in any dimension: Tsallis' maximum-entropy density, which is the multivariate Student law.

Paper: K. Yang, "Maximum Tsallis entropy distributions ..." (thesis, McGill, 2025). With ``q`` the entropic index and
``n`` the dimension, the degrees of freedom are ``m = 2 / (q - 1) - n``; marginals and sub-vectors keep ``m``, not
``q``. Degenerate likelihoods: C. Fernández, M. Steel, Biometrika 86, 1999.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln

__all__ = ["lowest_safe_df", "q_gaussian_logpdf"]


def q_gaussian_logpdf(distance: ArrayLike, log_det: ArrayLike, dimension: ArrayLike, df: float) -> NDArray[np.float64]:
    """Log-density of the q-Gaussian with ``df = 2 / (q - 1) - dimension`` degrees of freedom.

    Parameters
    ----------
    distance : array-like
        Squared Mahalanobis distances ``x' Sigma^-1 x``.
    log_det : array-like
        ``ln det Sigma`` of the scale matrix.
    dimension : array-like
    df : float
        Positive; ``inf`` is the Gaussian.

    Returns
    -------
    ndarray, float64

    Examples
    --------
    >>> q_gaussian_logpdf(0.0, 0.0, 1, 1.0).round(4)  # Cauchy at 0: -ln(pi)
    np.float64(-1.1447)
    """
    distance, d = np.asarray(distance, dtype=np.float64), np.asarray(dimension, dtype=np.float64)
    if df > 1e8:  # the difference of the gamma terms has no digits left there
        return -0.5 * (d * np.log(2 * np.pi) + log_det + distance)
    half = 0.5 * (df + d)
    return gammaln(half) - gammaln(0.5 * df) - 0.5 * (d * np.log(df * np.pi) + log_det) - half * np.log1p(distance / df)


def lowest_safe_df(n_effects: int, n_rows: int, n_clusters: int) -> float:
    """Return the degrees of freedom at or below which a fit of ``n_effects`` free effects has no maximum.

    With ``k`` effects, ``s = k / (n / g)`` clusters can be met exactly. As the scale then goes to 0 the density of
    those grows like ``scale^-(n / g)`` each, and of every other falls like ``scale^m``: the likelihood is unbounded
    if ``m <= s (n / g) / (g - s) = k (n / g) / (n - k)``.

    >>> lowest_safe_df(60, 300, 60)
    1.25
    """
    if n_effects >= n_rows:
        return float("inf")
    return n_effects * (n_rows / n_clusters) / (n_rows - n_effects)
