"""Calibration batches: what users may give, and how the first block's inputs are caught from the real model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from skerry.core.errors import DataError, ModelError
from skerry.quant.recipe import Recipe

__all__ = [
    "BlockInputs",
    "as_batches",
    "catch_inputs",
    "following_mask",
    "live",
    "mask_of",
    "output_of",
    "rows_to_run",
    "run_model",
]

Batch = Mapping[str, Any] | tuple | Tensor


@dataclass
class BlockInputs:
    """What one block is called with, batch by batch, beside the hidden states.

    Attributes
    ----------
    arguments : list of tuple
        Positional arguments after the hidden states.
    keywords : list of dict
    masks : list of Tensor or None
        (sequences, tokens), False at padding, where the batch had an ``attention_mask``.
    """

    arguments: list[tuple] = field(default_factory=list)
    keywords: list[dict[str, Any]] = field(default_factory=list)
    masks: list[Tensor | None] = field(default_factory=list)


def as_batches(calibration: Any) -> list[Batch]:
    """Return calibration data as a list of batches for ``model(batch)`` or ``model(**batch)``.

    Parameters
    ----------
    calibration : Tensor, mapping, or iterable of these
        Token ids (sequences, tokens), pixel values, or keyword arguments of the model.

    Raises
    ------
    DataError
        If there is nothing in it, or something that is no tensor.
    """
    if isinstance(calibration, (Tensor, Mapping)):
        calibration = [calibration]
    if not isinstance(calibration, Iterable):
        raise DataError(f"calibration must be a tensor, a mapping or a list of them, got {type(calibration).__name__}")
    batches = list(calibration)
    if not batches:
        raise DataError("calibration data is empty: give at least one batch")
    for i, batch in enumerate(batches):
        tensors = list(batch.values()) if isinstance(batch, Mapping) else batch if isinstance(batch, tuple) else [batch]
        if not any(isinstance(t, Tensor) for t in tensors):
            raise DataError(f"calibration batch {i} holds no tensor: {type(batch).__name__}")
        if any(isinstance(t, Tensor) and t.numel() == 0 for t in tensors):
            raise DataError(f"calibration batch {i} is empty")
    return batches


def _few_rows(batch: Any, tokens: int = 32) -> Any:
    """Return about ``tokens`` tokens of a batch, from the start of its first rows; itself where rows do not show.

    Examples
    --------
    >>> _few_rows(torch.zeros(16, 128, dtype=torch.long)).shape
    torch.Size([1, 32])
    >>> _few_rows({"input_ids": torch.zeros(4, 8, dtype=torch.long)})["input_ids"].shape
    torch.Size([4, 8])
    >>> _few_rows(torch.zeros(1000, 8)).shape
    torch.Size([32, 8])
    """
    many = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple) else (batch,)
    tensors = [t for t in many if isinstance(t, Tensor) and t.ndim]
    if len({len(t) for t in tensors}) != 1:
        return batch
    # all of token ids and their masks: then rows can be shortened, too
    ids = all(t.ndim == 2 and not t.is_floating_point() for t in tensors) and len({t.shape for t in tensors}) == 1
    lengths = [t.shape[1] for t in tensors if t.ndim > 2 or (t.ndim == 2 and not t.is_floating_point())]
    keep = max(1, tokens // max(lengths, default=1))

    def cut(value: Any) -> Any:
        if not (isinstance(value, Tensor) and value.ndim):
            return value
        return value[:keep, :tokens] if ids else value[:keep]

    if isinstance(batch, Mapping):
        return {name: cut(value) for name, value in batch.items()}
    return tuple(cut(value) for value in batch) if isinstance(batch, tuple) else cut(batch)


def rows_to_run(batches: list[Any], recipe: Recipe) -> list[Any]:
    """Return the batches that the engine runs: all, or a few tokens for the report if no part of the recipe looks."""
    return batches if recipe.looks_at_inputs else [_few_rows(batch) for batch in batches[:1]]


def mask_of(batch: Any) -> Tensor | None:
    """Return a batch's ``attention_mask`` (sequences, tokens), false at padding; None if it has none of this form."""
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    return mask if isinstance(mask, Tensor) and mask.ndim == 2 else None


