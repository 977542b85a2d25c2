"""Rank the filters of a convolutional network: Beta-Rank (Homayounfar et al., 2023, arXiv 2304.07461) and its peers.

Beta-Rank weighs the L1 norm of a filter by how much it changes the spread of the data, position by position, between
its receptive field and its output. The peers see weights only (``l1``, ``l2``), feature maps (``hrank``, ``apoz``,
``activation_std``), gradients (``taylor``) or nothing (``random``). What they need of the data is gathered in
``filter_observation``; the spreads of Beta-Rank are in ``filter_spread``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_random_state

from skerry.core.errors import DataError, MissingExtra, ModelError, ParameterError, nearest

try:
    from torch import Tensor, nn
except ImportError as error:
    raise MissingExtra("torch", "deep") from error

from skerry.rank.filter_observation import Tally, evaluating, image_chunks, observe
from skerry.rank.filter_spread import RATIOS, beta_ratio, mixture, receptive_field_std

__all__ = ["CRITERIA", "rank_filters", "stability_fraction"]

CRITERIA = ("beta", "l1", "l2", "hrank", "activation_std", "apoz", "taylor", "random")


def rank_filters(
    model: nn.Module,
    batches: Iterable[Any] | Tensor | None = None,
    *,
    criterion: str = "beta",
    ratio: str = "output/input",
    balance: str = "none",
    layers: Sequence[str] | None = None,
    normalize: bool = True,
    chunk_size: int = 64,
    random_state: int | np.random.RandomState | None = None,
) -> dict[str, NDArray[np.float64]]:
    r"""Score every filter of every 2-D convolution; larger means worth keeping.

    Beta-Rank scores filter k of a layer by :math:`R_k = \|f_k\|_1 \cdot \mathrm{mean}_p\, \sigma_{out}(k, p) /
    \sigma_{in}(p)`: the deviation of its output at position p over images, against that of the receptive field over
    images and cells. The published equation has the ratio the other way round (``ratio="input/output"``); the published
    code, and the tables made with it, have it as here.

    Parameters
    ----------
    model : nn.Module
        Run in evaluation mode; left as it was.
    batches : Tensor, (images, labels), or iterable of either; default None
        Images (N, C, H, W) of one size, labels (N,) int. All are read, once: one batch is what the paper uses. Not
        needed by ``"l1"``, ``"l2"`` and ``"random"``. A list of exactly two tensors is two batches, a tuple is one
        batch with labels.
    criterion : {"beta", "l1", "l2", "hrank", "activation_std", "apoz", "taylor", "random"}, default "beta"
        ``"hrank"``: mean rank of the feature map after batch norm and ReLU; ``"apoz"``: share of its values that are
        not zero; ``"activation_std"``: deviation of the convolution's output over images and positions; ``"taylor"``:
        mean over images of the absolute mean over positions of the output times the gradient of the cross-entropy
        (needs labels).
    ratio : {"output/input", "input/output"}, default "output/input"
        Of ``"beta"``; other criteria ignore it.
    balance : {"none", "class"}, default "none"
        "class" weighs the classes in the images equally, as if as many of each had been drawn; needs labels.
    layers : sequence of str, default None
        Names of the convolutions to score; None takes all.
    normalize : bool, default True
        Min-max the scores of each layer to [0, 1]; a layer of equal scores gets 1.
    chunk_size : int, default 64
        Images per forward pass; it bounds memory and does not change the scores.
    random_state : int, RandomState or None, default None
        Of ``"random"``.

    Returns
    -------
    dict of str to ndarray of shape (filters,), float64
        In the order of ``model.named_modules()``. Layers that do not run in a forward pass are left out.

    Raises
    ------
    ParameterError
        For an unknown criterion, ratio, balance or layer.
    DataError
        If images or labels are missing, or images differ in size.
    ModelError
        If the network has no 2-D convolution, one runs twice in a pass, or one returns values that are not finite.

    Examples
    --------
    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), torch.nn.ReLU())
    >>> scores = rank_filters(net, torch.randn(8, 1, 6, 6))
    >>> scores["0"].shape, float(scores["0"].max())
    ((3,), 1.0)
    """
    for name, value, known in (
        ("criterion", criterion, CRITERIA),
        ("ratio", ratio, RATIOS),
        ("balance", balance, ("none", "class")),
    ):
        if value not in known:
            raise ParameterError(f"unknown {name} {value!r}: {nearest(str(value), known)}")
    if chunk_size < 1:
        raise ParameterError(f"chunk_size is {chunk_size}: give 1 or more")
    convs = _convolutions(model, layers)
    if criterion == "random":
        rng = check_random_state(random_state)
        raw = {n: rng.random_sample(c.out_channels) for n, c in convs.items()}
    elif criterion in ("l1", "l2"):
        raw = {n: _norms(c, int(criterion[1])).cpu().numpy() for n, c in convs.items()}
    else:
        if batches is None:
            raise DataError(f"criterion {criterion!r} looks at data: give batches of images")
        labelled = balance == "class" or criterion == "taylor"
        chunks = image_chunks(batches, chunk_size, labelled, next(model.parameters()).device)
        with evaluating(model):
            tallies = observe(model, convs, chunks, criterion, by_class=balance == "class")
        raw = {n: _score(convs[n], t, criterion, ratio).cpu().numpy() for n, t in tallies.items()}
    for name, values in raw.items():
        if not np.isfinite(values).all():
            bad = int(np.flatnonzero(~np.isfinite(values))[0])
            raise ModelError(f"layer {name!r}: the score of filter {bad} is not finite; look for NaN in its weights")
    return {n: _min_max(v) if normalize else v for n, v in raw.items()}


def stability_fraction(
    runs: Mapping[str, Sequence[Mapping[str, NDArray[np.float64]]]], *, top: float = 0.25, end: str = "top"
) -> dict[str, float]:
    """Return how many different filters each method ever chose, as a share of those that any method chose.

    Smaller means that the choice depends less on the calibration images: SF(m) = |union over runs of S(m)| / |union
    over methods and runs of S|, S the best ``top`` of each layer in one run (the paper's stability fraction). Compare
    methods with as many runs each.

    Parameters
    ----------
    runs : mapping of str to sequence of scores
        Per method, one result of :func:`rank_filters` for each calibration draw.
    top : float in (0, 1], default 0.25
        Share of each layer's filters that is chosen; at least one filter.
    end : {"top", "bottom"}, default "top"
        Take the best or the worst filters.

    Returns
    -------
    dict of str to float

    Raises
    ------
    ParameterError
        If ``top`` or ``end`` is out of range.
    DataError
        If a method has no run.

    Examples
    --------
    >>> import numpy as np
    >>> same, other = {"conv": np.array([3., 2, 1, 0])}, {"conv": np.array([0., 1, 2, 3])}
    >>> stability_fraction({"a": [same, same], "b": [same, other]})
    {'a': 0.5, 'b': 1.0}
    """
    if not 0 < top <= 1:
        raise ParameterError(f"top is {top}: give a share in (0, 1]")
    if end not in ("top", "bottom"):
        raise ParameterError(f"unknown end {end!r}: known: bottom, top")
    chosen: dict[str, set[tuple[str, int]]] = {}
    for method, draws in runs.items():
        if not draws:
            raise DataError(f"method {method!r} has no run")
        chosen[method] = set()
        for scores in draws:
            for layer, values in scores.items():
                n = max(1, math.floor(len(values) * top + 1e-9))
                order = np.argsort(-values if end == "top" else values, kind="stable")
                chosen[method] |= {(layer, int(k)) for k in order[:n]}
    union = set().union(*chosen.values())
    return {method: len(s) / max(1, len(union)) for method, s in chosen.items()}


def _convolutions(model: nn.Module, layers: Sequence[str] | None) -> dict[str, nn.Conv2d]:
    convs = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    if not convs:
        raise ModelError(f"{type(model).__name__} has no Conv2d layer: there are no filters to rank")
    if layers is None:
        return convs
    for name in layers:
        if name not in convs:
            raise ParameterError(f"no Conv2d layer {name!r}: {nearest(name, convs)}")
    return {n: c for n, c in convs.items() if n in set(layers)}


def _norms(conv: nn.Conv2d, order: int) -> Tensor:
    return conv.weight.detach().double().flatten(1).norm(order, dim=1)


def _min_max(values: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.ones_like(values)


def _score(conv: nn.Conv2d, tally: Tally, criterion: str, ratio: str) -> Tensor:
    """Return the raw score of each filter from what was seen."""
    mean, variance = mixture(list(tally.outputs.values()))
    if criterion == "activation_std":
        return variance.sqrt()
    if criterion != "beta":
        return mean
    spread_in = receptive_field_std(conv, *mixture(list(tally.inputs.values())))
    spread_in = spread_in.repeat_interleave(conv.out_channels // conv.groups, 0)
    return _norms(conv, 1) * beta_ratio(spread_in, variance.sqrt().flatten(1), ratio)
