"""Batches of inputs for a model of a folder: windows of a text, of token ids, or images from a ``.npy`` file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from skerry.core.errors import DataError
from skerry.deep.token_text import token_windows

__all__ = ["model_inputs"]


def model_inputs(path: Path, folder: Path, model: nn.Module, *, length: int, count: int, batch: int) -> list[Tensor]:
    """Return batches that ``model`` can be called with.

    Parameters
    ----------
    path : Path
        UTF-8 text (also ``.gz``) or ``.npy`` of token ids for models of tokens; for models of images ``.npy`` of
        floating-point pixel values as the model wants them (scaled, normalized), (images, channels, height, width).
    folder : Path
        The model's, for its tokenizer.
    model : Module
        Of transformers: its configuration says what it reads.
    length : int
        Tokens of a window; at most what the model has positions for.
    count, batch : int
        Windows or images, and how many at a time.

    Raises
    ------
    DataError
        If the file is absent, empty, too short, or not what the model reads.
    """
    config = getattr(model, "config", None)
    if getattr(model, "main_input_name", "input_ids") == "pixel_values":
        return list(_images(path, config, count).split(batch))
    longest = getattr(config, "max_position_embeddings", None) or length
    windows = token_windows(
        path, folder, length=min(length, longest), count=count, vocabulary=getattr(config, "vocab_size", None)
    )
    return list(windows.split(batch))


def _images(path: Path, config: object, count: int) -> Tensor:
    if path.suffix != ".npy":
        raise DataError(
            f"{path}: this model reads images; give a .npy of pixel values (images, channels, height, width)"
        )
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        values = np.load(path, allow_pickle=False, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: is no readable .npy file ({error})") from None
    if values.ndim != 4 or values.dtype.kind != "f" or not len(values):
        raise DataError(
            f"{path}: this model reads floating-point pixel values (images, channels, height, width), got "
            f"{values.dtype} {values.shape}"
        )
    size = getattr(config, "image_size", None)
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    channels = getattr(config, "num_channels", None)
    wanted = (channels or values.shape[1], height or values.shape[2], width or values.shape[3])
    if values.shape[1:] != wanted:
        raise DataError(f"{path}: images of {values.shape[1:]} where the model reads {wanted}")
    kept = np.unique(np.linspace(0, len(values) - 1, min(count, len(values))).astype(int))
    found = torch.from_numpy(np.asarray(values[kept], dtype=np.float32))
    if not bool(torch.isfinite(found).all()):
        raise DataError(f"{path}: holds NaN or infinite pixel values")
    return found
