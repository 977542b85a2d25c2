"""Autoencoder with squared or probabilistic reconstruction error (Tan, Yang, Chen and Rahardja, 2023, PRE and APRE).

For tables of tens of numeric columns where rows are anomalous because their columns do not fit together. Under the
probabilistic losses the decoder also predicts a variance per column, so that an error counts in units of the network's
own uncertainty. Training needs torch; scoring is plain NumPy.
"""

from __future__ import annotations

from numbers import Integral, Real

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from skerry.core.detector import Detector
from skerry.core.errors import DataError, MissingExtra, ParameterError

__all__ = ["AutoEncoder"]

BLOCK = 256  # rows scored at once; the last block is padded, so that every product has the same shape
FLOOR = 1e-5  # of a predicted variance
LIMIT = 1e6  # standard deviations at which a value is clipped
HALVING = 1000  # epochs after which the learning rate is halved
FULL_BATCH_ROWS, BATCH_ROWS, STEPS_PER_EPOCH = 4096, 1024, 4  # of batch_size="auto"


class AutoEncoder(Detector):
    """Error of a small network that rebuilds a standardised row through a bottleneck.

    Parameters
    ----------
    loss : {"pre", "apre", "mse"}, default "pre"
        "mse" is the squared error; "pre" divides it by a predicted variance and adds its logarithm; "apre" is trained
        as "pre" and weighs the two parts by ``alpha`` and ``beta`` in the score.
    alpha : float >= 0, default 0.5
        Weight of the error in the score of "apre"; other losses ignore it.
    beta : float >= 0, default 2.0
        Weight of the logarithm of the variance in the score of "apre"; other losses ignore it.
    hidden : "auto" or sequence of int, default "auto"
        Widths of the encoder's layers, the last being the bottleneck; the decoder mirrors them. "auto" follows the
        paper: d/2 under 20 columns, d/2 and d/4 under 100, d/2, d/4 and d/8 under 200, else d/2, d/4 and d/16.
    epochs : int, default 500
    learning_rate : float > 0, default 1e-3
        Of Adam; halved every 1,000 epochs.
    batch_size : "auto" or int, default "auto"
        "auto" takes all rows in one step up to 4,096 rows; beyond, 1,024 at a time and at most ``4 * epochs`` steps.
    n_models : int, default 3
        Networks whose losses are averaged.
    random_state : int, RandomState or None, default None
    threshold : str, float or Threshold, default "auto"

    Attributes
    ----------
    columns_ : ndarray of shape (c,), int64
        Columns that vary; the others are left out and explain nothing.
    mean_, scale_ : ndarray of shape (c,), float64
    weights_ : list of list of (ndarray, ndarray)
        Per model and layer: matrix of shape (inputs, outputs) and offset, float64.
    at_floor_ : ndarray of int64
        Columns whose predicted variance lies at its floor of 1e-5: they carry most of a probabilistic score.

    Notes
    -----
    Equations of the paper for mu, v = net(x): "mse" ``sum (mu - x)^2``; "pre" ``sum (mu - x)^2 / v + log v``; "apre"
    ``sum alpha (mu - x)^2 / v + beta log v``. Columns are divided by their deviation alone (the paper adds 1e-5, which
    would hide columns of small unit), and values are clipped at a million deviations. When not to use: under a few
    hundred rows, or a single column. Fitting runs on one thread, so that a seed gives one result.

    Raises
    ------
    MissingExtra
        From ``fit``, if torch is not installed.

    Examples
    --------
    >>> x = np.linspace(-1, 1, 60)
    >>> X = np.r_[np.c_[x, x, -x], [[2.5, -2.5, 2.5]]]
    >>> model = AutoEncoder(epochs=60, n_models=1, random_state=0).fit(X)  # doctest: +SKIP
    >>> int(model.anomaly_score(X).argmax())  # doctest: +SKIP
    60
    """

    _parameter_constraints = {
        "loss": [StrOptions({"mse", "pre", "apre"})],
        "alpha": [Interval(Real, 0, None, closed="left")],
        "beta": [Interval(Real, 0, None, closed="left")],
        "hidden": [StrOptions({"auto"}), "array-like"],
        "epochs": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "batch_size": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "n_models": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        loss="pre",
        alpha=0.5,
        beta=2.0,
        hidden="auto",
        epochs=500,
        learning_rate=1e-3,
        batch_size="auto",
        n_models=3,
        random_state=None,
        threshold="auto",
    ):
        self.loss = loss
        self.alpha = alpha
        self.beta = beta
        self.hidden = hidden
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.n_models = n_models
        self.random_state = random_state
        self.threshold = threshold

    def score_against(self, X: ArrayLike, target: ArrayLike) -> NDArray[np.float64]:
        """Return the loss of the reconstruction of ``X`` measured against ``target``.

        Parameters
        ----------
        X, target : array-like of shape (n, d)
            The network sees ``X``; with ``target=X`` this is :meth:`anomaly_score`.

        Returns
        -------
        ndarray of shape (n,), float64

        Raises
        ------
        DataError
            If the two differ in shape, or one cannot be scored.
        """
        return self._finite(self.explain_against(X, target).sum(axis=1))

    def explain_against(self, X: ArrayLike, target: ArrayLike) -> NDArray[np.float64]:
        """Return the terms of :meth:`score_against`, shape (n, d); rows sum to it."""
        return np.sum(list(self.explain_parts(X, target).values()), axis=0)

    def explain_parts(self, X: ArrayLike, target: ArrayLike | None = None) -> dict[str, NDArray[np.float64]]:
        """Split the terms of the score by what they speak of.

        Parameters
        ----------
        X : array-like of shape (n, d)
        target : array-like of shape (n, d), optional
            As in :meth:`score_against`; without it ``X`` itself.

        Returns
        -------
        dict of ndarray of shape (n, d), float64
            "reconstruction", the weighted squared error against ``X``; "uncertainty", the logarithm of the
            predicted variance; "shift", what measuring against ``target`` in place of ``X`` adds. The three sum to
            :meth:`explain_against`.

        Raises
        ------
        DataError
            If the two differ in shape, or one cannot be scored.
        """
        check_is_fitted(self)
        X = self._check_X(X, reset=False)
        target = X if target is None else self._check_X(target, reset=False)
        if X.shape != target.shape:
            raise DataError(f"target has shape {target.shape}, X has {X.shape}")
        return self._parts(X, target)

    def _fit(self, X: NDArray) -> None:
        try:
            import torch  # noqa: F401
        except ImportError:
            raise MissingExtra("torch", "deep") from None
        X = X.astype(np.float64)
        mean, spread = X.mean(axis=0), X.std(axis=0)
        # a column that varies by rounding alone is constant
        self.columns_ = np.flatnonzero(spread > np.maximum(1e-13 * np.abs(mean), 1e-150))
        self.mean_, self.scale_ = mean[self.columns_], spread[self.columns_]
        self.weights_ = []
        z = self._standardise(X)
        rng = check_random_state(self.random_state)
        d = z.shape[1]
        sizes = [d, *_encoder(d, self.hidden)] if d else []
        sizes += [*sizes[-2:0:-1], d if self.loss == "mse" else 2 * d]
        for _ in range(self.n_models if d else 0):
            # PyTorch's default start, drawn here so that its global generator is left alone
            start = []
            for fan_in, fan_out in zip(sizes[:-1], sizes[1:], strict=True):
                bound = fan_in**-0.5
                start.append((rng.uniform(-bound, bound, (fan_in, fan_out)), rng.uniform(-bound, bound, fan_out)))
            self.weights_.append(self._train(z, start, rng))
        self.at_floor_ = np.empty(0, dtype=np.int64)
        if d and self.loss != "mse":
            v = np.mean([self._output(w, z[:FULL_BATCH_ROWS])[1].mean(axis=0) for w in self.weights_], axis=0)
            self.at_floor_ = self.columns_[v < 2 * FLOOR]

    def _train(self, z: NDArray, start: list, rng: np.random.RandomState) -> list:
        import torch
        from torch.nn.functional import softplus

        n, d = z.shape
        size, steps = self.batch_size, None
        if size == "auto":
            size = n if n <= FULL_BATCH_ROWS else BATCH_ROWS
            steps = STEPS_PER_EPOCH * self.epochs
        size = min(size, n)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # sums in one order, whatever the machine
        try:
            table = torch.from_numpy(z.astype(np.float32))
            layers = [[torch.tensor(a, dtype=torch.float32, requires_grad=True) for a in pair] for pair in start]
            optimiser = torch.optim.Adam([p for pair in layers for p in pair], lr=self.learning_rate)
            done = 0
            with torch.enable_grad():
                for epoch in range(self.epochs):
                    optimiser.param_groups[0]["lr"] = self.learning_rate * 0.5 ** (epoch // HALVING)
                    order = None if size == n else torch.from_numpy(rng.permutation(n))
                    for at in range(0, n, size):
                        x = table if order is None else table[order[at : at + size]]
                        out = x
                        for i, (w, b) in enumerate(layers):
                            out = torch.addmm(b, out if i == 0 else out.relu(), w)
                        error = (out[:, :d] - x) ** 2
                        if self.loss != "mse":
                            v = softplus(out[:, d:]) + FLOOR
                            error = error / v + v.log()
                        optimiser.zero_grad()
                        error.sum(dim=1).mean().backward()
                        optimiser.step()
                        done += 1
                        if done == steps:
                            break
                    if done == steps:
                        break
            return [tuple(p.detach().numpy().astype(np.float64) for p in pair) for pair in layers]
        finally:
            torch.set_num_threads(threads)

    def _standardise(self, X: NDArray) -> NDArray[np.float64]:
        return np.clip((X[:, self.columns_].astype(np.float64) - self.mean_) / self.scale_, -LIMIT, LIMIT)

    @staticmethod
    def _output(layers: list, z: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """Return means and, of a probabilistic network, variances of standardised rows."""
        n, d = z.shape
        out = np.empty((n, layers[-1][1].size))
        block = np.zeros((BLOCK, d))
        for at in range(0, n, BLOCK):
            m = min(BLOCK, n - at)
            block[:m], block[m:] = z[at : at + m], 0.0
            a = block
            for i, (w, b) in enumerate(layers):
                a = (a if i == 0 else np.maximum(a, 0.0)) @ w + b
            out[at : at + m] = a[:m]
        return out[:, :d], np.logaddexp(0.0, out[:, d:]) + FLOOR if out.shape[1] > d else None

    def _parts(self, X: NDArray, target: NDArray) -> dict[str, NDArray[np.float64]]:
        parts = {name: np.zeros(X.shape) for name in ("reconstruction", "uncertainty", "shift")}
        z, t = self._standardise(X), self._standardise(target)
        alpha, beta = (self.alpha, self.beta) if self.loss == "apre" else (1.0, 1.0)
        for layers in self.weights_:
            mu, v = self._output(layers, z)
            share = 1.0 / len(self.weights_) if v is None else alpha / v / len(self.weights_)
            own = (mu - z) ** 2
            parts["reconstruction"][:, self.columns_] += share * own
            parts["shift"][:, self.columns_] += share * ((mu - t) ** 2 - own)
            if v is not None:
                parts["uncertainty"][:, self.columns_] += beta / len(self.weights_) * np.log(v)
        return parts

    def _explain(self, X: NDArray) -> NDArray[np.float64]:
        parts = self._parts(X, X)
        return parts["reconstruction"] + parts["uncertainty"]

    def _score(self, X: NDArray) -> NDArray[np.float64]:
        return self._explain(X).sum(axis=1)


def _encoder(d: int, hidden) -> list[int]:
    """Return the widths of the encoder after its input, the bottleneck last."""
    if isinstance(hidden, str):
        parts = (2,) if d < 20 else (2, 4) if d < 100 else (2, 4, 8) if d < 200 else (2, 4, 16)
        return [max(1, round(d / p)) for p in parts]
    widths = list(hidden)
    if not widths or not all(isinstance(w, Integral) and w >= 1 for w in widths):
        raise ParameterError(f"hidden must be 'auto' or widths of at least 1, got {hidden!r}")
    return [int(w) for w in widths]
