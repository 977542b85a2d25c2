"""Fitted detectors of one series or several by name: what is saved, and what scores the series that come later."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, clone

from skerry.core.errors import DataError, ModelError, SkerryError, nearest
from skerry.core.series_detector import SeriesDetector
from skerry.core.threshold import Threshold
from skerry.data.series_clock import duration_words
from skerry.data.series_frame import SeriesFrame
from skerry.detect.series.registry import make_series_detector

__all__ = ["SeriesModel"]

KEPT = ("channel", "value", "time_zone", "time_format", "step", "order", "duplicates", "max_gap")  # options of reading


class SeriesModel(BaseEstimator):
    """One detector for each series of a table.

    Parameters
    ----------
    detector : str or SeriesDetector, default "ensemble"
        A name of :func:`make_series_detector`, or an unfitted detector.
    threshold : str, float or Threshold, default "auto"
    random_state : int or None, default 0

    Attributes
    ----------
    detectors_ : dict of str to fitted SeriesDetector
        By the values of the key columns; "" where the table held one series. Of a series that long gaps cut, the
        longest piece is learned from.
    channels_ : dict of str to list of str
    steps_ : dict of str to (float, bool)
        The typical step, and whether it is of the calendar.
    time_column_ : str
    keys_ : list of str
    reading_ : dict of str to str or float
        How the table was read: later ones are read alike.

    Examples
    --------
    >>> from skerry.data.series import read_series
    >>> x = np.sin(np.arange(900) / 5)
    >>> model = SeriesModel("forecast").fit(read_series(x, time=False))
    >>> x[500] += 2.0
    >>> (later,) = read_series(x, time=False)
    >>> int(model.anomaly_score(later).argmax())
    500
    """

    def __init__(
        self,
        detector: str | SeriesDetector = "ensemble",
        threshold: str | float | Threshold = "auto",
        random_state: int | None = 0,
    ) -> None:
        self.detector = detector
        self.threshold = threshold
        self.random_state = random_state

    def template(self) -> SeriesDetector:
        """Return the detector that is fitted to each series, unfitted."""
        if isinstance(self.detector, SeriesDetector):
            return clone(self.detector).set_params(threshold=self.threshold)
        return make_series_detector(self.detector, threshold=self.threshold, random_state=self.random_state)

    def fit(self, frames: list[SeriesFrame], y: Any = None) -> Self:
        """Fit a detector to each series; ``y`` is ignored.

        Raises
        ------
        DataError
            If a series cannot be learned from; the message names it.
        """
        self.start()
        for frame in longest_pieces(frames):
            try:
                self.keep(frame, self.template().fit(frame.values))
            except DataError as error:
                raise DataError(f"series {frame.name!r}: {error}") from None
        return self

    def start(self) -> Self:
        """Forget what was learned."""
        self.detectors_: dict[str, SeriesDetector] = {}
        self.channels_: dict[str, list[str]] = {}
        self.steps_: dict[str, tuple[float, bool]] = {}
        self.time_column_, self.keys_ = "", []
        self.reading_: dict[str, Any] = {}
        return self

    def keep(self, frame: SeriesFrame, detector: SeriesDetector) -> None:
        """Take a detector that was fitted to ``frame``."""
        self.detectors_[frame.key] = detector
        self.channels_[frame.key] = list(frame.channels)
        self.steps_[frame.key] = (float(frame.step), frame.time.dtype.kind == "M")
        self.time_column_, self.keys_ = frame.time_column, list(frame.keys)

    def remember(self, reading: dict[str, Any]) -> None:
        """Keep the options that the table was read with; its time column and keys are kept by :meth:`keep`."""
        self.reading_ = {k: reading[k] for k in KEPT if k in reading}

    def set_threshold(self, threshold: str | float | Threshold) -> Self:
        """Swap the rule of every detector, see :meth:`~skerry.core.series_detector.SeriesDetector.set_threshold`."""
        for detector in self.detectors_.values():
            detector.set_threshold(threshold)
        self.threshold = threshold
        return self

    def reading(self, columns: list[str], **given: Any) -> dict[str, Any]:
        """Return the options to read a later table of these columns with: those given, else as the first was read."""
        kept = getattr(self, "reading_", {})  # models of older files have none
        out = {k: v for k, v in kept.items() if k not in ("channel", "value") or kept.get("channel") in columns} | given
        if "time" not in out and (not self.time_column_ or self.time_column_ in columns):
            out["time"] = self.time_column_ or False
        if "by" not in out and self.keys_:
            out["by"] = list(self.keys_)
        return out

    def knows(self, frame: SeriesFrame) -> bool:
        """Whether there is a detector for this series; one of a table without keys is for all."""
        return frame.key in self.detectors_ or "" in self.detectors_ or (not frame.keys and len(self.detectors_) == 1)

    def match(self, frame: SeriesFrame) -> tuple[SeriesDetector, SeriesFrame]:
        """Return the detector of a series, and the series with the channels that it was fitted to.

        Raises
        ------
        DataError
            If the series or all of its channels are unknown to the model.
        """
        if not self.knows(frame):
            hint = nearest(frame.key, self.detectors_)
            what = f"series {frame.key!r} was not learned" if frame.keys else "the table holds one series without a key"
            raise DataError(f"{frame.name}: {what}; the model holds {len(self.detectors_)} series ({hint})")
        key = (
            frame.key if frame.key in self.detectors_ else "" if "" in self.detectors_ else next(iter(self.detectors_))
        )
        frame = frame.select(self.channels_[key])
        step, calendar = self.steps_[key]
        if calendar == (frame.time.dtype.kind == "M") and not 0.5 < frame.step / (step or 1.0) < 2.0:
            now, then = duration_words(frame.step, calendar), duration_words(step, calendar)
            frame.notes.append(f"steps of {now}, but the model learned from steps of {then}: scores may mean little")
        return self.detectors_[key], frame

    def check(self) -> None:
        """Refuse a model whose parts do not fit each other, as of a file that was tampered with.

        Raises
        ------
        ModelError
        """
        parts = [getattr(self, name, None) for name in ("detectors_", "channels_", "steps_")]
        detectors, channels, steps = (part if isinstance(part, dict) else {} for part in parts)
        if not detectors or not set(detectors) == set(channels) == set(steps):
            raise ModelError("the model of series holds no fitted detectors, or parts that do not fit each other")
        kept = getattr(self, "reading_", {})
        if not isinstance(kept, dict) or not all(
            k in KEPT and isinstance(v, (str, int, float)) for k, v in kept.items()
        ):
            raise ModelError("the model of series does not say how its table was read")
        for key, detector in detectors.items():
            fitted = isinstance(detector, SeriesDetector) and hasattr(detector, "threshold_rule_")
            if not fitted or getattr(detector, "n_features_in_", -1) != len(channels[key]):
                raise ModelError(
                    f"the model of series {key!r} is no fitted detector of its {len(channels[key])} channels"
                )

    def anomaly_score(self, frame: SeriesFrame) -> NDArray[np.float64]:
        """Return one score per step of a series with the channels of the model, shape (T,).

        Raises
        ------
        ModelError
            If the state of the detector does not work, as of a file that was tampered with.
        """
        detector = self.match(frame)[0]
        try:
            return detector.anomaly_score(frame.values)
        except SkerryError:
            raise
        except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError) as error:
            raise ModelError(
                f"the saved {type(detector).__name__} cannot score series {frame.name!r} "
                f"({type(error).__name__}: {error}); fit it anew"
            ) from error


def longest_pieces(frames: list[SeriesFrame]) -> list[SeriesFrame]:
    """Return the longest piece of each series, in their order."""
    best: dict[str, SeriesFrame] = {}
    for frame in frames:
        if frame.key not in best or len(frame) > len(best[frame.key]):
            best[frame.key] = frame
    return list(best.values())
