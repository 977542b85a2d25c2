"""AutoOD: search for the autoencoder-type detector that suits one table (Li et al., 2020, arXiv 2006.11321).

For a table with an hour to spare and, at best, a small labelled part: what counts as an outlier (badly rebuilt, far
from a centre, improbable, outside clusters), the distance and the network are chosen by a controller that is curious
and imitates its own best finds. Which choices mattered is part of the answer.
"""

from __future__ import annotations

import os
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from skerry.core.detector import Detector
from skerry.core.errors import DataError, MissingExtra, ParameterError
from skerry.detect.tabular.autood_child import WeightPool, train_child
from skerry.detect.tabular.autood_image_space import ImageSpace
from skerry.detect.tabular.autood_network import column_terms, score
from skerry.detect.tabular.autood_report import SearchReport
from skerry.detect.tabular.autood_reward import LabelledReward, UnlabelledReward
from skerry.detect.tabular.autood_search import Search
from skerry.detect.tabular.autood_space import DEFINITIONS, SearchSpace

__all__ = ["AutoOD"]

LIMIT = 1e6  # standard deviations at which a value is clipped
HOLDOUT, HOLDOUT_ROWS = 0.25, 2000  # of the internal split of a search without labels
TILE = 4  # pixels of the sides of the squares by which images are explained
KNOTS = 1001  # quantiles kept of each member's training scores


