"""The names of the thresholds that follow a stream, as the command knows them."""

from __future__ import annotations

from typing import Any

from sklearn.base import clone

from skerry.core.errors import ParameterError
from skerry.core.spot import DSPOT, SPOT
from skerry.core.stream_threshold import AdaptiveConformal, StreamThreshold

__all__ = ["STREAM_RULES", "make_stream_threshold"]

STREAM_RULES = {
    "auto": SPOT,
    "extreme": SPOT,
    "drift": DSPOT,
    "adaptive": AdaptiveConformal,
    "conformal": AdaptiveConformal,  # the only conformal rule that can follow
}


def make_stream_threshold(rule: str | StreamThreshold) -> StreamThreshold:
    """Return the rule for ``"auto"``, ``"extreme:1e-3"``, ``"drift:1e-3"`` or ``"adaptive:0.01"``.

    "extreme" is :class:`~skerry.core.spot.SPOT`, "drift" is ``DSPOT``, "adaptive" is
    ``AdaptiveConformal`` ("conformal" means the same); "auto" is ``extreme:1e-3``, aimed at one flag in a thousand
    steps that are like those learned from; a series that drifts away from them flags more. Of the risks 1e-4 to 3e-3
    it has the best balance of labelled events met and false ones on the development series (study ``alarms``).

    Raises
    ------
    ParameterError
        For another rule or a number out of range.

    Examples
    --------
    >>> make_stream_threshold("adaptive:0.02")
    AdaptiveConformal(alpha=0.02)
    """
    if isinstance(rule, StreamThreshold):
        return rule
    name, _, value = str(rule).partition(":")
    if name not in STREAM_RULES or (name == "auto" and value):
        raise ParameterError(
            f"threshold {rule!r} cannot follow a stream: use auto, extreme:1e-3, drift:1e-3 or adaptive:0.01"
        )
    cls: Any = STREAM_RULES[name]
    if not value:
        return cls()
    try:
        made = cls(float(value))
    except ValueError:
        raise ParameterError(f"threshold {rule!r}: {value!r} is not a number") from None
    made._start()  # checks the range
    return clone(made)