def live(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return the tokens of ``x`` that are no padding.

    Parameters
    ----------
    x : Tensor of shape (sequences, tokens, ...) or (sequences x tokens, channels)
    mask : Tensor of shape (sequences, tokens) or None

    Returns
    -------
    Tensor of shape (live tokens, ...)
        ``x`` itself without a mask, or if the mask is not one of its tokens.

    Examples
    --------
    >>> live(torch.arange(6.0).reshape(1, 3, 2), torch.tensor([[1, 1, 0]])).tolist()
    [[0.0, 1.0], [2.0, 3.0]]
    """
    if mask is None:
        return x
    kept = mask.to(x.device).bool()
    if x.ndim > 2 and x.shape[:2] == kept.shape:
        return x[kept]
    return x[kept.flatten()] if x.ndim == 2 and len(x) == kept.numel() else x


@contextmanager
def following_mask(model: nn.Module) -> Iterator[Callable[[], Tensor | None]]:
    """Give a function that returns the mask of the batch that ``model`` is running, as :func:`mask_of` finds it."""
    current: list[Tensor | None] = [None]

    def hook(module: nn.Module, arguments: tuple, keywords: dict[str, Any]) -> None:
        current[0] = mask_of(keywords)

    handle = model.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield lambda: current[0]
    finally:
        handle.remove()


def run_model(model: nn.Module, batch: Batch) -> Any:
    """Call the model with a batch, without gradients and without a cache."""
    with torch.no_grad(), _no_cache(model):
        if isinstance(batch, Mapping):
            return model(**batch)
        return model(*batch) if isinstance(batch, tuple) else model(batch)


def output_of(output: Any) -> Tensor:
    """Return the tensor that counts of a model's output: logits, else the last hidden state."""
    if isinstance(output, Tensor):
        return output
    found = getattr(output, "logits", None)
    if found is None:
        found = getattr(output, "last_hidden_state", None)
    if found is None:
        found = output[0]
    return found


def catch_inputs(
    model: nn.Module, block: nn.Module, batches: list[Batch], keep: Callable[[Tensor], None]
) -> BlockInputs:
    """Run the model up to ``block`` for every batch and return what the block would have been called with.

    ``keep`` gets the hidden states, batch by batch.

    Raises
    ------
    ModelError
        If the block is never called, or its first argument is no tensor.
    """
    found = BlockInputs()

    def hook(module: nn.Module, arguments: tuple, keywords: dict[str, Any]) -> None:
        keywords = dict(keywords)
        hidden = arguments[0] if arguments else keywords.pop("hidden_states", None)
        if not isinstance(hidden, Tensor):
            raise ModelError("the first block is not called with a tensor of hidden states")
        keep(hidden.detach())
        found.arguments.append(arguments[1:])
        found.keywords.append(keywords)
        raise _Caught

    handle = block.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        for batch in batches:
            try:
                run_model(model, batch)
            except _Caught:
                pass
            found.masks.append(mask_of(batch))
    finally:
        handle.remove()
    if len(found.arguments) != len(batches):
        raise ModelError("the model's first block was not called by its forward pass")
    return found


class _Caught(Exception):
    """Stops a forward pass whose rest is not needed."""


class _no_cache:
    """Switches a configuration's ``use_cache`` off for a while."""

    def __init__(self, model: nn.Module) -> None:
        self.config = getattr(model, "config", None)

    def __enter__(self) -> None:
        self.kept = getattr(self.config, "use_cache", None)
        if self.kept is not None:
            self.config.use_cache = False  # type: ignore[union-attr]

    def __exit__(self, *error: object) -> None:
        if self.kept is not None:
            self.config.use_cache = self.kept  # type: ignore[union-attr]
