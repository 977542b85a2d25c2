"""Run images through a network and gather what the criteria for ranking filters need, in memory bounded by a chunk.

Hooks sit on the convolution itself for what Beta-Rank, the deviation and Taylor's criterion look at, and on the batch
norm behind it for ranks and zeros of the feature map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skerry.core.errors import DataError, MissingExtra, ModelError
from skerry.rank.filter_spread import Moments

try:
    import torch
    from torch import Tensor, nn
    from torch.nn import functional
except ImportError as error:
    raise MissingExtra("torch", "deep") from error

__all__ = ["Tally", "evaluating", "image_chunks", "observe"]


@dataclass
class Tally:
    """What was seen of one layer, by class."""

    inputs: dict[int, Moments] = field(default_factory=dict)
    outputs: dict[int, Moments] = field(default_factory=dict)


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


def image_chunks(
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


def observe(
    model: nn.Module,
    convs: Mapping[str, nn.Conv2d],
    chunks: Iterator[tuple[Tensor, NDArray[np.int64] | None]],
    criterion: str,
    *,
    by_class: bool,
) -> dict[str, Tally]:
    """Run the images through the network and gather the statistics that ``criterion`` needs."""
    tallies = {name: Tally() for name in convs}
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