class AutoOD(Detector):
    """The best few networks of a search, their scores averaged by rank.

    Parameters
    ----------
    n_children : int, default 100
        Designs tried.
    time_limit : float or None, default None
        Seconds after which no further design is tried. Retraining the best comes after it.
    curiosity : float >= 0, default 0.05
        Weight of the information gain in the controller's reward; 0 turns it off.
    self_imitation : {"advantage", "js", None}, default "advantage"
        How the controller learns from its best past designs.
    strategy : {"controller", "random"}, default "controller"
        "random" tries designs at random, the baseline to compare with.
    definitions : sequence of str, default all four
        Among "reconstruction", "centroid", "density" and "cluster".
    image_shape : (height, width), (height, width, channels) or None, default None
        Of rows that are flattened images: then the designs are convolutions, one of the distances is the structural
        similarity, and ``explain`` is a map of pixels.
    metric : {"auroc", "ap"}, default "auroc"
        The reward where ``y_val`` is given.
    ensemble : int, default 3
        Distinct best designs whose rank-normalised scores are averaged.
    share_weights : bool, default True
        Children start from the weights that others left in layers of the same place and size.
    child_epochs, final_epochs : int, default 20 and 100
        Of a child in the search, and of the best ones, which are trained anew.
    checkpoint : path or None, default None
        File that keeps the search (JSON and arrays, no pickle); a later ``fit`` of the same search goes on from it,
        with the whole ``time_limit`` again. With a checkpoint, ``random_state=None`` means 0.
    device : {"auto", "cpu", "cuda"}, default "auto"
        "auto" is the CPU: networks for tables are too small to gain from a GPU.
    random_state : int, RandomState or None, default None
    threshold : str, float or Threshold, default "auto"

    Attributes
    ----------
    best_ : dict
        The best design: ``definition``, ``distance``, ``latent``, ``layers``.
    members_ : list of dict
        The designs whose scores are averaged, best first.
    search_ : SearchReport
        ``to_frame()``: every child; ``effects()``: which choice mattered, with intervals. Also ``search_report_``.
    columns_, mean_, scale_ : ndarray of shape (c,)
        Columns that vary, and their standardisation.

    Notes
    -----
    From the abstract: search by curiosity and self-imitation. As remembered: the four definitions, distances, Bayesian
    controller, shared weights, and on images the choices of a layer. Ours: everything about tables, the sizes,
    schedules and the reward without labels.
    A score is the average rank among training scores, mapped to the members' mean quantile function (so that thresholds
    see its tail); rows beyond all training rows get the logarithm of the excess on top.
    Validation labels serve for the reward alone: never give labels that the result is to be judged by.

    Raises
    ------
    MissingExtra
        From ``fit``, if torch is not installed.
    ModelError
        From ``fit``, if ``checkpoint`` belongs to another search or is damaged.

    Examples
    --------
    >>> x = np.linspace(-1, 1, 60)
    >>> X = np.r_[np.c_[x, x, -x], [[2.5, -2.5, 2.5]]]
    >>> det = AutoOD(n_children=4, child_epochs=3, final_epochs=10, random_state=0).fit(X)  # doctest: +SKIP
    >>> det.best_["definition"]  # doctest: +SKIP
    'reconstruction'
    """

    _parameter_constraints = {
        "n_children": [Interval(Integral, 1, None, closed="left")],
        "time_limit": [Interval(Real, 0, None, closed="neither"), None],
        "curiosity": [Interval(Real, 0, None, closed="left")],
        "self_imitation": [StrOptions({"advantage", "js"}), None],
        "strategy": [StrOptions({"controller", "random"})],
        "definitions": [tuple, list],
        "image_shape": [tuple, list, None],
        "metric": [StrOptions({"auroc", "ap"})],
        "ensemble": [Interval(Integral, 1, None, closed="left")],
        "share_weights": ["boolean"],
        "child_epochs": [Interval(Integral, 1, None, closed="left")],
        "final_epochs": [Interval(Integral, 1, None, closed="left")],
        "checkpoint": [str, os.PathLike, None],
        "device": [StrOptions({"auto", "cpu", "cuda"})],
    }

    def __init__(
        self,
        n_children=100,
        time_limit=None,
        curiosity=0.05,
        self_imitation="advantage",
        strategy="controller",
        definitions=DEFINITIONS,
        image_shape=None,
        metric="auroc",
        ensemble=3,
        share_weights=True,
        child_epochs=20,
        final_epochs=100,
        checkpoint=None,
        device="auto",
        random_state=None,
        threshold="auto",
    ):
        self.n_children = n_children
        self.time_limit = time_limit
        self.curiosity = curiosity
        self.self_imitation = self_imitation
        self.strategy = strategy
        self.definitions = definitions
        self.image_shape = image_shape
        self.metric = metric
        self.ensemble = ensemble
        self.share_weights = share_weights
        self.child_epochs = child_epochs
        self.final_epochs = final_epochs
        self.checkpoint = checkpoint
        self.device = device
        self.random_state = random_state
        self.threshold = threshold

    def fit(self, X: ArrayLike, y: Any = None, *, X_val: ArrayLike | None = None, y_val: Any = None) -> Self:
        """Search, then retrain the best designs on ``X``.

        Parameters
        ----------
        X : array-like of shape (n, d)
            Unlabelled rows to learn from.
        y : ignored
            Never read.
        X_val : array-like of shape (m, d), optional
            Rows that designs are judged on. Without it a quarter of ``X`` (at most 2,000 rows) is held out in the
            search.
        y_val : array-like of shape (m,), optional
            1 or True for outliers. Without it the reward needs no label.

        Raises
        ------
        DataError
            If X or X_val cannot be used, ``y_val`` has no ``X_val``, another length, values other than 0 and 1, or
            one class only.
        """
        self._validation = (X_val, y_val)
        try:
            return super().fit(X)
        finally:
            del self._validation

    def fit_score(self, X: ArrayLike, y: Any = None) -> NDArray[np.float64]:
        """Return ``fit(X).anomaly_score(X)``."""
        return self.fit(X).anomaly_score(X)

    @property
    def search_(self) -> SearchReport:
        """The record of the search."""
        check_is_fitted(self)
        return SearchReport(self._space(), self.history_)

    @property
    def search_report_(self) -> SearchReport:
        """The same as ``search_``."""
        return self.search_

    def _space(self) -> SearchSpace:
        if self.image_shape is not None:
            return ImageSpace(self.image_shape, self.definitions)
        return SearchSpace(max(1, self.columns_.size), self.definitions)

    # ---- learning -----------------------------------------------------------------------------------------------
    def _fit(self, X: NDArray) -> None:
        try:
            import torch
        except ImportError:
            raise MissingExtra("torch", "deep") from None
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ParameterError("device='cuda', but PyTorch finds no CUDA device here: use 'cpu' or 'auto'")
        X_val, y_val = self._checked_validation()
        X = X.astype(np.float64)
        self._set_scale(X)
        # a search that is to be found again by its checkpoint cannot start from a seed that nobody knows
        state = 0 if self.random_state is None and self.checkpoint is not None else self.random_state
        seed = int(check_random_state(state).randint(2**31 - 1))
        space = self._space()
        self.history_, self.members_, self.networks_, self.ranks_ = [], [], [], []
        self.best_ = space.default()
        if not self.columns_.size:
            return
        z = self._standardise(X)
        train, held = z, None if X_val is None else self._standardise(X_val)
        if held is None:
            order = np.random.default_rng([seed, 9]).permutation(len(z))
            m = min(HOLDOUT_ROWS, max(1, round(HOLDOUT * len(z))))
            train, held = z[np.sort(order[m:])], z[np.sort(order[:m])]
            if len(train) < 2:
                train = held = z
        reward = UnlabelledReward(train, held, seed) if y_val is None else LabelledReward(held, y_val, self.metric)
        device = "cpu" if self.device == "auto" else self.device
        search = Search(
            space,
            train,
            reward,
            seed=seed,
            n_children=self.n_children,
            child_epochs=self.child_epochs,
            time_limit=self.time_limit,
            strategy=self.strategy,
            curiosity=self.curiosity,
            self_imitation=self.self_imitation,
            share_weights=self.share_weights,
            device=device,
            checkpoint=self.checkpoint,
            question=self.metric,
        )
        self.history_ = search.run()
        designs = [space.decode(s) for s in search.best_strings(self.ensemble)]
        for i, design in enumerate([*designs, space.default()]):
            if i == len(designs) and self.members_:
                break  # the fixed autoencoder stands in only where every design failed
            net = train_child(design, z, WeightPool(seed + i, share=False), self.final_epochs, seed + i, device)
            if net is None or not np.isfinite(s := score(net, z)).all():
                continue
            self.members_.append(design)
            self.networks_.append(net)
            self.ranks_.append(_ranks(s))
        if self.members_:
            self.best_ = self.members_[0]

    def _set_scale(self, X: NDArray) -> None:
        """Choose the columns that vary and their scale; of images all, channel after channel, with one scale each."""
        if self.image_shape is None:
            mean, spread = X.mean(axis=0), X.std(axis=0)
            # a column that varies by rounding alone is constant
            self.columns_ = np.flatnonzero(spread > np.maximum(1e-13 * np.abs(mean), 1e-150))
            self.mean_, self.scale_ = mean[self.columns_], spread[self.columns_]
            return
        height, width, channels = ImageSpace(self.image_shape).image_shape
        if height * width * channels != X.shape[1]:
            raise DataError(
                f"rows have {X.shape[1]} values, images of shape {tuple(self.image_shape)} have "
                f"{height * width * channels}: give the image_shape that was flattened"
            )
        planes = X.reshape(-1, channels)
        mean, spread = planes.mean(axis=0), planes.std(axis=0)
        flat = spread <= np.maximum(1e-13 * np.abs(mean), 1e-150)
        order = np.arange(X.shape[1]).reshape(height * width, channels).T.ravel()
        self.columns_ = order if not flat.all() else order[:0]
        each = 1 if not flat.all() else 0
        self.mean_ = np.repeat(mean, height * width * each)
        self.scale_ = np.repeat(np.where(flat, 1.0, spread), height * width * each)

    def _checked_validation(self):
        X_val, y_val = self._validation
        if X_val is None:
            if y_val is not None:
                raise DataError("y_val needs the rows it labels: give X_val too")
            return None, None
        X_val = self._check_X(X_val, reset=False).astype(np.float64)
        if y_val is None:
            return X_val, None
        y = np.asarray(y_val).ravel()
        if len(y) != len(X_val):
            raise DataError(f"y_val has {len(y)} labels for {len(X_val)} rows of X_val")
        if not np.isin(y, (0, 1)).all() or len(np.unique(y)) < 2:
            raise DataError("y_val must hold both 0 (inlier) and 1 (outlier), and nothing else")
        return X_val, y.astype(np.int64)

    # ---- scoring ------------------------------------------------------------------------------------------------
    def _standardise(self, X: NDArray) -> NDArray[np.float64]:
        return np.clip((X[:, self.columns_].astype(np.float64) - self.mean_) / self.scale_, -LIMIT, LIMIT)

    def _score(self, X: NDArray) -> NDArray[np.float64]:
        if not self.networks_:
            return np.zeros(len(X))
        z = self._standardise(X)
        rank, beyond = np.zeros(len(X)), np.zeros(len(X))
        for net, known in zip(self.networks_, self.ranks_, strict=True):
            s = score(net, z)
            rank += np.interp(s, known["scores"], known["ranks"]) / len(self.networks_)
            beyond += np.log1p(np.maximum(0.0, s - known["scores"][-1]) / known["spread"]) / len(self.networks_)
        grid = np.linspace(0.0, 1.0, KNOTS)
        quantiles = np.mean([known["quantiles"] for known in self.ranks_], axis=0)
        return np.interp(rank, grid, quantiles) + rank + beyond  # + rank: strictly rising where quantiles are flat

    def _groups(self) -> list[NDArray[np.int64]]:
        """Return which standardised columns are set to their mean together."""
        if self.image_shape is not None:
            return _tiles(ImageSpace(self.image_shape).image_shape)
        return list(np.arange(self.columns_.size)[:, None])

    def _explain(self, X: NDArray) -> NDArray[np.float64]:
        """Split the score in proportion to each column's part, averaged over members; rows sum to the score."""
        shares = np.zeros(X.shape)
        if not self.networks_:
            return shares
        z = self._standardise(X)
        for net in self.networks_:
            if net["definition"] == "reconstruction":
                part = column_terms(net, z)
            else:  # how far the score drops when a column, or a tile of an image, is set to its mean
                base, part, work = score(net, z), np.empty(z.shape), z.copy()
                for group in self._groups():
                    work[:, group] = 0.0
                    drop = np.maximum(0.0, base - score(net, work))
                    part[:, group] = drop[:, None] / len(group)
                    work[:, group] = z[:, group]
            total = part.sum(axis=1, keepdims=True)
            flat = np.full(part.shape, 1.0 / part.shape[1])
            shares[:, self.columns_] += np.where(total > 0, part / np.where(total > 0, total, 1.0), flat)
        return shares / len(self.networks_) * self._score(X)[:, None]


def _tiles(image_shape: tuple[int, int, int]) -> list[NDArray[np.int64]]:
    """Return the places of square tiles in images that lie flat, channel after channel."""
    height, width, channels = image_shape
    place = np.arange(channels * height * width).reshape(channels, height, width)
    return [place[:, r : r + TILE, c : c + TILE].ravel() for r in range(0, height, TILE) for c in range(0, width, TILE)]


def _ranks(s: NDArray[np.float64]) -> dict[str, Any]:
    """Return what turns a member's scores into ranks in (0, 1), and its quantiles on a robust scale."""
    knots = np.quantile(s, np.linspace(0.0, 1.0, KNOTS)) if len(s) > KNOTS else np.sort(s)
    values, first, count = np.unique(knots, return_index=True, return_counts=True)
    q1, q3 = np.quantile(s, [0.25, 0.75])
    spread = float(q3 - q1) or float(s.std()) or 1.0
    return {
        "scores": values,
        "ranks": (first + count / 2) / len(knots),
        "spread": spread,
        "quantiles": (np.quantile(s, np.linspace(0.0, 1.0, KNOTS)) - q1) / spread,
    }
