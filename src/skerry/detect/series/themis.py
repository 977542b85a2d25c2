"""Themis: a moment is odd if its embedding resembles few others of its window (arXiv 2510.03911).

A frozen encoder says what each moment looks like in context; the window's absolute cosine similarities form a matrix
that ordinary moments make nearly low-rank; rows that its leading eigenvectors cannot rebuild are anomalous.
The paper's text names the parts; the equations are our reading of them (:mod:`.self_similarity`).
"""

from __future__ import annotations

from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.cluster import KMeans
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from threadpoolctl import threadpool_limits

from skerry.core.errors import MissingExtra, ParameterError
from skerry.core.series_detector import SeriesDetector, interpolated
from skerry.detect.series.convolutional_bank import ConvolutionalBank
from skerry.detect.series.self_similarity import mean_similarity, similarity_matrix, spectral_residual, trimmed_top

__all__ = ["Themis"]

SCORERS = ("spectral", "mean", "top", "lof", "ensemble")
MEDOID_STEPS = 20_000  # embeddings of the training series that the reference is chosen from


class Themis(SeriesDetector):
    """Self-similarity of frozen embeddings, window by window.

    Parameters
    ----------
    encoder : str or path, default "convolutional"
        The built-in bank of fixed convolutions, the folder of a Chronos-T5 or Chronos-Bolt model, or a file of
        :mod:`skerry.deep.pretrain_series` (its name ends in ``.safetensors``).
    scorer : {"spectral", "mean", "top", "lof", "ensemble"}, default "spectral"
        What a row of the similarity matrix tells: the length outside of the leading eigenvectors; 1 - its mean; 1 -
        the mean of its largest tenth; the local outlier factor of the rows; the mean rank of the first three.
    n_components : int, default 5
        Eigenvectors that count as ordinary ("spectral"). Little depends on it between 2 and 20.
    window, stride : int, default 512 and None
        Steps of a window and between windows; None takes half a window. The last window is aligned to the end.
    center : bool or "auto", default "auto"
        Subtract the mean embedding of the window; "auto" does so for transformers.
    band : int, optional
        Similarities of moments further apart do not count.
    exclude : int, default 0
        Moments at most this near do not count ("top"): raise it to the length of the events looked for.
    reference : int, default 0
        Ordinary moments of the training series, medoids of its embeddings, that every window is compared with too: a
        window that is odd as a whole resembles itself.
    edge_weight : {"uniform", "triangular"}, default "uniform"
        Weight of a step in the mean over the windows that contain it.
    channels : sequence of int, optional
        Only these (the paper takes ``[0]``); None takes all.
    channel_reduce : {"max", "mean", "sum-of-top3"}, default "max"
        How the channels' scores, each on its robust training scale, become one.
    batch_size : int, default 8
        Windows embedded at once.
    random_state : int, RandomState or None, default 0
    threshold : str, float or Threshold, default "auto"

    Attributes
    ----------
    location_, scale_ : ndarray of shape (channels,)
        Median and interquartile range of each channel's training scores.
    reference_embeddings_ : list of ndarray of shape (reference, d)
        Per channel.

    Notes
    -----
    A missing value is embedded as missing by a transformer and interpolated for the bank, and its score is interpolated
    from its neighbours. Offline. Per window of L steps: the similarities cost L^2 d, the eigenvectors L^3.

    Raises
    ------
    ModelError
        From ``fit``, if the folder is not one of a Chronos model, or the file not one of a trained encoder.

    Examples
    --------
    >>> x = np.sin(2 * np.pi * np.arange(600) / 40)
    >>> x[300:310] += 1.5
    >>> s = Themis(window=300).fit_score(x)
    >>> bool(290 < s.argmax() < 320)
    True
    """

    _parameter_constraints = {
        "encoder": [str, Path],
        "scorer": [StrOptions(set(SCORERS))],
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "window": [Interval(Integral, 2, None, closed="left")],
        "stride": [Interval(Integral, 1, None, closed="left"), None],
        "center": ["boolean", StrOptions({"auto"})],
        "band": [Interval(Integral, 0, None, closed="left"), None],
        "exclude": [Interval(Integral, 0, None, closed="left")],
        "reference": [Interval(Integral, 0, None, closed="left")],
        "edge_weight": [StrOptions({"uniform", "triangular"})],
        "channels": ["array-like", None],
        "channel_reduce": [StrOptions({"max", "mean", "sum-of-top3"})],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        encoder: str | Path = "convolutional",
        scorer: str = "spectral",
        n_components: int = 5,
        window: int = 512,
        stride: int | None = None,
        center: bool | str = "auto",
        band: int | None = None,
        exclude: int = 0,
        reference: int = 0,
        edge_weight: str = "uniform",
        channels: ArrayLike | None = None,
        channel_reduce: str = "max",
        batch_size: int = 8,
        random_state: Any = 0,
        threshold: Any = "auto",
    ) -> None:
        self.encoder = encoder
        self.scorer = scorer
        self.n_components = n_components
        self.window = window
        self.stride = stride
        self.center = center
        self.band = band
        self.exclude = exclude
        self.reference = reference
        self.edge_weight = edge_weight
        self.channels = channels
        self.channel_reduce = channel_reduce
        self.batch_size = batch_size
        self.random_state = random_state
        self.threshold = threshold

    def _fit(self, X: NDArray) -> None:
        self._fit_and_score(X, np.arange(len(X)))

    def _fit_and_score(self, X: NDArray, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        rng = check_random_state(self.random_state)
        self.seed_ = int(rng.randint(2**31 - 1))
        self.channels_ = np.arange(X.shape[1]) if self.channels is None else np.asarray(self.channels, dtype=np.int64)
        if not self.channels_.size or self.channels_.min() < 0 or self.channels_.max() >= X.shape[1]:
            raise ParameterError(f"channels must lie in 0..{X.shape[1] - 1}, got {self.channels!r}")
        self._open()
        self.reference_embeddings_ = [self._medoids(X[:, j], j) for j in self.channels_ if self.reference]
        raw = self._raw(X)
        q1, self.location_, q3 = np.quantile(raw, [0.25, 0.5, 0.75], axis=0)
        spread = np.where(q3 > q1, q3 - q1, raw.std(axis=0))
        self.scale_ = np.where(spread > 1e-12, spread, 1.0)
        return self._reduced(self._scaled(raw))[rows]

    def _open(self) -> None:
        if str(self.encoder) == "convolutional":
            self._encoder: Any = ConvolutionalBank(seed=self.seed_)
        elif Path(self.encoder).suffix == ".safetensors":
            try:
                from skerry.deep.series_encoder import SeriesEncoder
            except ImportError as error:
                raise MissingExtra(error.name or "torch", "deep") from None
            self._encoder = SeriesEncoder(self.encoder)
        else:
            from skerry.deep.chronos import ChronosEncoder

            self._encoder = ChronosEncoder(self.encoder)

    # ---- windows and embeddings
    def _starts(self, n: int) -> NDArray[np.int64]:
        length = min(self.window, n)
        step = self.stride or max(1, length // 2)
        return np.unique(np.r_[np.arange(0, n - length + 1, step), n - length])

    def _embedded(self, x: NDArray, j: int, starts: NDArray[np.int64]):
        """Yield (start, embeddings of shape (L, d)) of one channel."""
        length = min(self.window, len(x))
        if isinstance(self._encoder, ConvolutionalBank):
            x = interpolated(x[:, None], self.feature_medians_[j : j + 1])[:, 0]
        reach = np.nanmax(np.abs(x)) if not np.isnan(x).all() else 0.0
        x = x / reach if reach > 0.0 else x
        for at in range(0, len(starts), self.batch_size):
            some = starts[at : at + self.batch_size]
            windows = np.stack([x[s : s + length] for s in some])
            yield from zip(some, self._encoder.embed(windows), strict=True)

    def _medoids(self, x: NDArray, j: int) -> NDArray[np.float64]:
        E = np.concatenate([e for _, e in self._embedded(x, j, self._starts(len(x)))])
        rng = np.random.RandomState(self.seed_)
        if len(E) > MEDOID_STEPS:
            E = E[np.sort(rng.choice(len(E), MEDOID_STEPS, replace=False))]
        distinct = np.unique(E, axis=0)
        if len(distinct) <= self.reference:
            return distinct
        centres = KMeans(self.reference, n_init=1, random_state=rng).fit(distinct).cluster_centers_
        nearest = [int(((distinct - c) ** 2).sum(axis=1).argmin()) for c in centres]
        return distinct[np.unique(nearest)]

    # ---- scores
    def _matrix(self, E: NDArray, i: int) -> NDArray[np.float64]:
        center = self._encoder.centers if self.center == "auto" else bool(self.center)
        return similarity_matrix(E, center, self.band, self.reference_embeddings_[i] if self.reference else None)

    def _window_scores(self, S: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.scorer == "spectral":
            return spectral_residual(S, self.n_components)
        if self.scorer == "mean":
            return mean_similarity(S)
        if self.scorer == "top":
            return trimmed_top(S, exclude=self.exclude)
        if self.scorer == "lof":
            from skerry.detect.tabular.lof import LOF

            return LOF().fit_score(S)
        parts = [spectral_residual(S, self.n_components), mean_similarity(S), trimmed_top(S, exclude=self.exclude)]
        return np.mean([_ranks(p) for p in parts], axis=0)

    def _raw(self, X: NDArray) -> NDArray[np.float64]:
        """Return the scores of each used channel, (T, channels)."""
        n = len(X)
        out = np.zeros((n, len(self.channels_)))
        starts = self._starts(n)
        length = min(self.window, n)
        weight = np.ones(length)
        if self.edge_weight == "triangular":
            weight = 1.0 - np.abs(np.arange(length) - (length - 1) / 2) / ((length + 1) / 2)
        for i, j in enumerate(self.channels_):
            x = X[:, j]
            if n < 2 or np.isnan(x).all():
                continue
            total, seen = np.zeros(n), np.zeros(n)
            with threadpool_limits(1, user_api="blas"):  # small matrices; and sums in one order
                for start, E in self._embedded(x, j, starts):
                    part = slice(start, start + length)
                    total[part] += weight * self._window_scores(self._matrix(E, i))
                    seen[part] += weight
            score = total / seen
            gap = np.isnan(x)
            if gap.any():
                steps = np.arange(n)
                score[gap] = np.interp(steps[gap], steps[~gap], score[~gap])
            out[:, i] = score
        return out

    def _scaled(self, raw: NDArray[np.float64]) -> NDArray[np.float64]:
        return (raw - self.location_) / self.scale_

    def _reduced(self, scaled: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.channel_reduce == "max":
            return scaled.max(axis=1)
        if self.channel_reduce == "mean":
            return scaled.mean(axis=1)
        return np.sort(scaled, axis=1)[:, -3:].sum(axis=1)

    def _score(self, X: NDArray) -> NDArray[np.float64]:
        return self._reduced(self._scaled(self._raw(X)))

    def _explain(self, X: NDArray) -> NDArray[np.float64]:
        """Return the score of each channel alone, 0 for those not used."""
        out = np.zeros(X.shape)
        out[:, self.channels_] = self._scaled(self._raw(X))
        return out

    def similarity(self, X: ArrayLike, at: int, channel: int = 0) -> tuple[int, NDArray[np.float64]]:
        """Return the similarity matrix of the window around a step, for looking at.

        Parameters
        ----------
        X : array-like of shape (T, c) or (T,)
        at : int
        channel : int, default 0

        Returns
        -------
        start : int
            First step of the window.
        S : ndarray of shape (L, L) or (L, L + reference)

        Raises
        ------
        ParameterError
            If ``at`` or ``channel`` lies outside of the series, or the channel is not used.
        """
        check_is_fitted(self)
        X = self._check_X(X, reset=False)
        if not 0 <= at < len(X):
            raise ParameterError(f"at must lie in 0..{len(X) - 1}, got {at}")
        if channel not in self.channels_:
            raise ParameterError(f"channel {channel} is not used; these are: {self.channels_.tolist()}")
        length = min(self.window, len(X))
        start = int(np.clip(at - length // 2, 0, len(X) - length))
        ((_, E),) = self._embedded(X[:, channel], channel, np.array([start]))
        return start, self._matrix(E, int(np.flatnonzero(self.channels_ == channel)[0]))

    def __getstate__(self):
        return {k: v for k, v in super().__getstate__().items() if k != "_encoder"}

    def __setstate__(self, state):
        super().__setstate__(state)
        if "seed_" in state:
            self._open()


def _ranks(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ranks in (0, 1]; scores that are equal but for rounding share the highest."""
    scores = np.round(scores / max(np.abs(scores).max(initial=0.0), 1e-290), 9)
    return np.searchsorted(np.sort(scores), scores, side="right") / len(scores)
