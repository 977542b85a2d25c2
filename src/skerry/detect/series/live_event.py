"""What a stream that is followed has to tell."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LiveEvent"]


@dataclass(frozen=True)
class LiveEvent:
    """What there is to tell of an event.

    Attributes
    ----------
    kind : {"alarm", "end", "open"}
        It has begun; it is over; the stream was left while it was under way.
    number : int
        Counts events from 1; an alarm and its end share it.
    start, last, peak : str
        Stamps of the first, the last and the highest flagged step so far (numbers of steps without a clock).
    steps : int
        From the first to the last.
    score : float
        At the peak.
    threshold : float
        In force at the step that told it.
    reasons : tuple of str
        Of an alarm: the channels to blame, in words.
    blame : dict
        Of an alarm: share of the score by channel.
    """

    kind: str
    number: int
    start: str
    last: str
    peak: str
    steps: int
    score: float
    threshold: float
    reasons: tuple[str, ...] = ()
    blame: dict[str, float] | None = None
