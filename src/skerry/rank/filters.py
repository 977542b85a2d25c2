"""Rank the filters of a convolutional network: Beta-Rank (Homayounfar et al., 2023, arXiv 2304.07461) and its peers.

Beta-Rank weighs the L1 norm of a filter by how much it changes the spread of the data, position by position, between
its receptive field and its output. The peers see weights only (``l1``, ``l2``), feature maps (``hrank``, ``apoz``,
``activation_std``), gradients (``taylor``) or nothing (``random``). Statistics are running moments over chunks of
images, so memory is bounded by the chunk and by one map per filter (and class).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_random_state

from skerry.core.errors import DataError, MissingExtra, ModelError, ParameterError, nearest

try:
    import torch
    from torch import Tensor, nn
    from torch.nn import functional
except ImportError as error:
    raise MissingExtra("torch", "deep") from error

__all__ = ["CRITERIA", "rank_filters", "stability_fraction"]

CRITERIA = ("beta", "l1", "l2", "hrank", "activation_std", "apoz", "taylor", "random")
RATIOS = ("output/input", "input/output")
EPSILON = 1e-6  # of the mean spread: below it a position is dead


@dataclass
class Moments:
    """Running mean and population variance of maps, merged chunk by chunk (Chan, Golub and LeVeque, 1983)."""

    count: int = 0
    mean: Any = 0.0
    square: Any = 0.0  # sum of squared deviations

    def add(self, values: Tensor, dims: tuple[int, ...]) -> None:
        """Take in ``values``, of which ``dims`` are samples."""
        values = values.double()
        n = math.prod(values.shape[d] for d in dims)
        mean = values.mean(dims, keepdim=True)
        square = (values - mean).square().sum(dims)
        delta = mean.squeeze(dims) - self.mean
        total = self.count + n
        self.mean = self.mean + delta * (n / total)
        self.square = self.square + square + delta.square() * (self.count * n / total)
        self.count = total


def mixture(parts: Sequence[Moments]) -> tuple[Tensor, Tensor]:
    """Return mean and population variance of the mixture of ``parts`` with equal weights."""
    means = torch.stack([p.mean for p in parts])
    within = torch.stack([p.square / p.count for p in parts])
    return means.mean(0), within.mean(0) + means.var(0, correction=0)


def receptive_field_std(conv: nn.Conv2d, mean: Tensor, variance: Tensor) -> Tensor:
    """Return the standard deviation over images and cells of every patch that ``conv`` reads.

    A patch is a union of cells with equally many samples, so its variance is the mean of the cells' variances plus the
    variance of their means: exact, and the images themselves need no unfolding.

    Parameters
    ----------
    conv : Conv2d
    mean, variance : Tensor of shape (groups, H, W)
        Of the input, over images and the channels of a group.

    Returns
    -------
    Tensor of shape (groups, H' * W'), float64
    """
    pads = conv._reversed_padding_repeated_twice
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode

    def cells(maps: Tensor) -> Tensor:
        padded = functional.pad(maps.unsqueeze(1), pads, mode=mode)
        return functional.unfold(padded, conv.kernel_size, dilation=conv.dilation, stride=conv.stride)

    return (cells(variance).mean(1) + cells(mean).var(1, correction=0)).sqrt()


def beta_ratio(spread_in: Tensor, spread_out: Tensor, ratio: str) -> Tensor:
    """Return the mean over live positions of the ratio of spreads, one number per filter.

    ``spread_in`` (K, P) is of the receptive field that filter k reads, ``spread_out`` (K, P) of its output.
    """
    above, below = (spread_out, spread_in) if ratio == "output/input" else (spread_in, spread_out)
    epsilon = EPSILON * below.mean(1, keepdim=True)
    live = (below > epsilon) & (spread_in > EPSILON * spread_in.mean(1, keepdim=True))
    ratios = torch.where(live, above / (below + epsilon).clamp_min(torch.finfo(below.dtype).tiny), 0.0)
    return ratios.sum(1) / live.sum(1).clamp_min(1)


@dataclass
class _Tally:
    """What was seen of one layer, by class."""

    inputs: dict[int, Moments] = field(default_factory=dict)
    outputs: dict[int, Moments] = field(default_factory=dict)


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
        chunks = _chunks(batches, chunk_size, labelled, _device(model))
        with evaluating(model):
            tallies = _observe(model, convs, chunks, criterion, by_class=balance == "class")
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


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode, and back into its own afterwards."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _chunks(
    batches: Any, size: int, labelled: bool, device: torch.device
) -> Iterator[tuple[Tensor, NDArray[np.int64] | None]]:
    """Yield images and labels, at most ``size`` at once."""
    single = isinstance(batches, (Tensor, tuple))
    shape = None
    for i, batch in enumerate([batches] if single else batches):
        images, labels = (batch[0], batch[1]) if isinstance(batch, (tuple, list)) and len(batch) > 1 else (batch, None)
        images = images[0] if isinstance(images, (tuple, list)) else images
        if not isinstance(images, Tensor) or images.ndim != 4:
            found = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise DataError(f"batch {i}: images must be a tensor (N, C, H, W), not {found}")
        shape = shape or images.shape[1:]
        if images.shape[1:] != shape:
            raise DataError(
                f"batch {i}: images are {tuple(images.shape[1:])}, those before {tuple(shape)}: resize them"
            )
        if labelled and labels is None:
            raise DataError(f"batch {i} has no labels: balance='class' and criterion='taylor' need (images, labels)")
        y = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels).astype(np.int64) if labelled else None
        if y is not None and y.shape != (len(images),):
            raise DataError(f"batch {i} has {len(images)} images and labels of shape {y.shape}")
        for start in range(0, len(images), size):
            part = images[start : start + size].to(device)
            yield part if part.is_floating_point() else part.float(), None if y is None else y[start : start + size]
    if shape is None:
        raise DataError("there are no images to rank with: the batches are empty")


def _feature_modules(model: nn.Module, convs: Mapping[str, nn.Conv2d], images: Tensor) -> dict[str, nn.Module]:
    """Return, for each convolution, the batch norm that reads its output, or else itself."""
    tails: dict[str, nn.Module] = {}
    seen: dict[int, tuple[str, Tensor]] = {}  # the tensor is held so that its id stays its own

    def after_conv(name: str) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: Any, out: Tensor) -> Tensor:
            out = out.clone()
            seen[id(out)] = (name, out)
            tails[name] = module
            return out

        return hook

    def before_norm(module: nn.Module, args: Any) -> None:
        if args and id(args[0]) in seen:
            tails[seen[id(args[0])][0]] = module

    handles = [c.register_forward_hook(after_conv(n)) for n, c in convs.items()]
    handles += [m.register_forward_pre_hook(before_norm) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return tails


def _observe(
    model: nn.Module,
    convs: Mapping[str, nn.Conv2d],
    chunks: Iterator[tuple[Tensor, NDArray[np.int64] | None]],
    criterion: str,
    *,
    by_class: bool,
) -> dict[str, _Tally]:
    """Run the images through the network and gather the statistics that ``criterion`` needs."""
    tallies = {name: _Tally() for name in convs}
    groups: list[tuple[int, Tensor]] = []  # of the chunk at hand: class, and the places of its images
    runs: dict[str, int] = {}
    outputs: dict[str, Tensor] = {}

    def note(name: str, conv: nn.Conv2d, source: Tensor | None, out: Tensor) -> None:
        for label, rows in groups:
            tally, part = tallies[name], out[rows]
            moments = tally.outputs.setdefault(label, Moments())
            if criterion == "beta":
                moments.add(part, (0,))
                x = source[rows].unflatten(1, (conv.groups, -1))
                tally.inputs.setdefault(label, Moments()).add(x, (0, 2))
            elif criterion == "activation_std":
                moments.add(part, (0, 2, 3))
            elif criterion == "hrank":
                moments.add(torch.linalg.matrix_rank(part.relu()), (0,))
            elif criterion == "apoz":
                moments.add((part > 0).double().mean((2, 3)), (0,))
            else:
                moments.add(part, (0,))

    def watch(name: str) -> Callable[..., Tensor | None]:
        def hook(module: nn.Module, args: Any, out: Tensor) -> Tensor | None:
            runs[name] = runs.get(name, 0) + 1
            if runs[name] > 1:
                raise ModelError(f"layer {name!r} runs more than once in a pass: its filters have no one output")
            if criterion == "taylor":
                outputs[name] = out
                return out.clone()  # a later in-place step must not change what the gradient refers to
            note(name, convs[name], args[0] if args else None, out.detach())
            return None

        return hook

    handles: list[Any] = []
    try:
        for images, labels in chunks:
            if not handles:
                post = criterion in ("hrank", "apoz")
                tails = _feature_modules(model, convs, images[:1]) if post else convs
                handles += [tails[n].register_forward_hook(watch(n)) for n in convs if n in tails]
            runs.clear()
            values = labels if by_class else np.zeros(len(images), np.int64)
            groups[:] = [(int(v), torch.from_numpy(np.flatnonzero(values == v))) for v in np.unique(values)]
            groups[:] = [(v, rows.to(images.device)) for v, rows in groups]
            if criterion != "taylor":
                with torch.no_grad():
                    model(images)
                continue
            outputs.clear()
            with torch.enable_grad():
                logits = model(images.detach().requires_grad_())
                if not isinstance(logits, Tensor) or logits.ndim != 2 or labels.max() >= logits.shape[1]:
                    raise ModelError(
                        "criterion 'taylor' needs a network that returns logits (N, classes) for the labels"
                    )
                loss = functional.cross_entropy(logits, torch.from_numpy(labels).to(images.device), reduction="sum")
                names = list(outputs)
                gradients = torch.autograd.grad(loss, [outputs[n] for n in names], allow_unused=True)
            for name, gradient in zip(names, gradients, strict=True):
                z = outputs[name].detach()
                change = torch.zeros_like(z) if gradient is None else gradient * z
                note(name, convs[name], None, change.mean((2, 3)).abs())
    finally:
        for handle in handles:
            handle.remove()
    return {n: t for n, t in tallies.items() if t.outputs}


def _score(conv: nn.Conv2d, tally: _Tally, criterion: str, ratio: str) -> Tensor:
    """Return the raw score of each filter from what was seen."""
    mean, variance = mixture(list(tally.outputs.values()))
    if criterion == "activation_std":
        return variance.sqrt()
    if criterion != "beta":
        return mean
    spread_in = receptive_field_std(conv, *mixture(list(tally.inputs.values())))
    spread_in = spread_in.repeat_interleave(conv.out_channels // conv.groups, 0)
    return _norms(conv, 1) * beta_ratio(spread_in, variance.sqrt().flatten(1), ratio)
