"""ImDiffusion: what cannot be imputed from both sides is odd (Chen et al., PVLDB 17(3), 2023, arXiv 2307.00754).

A grating hides stretches of a window; a diffusion model, which sees its neighbours only as noised copies, fills them
in. Points whose error stays high over the last denoising steps are voted out.
"""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions

from skerry.core.errors import MissingExtra, ParameterError
from skerry.core.series_detector import SeriesDetector, interpolated
from skerry.core.threshold import Auto, Threshold

__all__ = ["ImDiffusion", "step_votes"]

CLIP = 4.0  # ranges of the training series beyond which a test value does not count


def step_votes(
    errors: NDArray[np.float64], step_errors: NDArray[np.float64], base_rate: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the votes of the denoising steps for each point, and the rate of each step.

    Parameters
    ----------
    errors : ndarray of shape (n_votes, T)
        Error of each point at each step; row 0 is the final one.
    step_errors : ndarray of shape (n_votes,)
        Mean squared error R_s of each step: its rate is ``base_rate * R_0 / R_s``, so noisier steps flag less.
    base_rate : float

    Examples
    --------
    >>> e = np.array([[0.0, 0.0, 9.0, 1.0], [0.0, 5.0, 7.0, 5.0]])
    >>> step_votes(e, np.array([1.0, 2.0]), 0.5)[0]
    array([0, 0, 1, 0])
    """
    n = errors.shape[1]
    quiet = np.where(step_errors > 0.0, step_errors, 1.0)
    rates = np.minimum(np.where(step_errors > 0.0, base_rate * step_errors[0] / quiet, base_rate), 1.0)
    votes = np.zeros(n, dtype=np.int64)
    for e, rate in zip(errors, rates, strict=True):
        k = max(1, int(rate * n))
        votes += e > np.partition(e, n - k)[n - k]
    return votes, rates


class ImDiffusion(SeriesDetector):
    """Votes of denoising steps over the error of a diffusion imputer.

    Parameters
    ----------
    window : int, default 100
        Steps L of a window.
    mask_split : int, default 10
        Segments of the grating, shown and hidden in turn.
    n_steps : int, default 50
        Diffusion steps.
    vote_every, vote_last : int, default 3 and 30
        Of the last ``vote_last`` denoising steps each ``vote_every``-th votes, the final one among them.
    channels, n_layers, n_heads : int, default 64, 4 and 8
        Size of the network.
    dropout : float in [0, 1), default 0.1
        Of the network while it is trained.
    conditional : bool, default False
        Show the visible values as they are; by default only noised, so that an odd neighbour leaks less.
    train_mask : {"grating", "random", "mix"}, default "grating"
        "random" hides 70 % of the cells; "mix" draws either for each window.
    reduce : {"max", "sum"}, default "max"
        How the channels' errors become that of a point.
    base_rate : float in (0, 1), default 0.02
        Share of the points that the final step flags.
    scale : float, default 20
        Range of a channel against unit noise.
    train_stride : int, default 1
        Steps between training windows.
    batch_size : int, default 12
        Windows in a training step, and sampled at once; noise is drawn by batch, so scores depend on it.
    learning_rate : float, default 1e-3
        Of Adam; a tenth from 75 %, a hundredth from 90 % of the epochs on.
    max_epochs : int, default 100
    patience : int or None, default 6
        Epochs without a better imputation of the held-out 5 % after which training stops; None trains on all windows
        to the end.
    n_samples : int, default 1
        Samples that an imputation is the mean of.
    checkpoint : path, optional
        A file of safetensors, written after every epoch. If it is there, ``fit`` goes on from it and ends as if it
        had never stopped.
    device : str, default "auto"
        "auto" takes a CUDA device if there is one.
    random_state : int, RandomState or None, default 0
        A resumed fit needs an integer.
    threshold : str, float or Threshold, default "auto"
        "auto" is the majority: more than half of the voting steps.

    Attributes
    ----------
    low_, range_ : ndarray of shape (c,)
        Of the training series.
    varying_ : ndarray of int
        Channels that the network sees. The others were constant: their imputation is that constant.
    weights_ : dict of str to ndarray
    n_epochs_ : int
    votes_ : ndarray of shape (T,), int64
        Votes on the series scored last; not saved.
    imputed_ : ndarray of shape (T, c), float64
        Its imputation by the final step, in the unit of the series; not saved.

    Notes
    -----
    The score is the votes plus the share of points with a smaller final error, in [0, n_votes + 1): votes first, ties
    by error. Votes compare the points of one series with each other, as in the paper: score a series in one piece, and
    expect a few votes in an ordinary one too. A missing value is hidden in both policies and never counts. Offline.
    Unlike the paper's, an imputation stays within half a range of that of the training series at every step (in the
    noisiest ones a network that is not trained to the end throws a few values far off), the network sees its input
    standardised, and time and channel also enter before the first block (without these two its attention learns nothing
    from its neighbours in hundreds of steps), and sampling begins about the mean of what the last step leaves of the
    data, not about 0 (with 20 steps that is an eighth of it, and imputations were drawn towards 0). Weights of the
    attention are not dropped out, the branches are.
    On the processor everything runs on one thread, so a seed gives one result.

    Raises
    ------
    MissingExtra
        Without torch and safetensors.
    ModelError
        From ``fit``, if the checkpoint is damaged or of other data or parameters.

    Examples
    --------
    >>> x = np.sin(2 * np.pi * np.arange(400) / 20)
    >>> x[200:206] += 1.5
    >>> det = ImDiffusion(window=20, mask_split=4, max_epochs=20)
    >>> int(det.fit_score(x).argmax())  # doctest: +SKIP
    203
    """

    _parameter_constraints = {
        "window": [Interval(Integral, 1, None, closed="left")],
        "mask_split": [Interval(Integral, 1, None, closed="left")],
        "n_steps": [Interval(Integral, 2, None, closed="left")],
        "vote_every": [Interval(Integral, 1, None, closed="left")],
        "vote_last": [Interval(Integral, 1, None, closed="left")],
        "channels": [Interval(Integral, 1, None, closed="left")],
        "n_layers": [Interval(Integral, 1, None, closed="left")],
        "n_heads": [Interval(Integral, 1, None, closed="left")],
        "dropout": [Interval(Real, 0, 1, closed="left")],
        "conditional": ["boolean"],
        "train_mask": [StrOptions({"grating", "random", "mix"})],
        "reduce": [StrOptions({"max", "sum"})],
        "base_rate": [Interval(Real, 0, 1, closed="neither")],
        "scale": [Interval(Real, 0, None, closed="neither")],
        "train_stride": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "max_epochs": [Interval(Integral, 1, None, closed="left")],
        "patience": [Interval(Integral, 1, None, closed="left"), None],
        "n_samples": [Interval(Integral, 1, None, closed="left")],
        "checkpoint": [str, Path, None],
        "device": [str],
    }

    def __init__(
        self,
        window: int = 100,
        mask_split: int = 10,
        n_steps: int = 50,
        vote_every: int = 3,
        vote_last: int = 30,
        channels: int = 64,
        n_layers: int = 4,
        n_heads: int = 8,
        dropout: float = 0.1,
        conditional: bool = False,
        train_mask: str = "grating",
        reduce: str = "max",
        base_rate: float = 0.02,
        scale: float = 20.0,
        train_stride: int = 1,
        batch_size: int = 12,
        learning_rate: float = 1e-3,
        max_epochs: int = 100,
        patience: int | None = 6,
        n_samples: int = 1,
        checkpoint: str | Path | None = None,
        device: str = "auto",
        random_state: Any = 0,
        threshold: Any = "auto",
    ) -> None:
        self.window = window
        self.mask_split = mask_split
        self.n_steps = n_steps
        self.vote_every = vote_every
        self.vote_last = vote_last
        self.channels = channels
        self.n_layers = n_layers
        self.n_heads = n_heads
        self.dropout = dropout
        self.conditional = conditional
        self.train_mask = train_mask
        self.reduce = reduce
        self.base_rate = base_rate
        self.scale = scale
        self.train_stride = train_stride
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.max_epochs = max_epochs
        self.patience = patience
        self.n_samples = n_samples
        self.checkpoint = checkpoint
        self.device = device
        self.random_state = random_state
        self.threshold = threshold

    # ---- learning
    def _fit(self, X: NDArray) -> None:
        if self.channels % self.n_heads:
            raise ParameterError(f"channels must be a multiple of n_heads, got {self.channels} and {self.n_heads}")
        if self.mask_split > self.window:
            raise ParameterError(f"mask_split must be at most window, got {self.mask_split} and {self.window}")
        self.seed_ = int(check_random_state(self.random_state).randint(2**31 - 1))
        filled = interpolated(X, self.feature_medians_)
        self.low_, high = filled.min(axis=0), filled.max(axis=0)
        spread = high - self.low_
        reach = np.maximum(np.abs(self.low_), np.abs(high))
        varies = spread > np.maximum(1e-12 * reach, 1e-290)  # by more than rounding
        self.varying_ = np.flatnonzero(varies)
        self.range_ = np.where(varies, spread, np.where(reach > 1e-290, reach, 1.0))
        self.range_[np.isnan(X).all(axis=0)] = np.inf  # nothing is known of such a channel: its error is 0
        self.weights_, self.n_epochs_ = {}, 0
        if not self.varying_.size:
            return
        imputer = self._imputer()
        from skerry.deep.threads import one_thread

        z, seen = self._scaled(X)
        starts = np.arange(0, len(z) - self.window + 1, self.train_stride)
        index = starts[:, None] + np.arange(self.window)
        pair = tuple(np.ascontiguousarray(a[:, self.varying_][index].transpose(0, 2, 1)) for a in (z, seen))
        settings = {k: v for k, v in self.get_params(deep=False).items() if k not in ("checkpoint", "threshold")}
        with one_thread():
            self.n_epochs_ = imputer.train(
                pair,
                train_mask=self.train_mask,
                batch_size=self.batch_size,
                learning_rate=self.learning_rate,
                max_epochs=self.max_epochs,
                patience=self.patience,
                seed=self.seed_,
                checkpoint=None if self.checkpoint is None else Path(self.checkpoint),
                settings=settings,
            )
        self.weights_ = {k: v.cpu().numpy() for k, v in imputer.net.state_dict().items()}

    def _imputer(self):
        try:
            import torch

            from skerry.deep.diffusion_imputer import DiffusionImputer
            from skerry.deep.imputation_net import ImputationNet
        except ImportError as error:
            raise MissingExtra(error.name or "torch", "deep") from None
        with torch.random.fork_rng():
            torch.manual_seed(self.seed_)
            net = ImputationNet(
                len(self.varying_),
                self.window,
                self.channels,
                self.n_layers,
                self.n_heads,
                self.conditional,
                self.dropout,
            )
        if self.weights_:
            net.load_state_dict({k: torch.from_numpy(v) for k, v in self.weights_.items()})
        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        return DiffusionImputer(net, self.mask_split, self.n_steps, self.conditional, device, self.scale)

    def _scaled(self, X: NDArray) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return scaled values, filled, and 1 where they were observed; padded to one window."""
        short = max(0, self.window - len(X))
        X = np.concatenate([X, np.full((short, X.shape[1]), np.nan)])
        filled = interpolated(X, self.feature_medians_)
        z = np.clip(self.scale * ((filled - self.low_) / self.range_), -CLIP * self.scale, CLIP * self.scale)
        return z.astype(np.float32), (~np.isnan(X)).astype(np.float32)

    # ---- scoring
    def _voting(self) -> list[int]:
        return list(range(0, min(self.vote_last, self.n_steps), self.vote_every))

    def _spans(self, n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the starts of the windows and the edges between the points that each answers for: its middle half."""
        starts = np.unique(np.r_[np.arange(0, n - self.window + 1, max(1, self.window // 2)), n - self.window])
        return starts, np.r_[0, starts[:-1] + (3 * self.window + 3) // 4, n]

    def _imputations(self, z: NDArray, seen: NDArray) -> Iterator[tuple[int, slice, slice, int, NDArray]]:
        """Yield (vote, steps of the series, steps of the window, row, imputation (B, K, L)) of the voting steps."""
        import torch

        from skerry.deep.threads import one_thread

        starts, edges = self._spans(len(z))
        imputer, keep = self._imputer(), self._voting()
        values, known = z[:, self.varying_], seen[:, self.varying_]
        for at in range(0, len(starts), self.batch_size):
            some = starts[at : at + self.batch_size]
            index = some[:, None] + np.arange(self.window)
            x, s = (torch.from_numpy(a[index].transpose(0, 2, 1).copy()).to(imputer.device) for a in (values, known))
            with one_thread():
                total: dict[int, Any] = {}
                for sample in range(self.n_samples):
                    # generators take 32 bits: a mixture of the three, and none of training's
                    seed = int(np.random.SeedSequence([self.seed_, 1 + sample, at]).generate_state(1)[0])
                    for t, y in imputer.sample(x, s, keep, seed):
                        total[t] = total.get(t, 0.0) + y
            for t, y in total.items():
                middle = (y / self.n_samples).cpu().numpy()
                for row, start in enumerate(some):
                    begin, end = int(edges[at + row]), int(edges[at + row + 1])
                    part = slice(begin - start, end - start)
                    yield keep.index(t), slice(begin, end), part, row, middle

    def _measure(self, X: NDArray) -> dict[str, NDArray]:
        """Return, of each voting step, the error of the points and its mean square; and of the final one all cells."""
        n = len(X)
        z, seen = self._scaled(X)
        n_votes = len(self._voting())
        constant = np.setdiff1d(np.arange(X.shape[1]), self.varying_)
        still = np.zeros(z.shape)
        still[:, constant] = np.abs(z[:, constant]) * seen[:, constant]
        errors, squares = np.zeros((n_votes, len(z))), np.zeros(n_votes)
        reduce = np.max if self.reduce == "max" else np.sum
        mean, final = still.copy(), np.zeros(z.shape)
        base = reduce(still, axis=1)
        errors[:] = base
        squares[:] = (still**2).sum()
        if self.varying_.size:
            values, known = z[:, self.varying_], seen[:, self.varying_]
            for vote, steps, part, row, y in self._imputations(z, seen):
                guess = y[row][:, part].T
                error = np.abs(guess - values[steps]) * known[steps]
                e = reduce(error, axis=1).astype(np.float64)
                errors[vote, steps] = np.maximum(base[steps], e) if self.reduce == "max" else base[steps] + e
                squares[vote] += float((error.astype(np.float64) ** 2).sum())
                mean[steps, self.varying_] += error / n_votes
                if vote == 0:
                    final[steps, self.varying_] = guess
        unit = np.where(np.isfinite(self.range_), self.range_, 0.0)
        imputed = self.low_ + final[:n] / self.scale * unit
        return {"errors": errors[:, :n], "squares": squares / n, "mean": mean[:n], "imputed": imputed}

    def _score(self, X: NDArray) -> NDArray[np.float64]:
        found = self._measure(X)
        self.votes_, _ = step_votes(found["errors"], found["squares"], self.base_rate)
        self.imputed_ = found["imputed"]
        last = found["errors"][0]
        return self.votes_ + np.searchsorted(np.sort(last), last, side="left") / len(last)

    def _explain(self, X: NDArray) -> NDArray[np.float64]:
        """Return |imputed - x| over the range, mean of the voting steps; rows do not sum to the score."""
        return self._measure(X)["mean"] / self.scale

    def _set_reference(self, scores: NDArray[np.float64], rule: Threshold) -> None:
        super()._set_reference(scores, rule)
        if isinstance(rule, Auto):
            # a score is above it exactly if more than half of the steps voted
            self.threshold_ = float(np.nextafter(len(self._voting()) // 2 + 1, 0))

    def __getstate__(self):
        state = {k: v for k, v in super().__getstate__().items() if k not in ("votes_", "imputed_")}
        if isinstance(state.get("checkpoint"), Path):
            state["checkpoint"] = str(state["checkpoint"])
        return state
