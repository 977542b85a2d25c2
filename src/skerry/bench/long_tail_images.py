"""Images of classes with a long tail, for the studies that ask what becomes of the rare ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skerry.core.errors import DataError, MissingExtra

try:
    import torch
    from torch import Tensor
    from torch.nn import functional
except ImportError as error:
    raise MissingExtra("torch", "deep") from error

__all__ = ["Images", "at_most", "channels_last", "fashion_long_tail", "wafer_maps"]

SIDE = 28  # of a wafer map
Rows = NDArray[np.int64]
Part = tuple[Tensor, NDArray[np.int64]]


@dataclass(frozen=True)
class Images:
    """Training, validation and test images with their labels, standardised by the training part."""

    train: Part
    val: Part
    test: Part

    @property
    def n_classes(self) -> int:
        return int(self.train[1].max()) + 1


def _file(data: Path, name: str) -> Path:
    path = data / name
    if not path.exists():
        raise DataError(f"{data}: no {name} there; see --data")
    return path


def fashion_long_tail(data: Path, rng: np.random.Generator, *, head: int, n_test: int) -> Images:
    """Return 28 x 28 images of ten classes, ``head`` of the first and a fiftieth of the last, in an order drawn anew.

    The validation part has a quarter as many of each class, four at least; the test part ``n_test``.
    """
    with np.load(_file(data, "images/fashion_mnist.npz"), allow_pickle=False) as z:
        x, y, x_test, y_test = (z[k] for k in ("x_train", "y_train", "x_test", "y_test"))
    classes = rng.permutation(np.unique(y))
    counts = np.round(head * 50.0 ** (-np.arange(len(classes)) / max(1, len(classes) - 1))).astype(int)
    train, val = [], []
    for label, n in zip(classes, counts, strict=True):
        rows = rng.permutation(np.flatnonzero(y == label))
        train.append(rows[:n])
        val.append(rows[n : n + max(4, n // 4)])
    test = at_most(y_test, n_test, rng)

    def part(images: NDArray[Any], labels: NDArray[Any], rows: Rows) -> Part:
        return torch.from_numpy(images[rows]).float().unsqueeze(1), labels[rows].astype(np.int64)

    return _standardised(part(x, y, np.concatenate(train)), part(x, y, np.concatenate(val)), part(x_test, y_test, test))


def wafer_maps(data: Path, rng: np.random.Generator, *, n_train: int, n_test: int) -> Images:
    """Two channels, on the wafer and bad die, averaged to one size; the classes keep their own shares."""
    parts = []
    for name, wanted in (("train", n_train * 5 // 4), ("test", None)):
        with np.load(_file(data, f"wafer/wm811k_{name}.npz"), allow_pickle=False) as z:
            cells, shape, y = z["cells"], z["shape"].astype(int), z["y"].astype(np.int64)
        ends = np.r_[0, np.cumsum(shape.prod(1))]
        if wanted is None:
            groups = [at_most(y, n_test, rng)]
        else:
            share = min(1.0, wanted / len(y))
            groups = _stratified(y, (0.8 * share, 0.2 * share), rng)
        for rows in groups:
            maps = [torch.from_numpy(cells[ends[i] : ends[i + 1]].reshape(shape[i])) for i in rows.tolist()]
            images = torch.stack([_area(torch.stack([m > 0, m == 2]).float(), SIDE) for m in maps])
            parts.append((images, y[rows]))
    return _standardised(*parts)


def _area(image: Tensor, side: int) -> Tensor:
    return functional.interpolate(image.unsqueeze(0), (side, side), mode="area")[0]


def at_most(y: NDArray[Any], n: int, rng: np.random.Generator) -> Rows:
    """Return rows of ``n`` of each class, drawn at random, or of all where there are fewer."""
    return np.concatenate([rng.permutation(np.flatnonzero(y == label))[:n] for label in np.unique(y)])


def _stratified(y: NDArray[Any], shares: Iterable[float], rng: np.random.Generator) -> list[Rows]:
    """Cut each class into parts of these shares, one row at least."""
    edges = np.r_[0, np.cumsum(list(shares))]
    parts: list[list[Rows]] = [[] for _ in edges[1:]]
    for label in np.unique(y):
        rows = rng.permutation(np.flatnonzero(y == label))
        cuts = np.round(edges * len(rows)).astype(int)
        start = 0
        for k, part in enumerate(parts):
            end = max(cuts[k + 1], start + 1)
            part.append(rows[start:end])
            start = end
    return [np.concatenate(p) for p in parts]


def _standardised(train: Part, val: Part, test: Part) -> Images:
    mean, scale = train[0].mean((0, 2, 3), keepdim=True), train[0].std((0, 2, 3), keepdim=True)
    return Images(*((channels_last((x - mean) / scale), y) for x, y in (train, val, test)))


def channels_last(x: Any) -> Any:
    """Store channels last: convolution and pooling on a CPU take half the time."""
    return x.to(memory_format=torch.channels_last)
