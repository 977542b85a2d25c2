"""The thresholds that series have beside those of tables, by name: rules that mind the order of the steps.

* ``block-conformal:0.05`` - :class:`~skerry.core.block_conformal.BlockConformal`;
* ``adaptive:0.01`` - :class:`Adaptive`, conformal inference that moves its own level.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skerry.core.block_conformal import BlockConformal
from skerry.core.errors import ParameterError, nearest
from skerry.core.stream_threshold import AdaptiveConformal
from skerry.core.threshold import Threshold, parse_threshold

__all__ = ["Adaptive", "in_order", "parse_series_threshold"]


@dataclass(frozen=True)
class Adaptive(Threshold):
    """:class:`~skerry.core.stream_threshold.AdaptiveConformal` as a rule: over time a share ``alpha`` is flagged.

    Parameters
    ----------
    alpha : float in (0, 0.5), default 0.01
    gamma : float in (0, 1), default 0.005
    window : int >= 2, default 1000

    Notes
    -----
    The decision on a step depends on the steps before it, so the rule is run through the scores in order of time
    (:meth:`run`); ``cutoff`` is only the cut that it would go on with. It needs no scores held out: it corrects itself.

    Examples
    --------
    >>> flags, _ = Adaptive(0.05).run(np.random.default_rng(0).normal(size=20_000))
    >>> bool(0.04 < flags.mean() < 0.06)
    True
    """

    alpha: float = 0.01
    gamma: float = 0.005
    window: int = 1000

    def __post_init__(self) -> None:
        self._rule()._start()  # checks the ranges

    def _rule(self) -> AdaptiveConformal:
        return AdaptiveConformal(self.alpha, self.gamma, self.window)

    def cutoff(self, scores: ArrayLike) -> float:
        """Return the cut that is in force after ``scores``, in order of time."""
        rule = self._rule()
        rule.run(scores)
        return float(rule.threshold_)

    def run(self, scores: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """Return the flags of scores in order of time and the cut that each was held against, both of shape (T,)."""
        return self._rule().run(scores)

    def __str__(self) -> str:
        return f"adaptive:{self.alpha:g}"


def in_order(rule: Threshold) -> bool:
    """Say whether a rule minds the order of the scores.

    >>> in_order(BlockConformal()), in_order(parse_threshold("auto"))
    (True, False)
    """
    return isinstance(rule, (BlockConformal, Adaptive))


def parse_series_threshold(rule: str | float | Threshold) -> Threshold:
    """Return the rule for "block-conformal:0.05", "block-conformal:0.05:50", "adaptive:0.01", or one of tables.

    The second number of block-conformal is the steps in a block, 100 where it is left out.

    Raises
    ------
    ParameterError
        For an unknown rule or a number out of range.

    Examples
    --------
    >>> parse_series_threshold("block-conformal:0.05:50")
    BlockConformal(alpha=0.05, block=50)
    >>> parse_series_threshold("extreme:1e-4")
    ExtremeValue(risk=0.0001, tail=0.05)
    """
    name, *values = str(rule).split(":")
    if isinstance(rule, str) and name in ("block-conformal", "adaptive"):
        try:
            numbers: list[Any] = [float(v) for v in values]
        except ValueError:
            raise ParameterError(f"threshold {rule!r}: {':'.join(values)!r} is not a number") from None
        if name == "adaptive" and len(numbers) <= 1:
            return Adaptive(*numbers)
        if name == "block-conformal" and len(numbers) <= 2:
            return BlockConformal(*numbers[:1], *(int(v) if v.is_integer() else v for v in numbers[1:]))
        raise ParameterError(f"threshold {rule!r} has too many numbers")
    try:
        return parse_threshold(rule)
    except ParameterError as error:
        if not str(error).startswith("unknown threshold"):
            raise
        known = ["auto", "contamination", "extreme", "conformal", "block-conformal", "adaptive"]
        raise ParameterError(f"unknown threshold {rule!r}: {nearest(name, known)}") from None
