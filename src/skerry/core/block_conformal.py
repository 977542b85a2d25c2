"""A conformal threshold for scores that depend on their neighbours in time: blocks are exchanged, not steps.

After Chernozhukov, Wuthrich and Zhu, "Exact and robust conformal inference methods for predictive machine learning
with dependent data" (COLT 2018). Dependence within a block does no harm, and blocks much longer than the memory of
the scores are nearly exchangeable.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skerry.core.errors import DataError, ParameterError
from skerry.core.threshold import Conformal, Threshold, conformal_p_value

__all__ = ["BlockConformal", "block_conformal_p_value", "block_maxima"]


@dataclass(frozen=True)
class BlockConformal(Threshold):
    """Conformal threshold for dependent scores: a block of ordinary steps has a flag with probability ``alpha``.

    The reference scores, **in order of time**, are cut into blocks; the cut is the conformal quantile of their
    maxima. Dependence within a block does no harm, and blocks much longer than the memory of the scores are
    nearly exchangeable.

    Parameters
    ----------
    alpha : float in (0, 0.5), default 0.05
        Chance that a block of ordinary steps raises any flag: one false alarm in ``block / alpha`` steps.
    block : int >= 1, default 100
        Steps in a block, several times the memory of the scores.

    Notes
    -----
    The cut is infinite with fewer than ``1 / alpha - 1`` reference blocks. Exact for exchangeable blocks; for
    stationary, mixing scores the error vanishes as the number of blocks grows (Chernozhukov et al., 2018,
    theorem 2). NaN scores are missing steps.

    Examples
    --------
    >>> scores = np.random.default_rng(0).normal(size=20_000)
    >>> bool(3 < BlockConformal(alpha=0.05, block=100).cutoff(scores) < 4)
    True
    """

    alpha: float = 0.05
    block: int = 100

    def __post_init__(self) -> None:
        Conformal(self.alpha)  # checks it
        _check_block(self.block)

    def cutoff(self, scores: ArrayLike) -> float:
        """Return the score above which a step is flagged, from reference scores in order of time."""
        return Conformal(self.alpha).cutoff(block_maxima(scores, self.block))

    def __str__(self) -> str:
        return f"block-conformal:{self.alpha:g}"


def block_conformal_p_value(reference: ArrayLike, scores: ArrayLike, block: int) -> NDArray[np.float64]:
    """Return, for each step, the conformal p-value of the ``block`` steps that end with it.

    Parameters
    ----------
    reference : array of shape (m,)
        Scores of ordinary steps, in order of time, that were not used to fit the detector.
    scores : array of shape (T,)
        Scores to judge, in order of time; NaN is a missing step.
    block : int >= 1

    Returns
    -------
    ndarray of shape (T,), float64
        How many reference blocks reach as high as the steps ``t - block + 1 .. t``; 1 where all are missing.
        Neighbours share most of their block: count a stretch of small p-values as one event.

    Raises
    ------
    DataError
        If the reference is shorter than a block.

    Examples
    --------
    >>> block_conformal_p_value([0, 1, 0, 2, 0, 3], [0, 9, 0, 0], block=2)
    array([1.  , 0.25, 0.25, 1.  ])
    """
    maxima = block_maxima(reference, block)
    s = np.asarray(scores, dtype=np.float64)
    s = np.where(np.isnan(s), -np.inf, s)
    # running maximum in linear time: forward and backward maxima of aligned blocks (van Herk, 1992)
    n_pad = -s.size % block
    grid = np.r_[s, np.full(n_pad, -np.inf)].reshape(-1, block)
    forward = np.maximum.accumulate(grid, axis=1).ravel()[: s.size]
    backward = np.maximum.accumulate(grid[:, ::-1], axis=1)[:, ::-1].ravel()
    trailing = np.maximum(forward, np.r_[np.full(min(block - 1, s.size), -np.inf), backward][: s.size])
    return conformal_p_value(maxima, trailing)


def block_maxima(scores: ArrayLike, block: int) -> NDArray[np.float64]:
    """Return the maxima of consecutive blocks of scores in order of time, float64.

    The oldest remainder is left out, and so are blocks without a score.

    Raises
    ------
    DataError
        If there is less than a block, or a score is infinite.

    Examples
    --------
    >>> block_maxima([9, 0, 1, 0, 2], block=2)
    array([1., 2.])
    """
    _check_block(block)
    s = np.asarray(scores, dtype=np.float64)
    if s.ndim != 1 or s.size < block:
        raise DataError(f"needs at least one block of {block} scores in order of time, got shape {s.shape}")
    infinite = np.flatnonzero(np.isposinf(s))
    if infinite.size:
        raise DataError(f"the reference score at row {infinite[0]} is infinite")
    grid = np.where(np.isnan(s), -np.inf, s)[s.size % block :].reshape(-1, block)
    maxima = grid.max(axis=1)
    return maxima[maxima > -np.inf]


def _check_block(block: object) -> None:
    if isinstance(block, bool) or not isinstance(block, (int, np.integer)) or block < 1:
        raise ParameterError(f"block must be a whole number of at least 1, got {block!r}")
