"""Token windows for calibration and evaluation: a text file and the model's tokenizer, or a file of token ids."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skerry.core.errors import DataError, MissingExtra

__all__ = ["load_tokenizer", "token_windows"]


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a model folder, or None if it has none.

    Raises
    ------
    MissingExtra
        Without transformers.
    """
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")):
        return None
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise MissingExtra("transformers", "deep") from None
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a damaged tokenizer makes the library raise
        raise DataError(f"{folder}: its tokenizer could not be loaded: {str(error).splitlines()[0]}") from None


def token_windows(path: Path, folder: Path, *, length: int, count: int, vocabulary: int | None = None) -> Tensor:
    """Return windows of token ids (n, length), evenly spread over a file, n at most ``count``.

    Parameters
    ----------
    path : Path
        ``.npy`` of token ids, (n,) or (windows, length); anything else is UTF-8 text (also ``.gz``).
    folder : Path
        The model's, for its tokenizer.
    length, count : int
    vocabulary : int, optional
        Ids must be below it.

    Raises
    ------
    DataError
        If the file is absent, empty, not readable, or shorter than one window.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if path.suffix == ".npy":
        try:
            ids = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: is no readable .npy file ({error})") from None
        if ids.ndim not in (1, 2) or ids.dtype.kind not in "iu":
            raise DataError(f"{path}: token ids must be integers of one or two dimensions, got {ids.dtype} {ids.shape}")
        flat = torch.from_numpy(ids.astype(np.int64)).flatten()
    else:
        tokenizer = load_tokenizer(folder)
        if tokenizer is None:
            raise DataError(f"{folder}: has no tokenizer; give token ids as a .npy file in place of {path.name}")
        try:
            opener = gzip.open if path.suffix == ".gz" else open
            with opener(path, "rt", encoding="utf-8") as file:
                text = file.read()
        except (OSError, UnicodeDecodeError, EOFError) as error:
            raise DataError(f"{path}: is no readable UTF-8 text ({error})") from None
        flat = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.int64)
    if vocabulary is not None and len(flat) and not 0 <= int(flat.min()) <= int(flat.max()) < vocabulary:
        raise DataError(f"{path}: token {int(flat.max())} is outside the model's vocabulary of {vocabulary}")
    windows = len(flat) // length
    if windows < 1:
        raise DataError(f"{path}: holds {len(flat)} tokens, fewer than one window of {length}: give more text")
    kept = np.unique(np.linspace(0, windows - 1, min(count, windows)).astype(int))
    return flat[: windows * length].reshape(windows, length)[kept]
