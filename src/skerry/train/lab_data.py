"""What the laboratory trains on: windows of bytes, masked windows, images; :mod:`skerry.train.backcopy` is the fourth.

A task gives batches by number: batch k of a seed is the same whenever it is asked for, so that a run resumes from a
checkpoint with the same digits and without the state of any generator.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from skerry.core.errors import DataError
from skerry.train.backcopy import Backcopy

__all__ = ["BackcopyTask", "ByteWindows", "Images", "MaskedWindows", "Task"]

IGNORE = -100  # a target that no loss is taken on
VALIDATION = 0x5EED


class Task(Protocol):
    """What :func:`skerry.train.lab.train_lab` asks of its data."""

    vocabulary: int
    seq_len: int

    def batch(self, k: int, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of training batch k."""

    def validation(self, n_batches: int, n: int) -> list[tuple[Tensor, Tensor]]:
        """Return batches that are the same for every seed."""


def _draw(*numbers: int) -> torch.Generator:
    """Return a generator for a tuple of numbers; different tuples give unrelated streams."""
    mixed = 0
    for number in numbers:
        mixed = ((mixed ^ (number & 0xFFFFFFFF)) * 0x9E3779B97F4A7C15 + 0x7F4A7C15) & 0xFFFFFFFFFFFFFFFF
        mixed ^= mixed >> 29
    return torch.Generator().manual_seed(mixed >> 1)


class BackcopyTask:
    """:class:`skerry.train.backcopy.Backcopy` as a task: endless, so that nothing is learnt by heart.

    Parameters
    ----------
    text : str
        The bigrams are counted in it.
    seq_len : int, default 48
    bos : bool, default True

    Examples
    --------
    >>> task = BackcopyTask("to be or not to be, that is the question", seq_len=12)
    >>> torch.equal(task.batch(5, 2, seed=0)[0], task.batch(5, 2, seed=0)[0])
    True
    """

    def __init__(self, text: str, seq_len: int = 48, *, bos: bool = True) -> None:
        self.chain = Backcopy(text, bos=bos)
        self.vocabulary, self.seq_len = self.chain.vocabulary, seq_len

    def batch(self, k: int, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """Return inputs and targets (n, seq_len)."""
        return self.chain.batch(n, self.seq_len, _draw(seed, k, 1))

    def validation(self, n_batches: int, n: int) -> list[tuple[Tensor, Tensor]]:
        """Return batches of new sequences."""
        return [self.chain.batch(n, self.seq_len, _draw(VALIDATION, k, 2)) for k in range(n_batches)]


class ByteWindows:
    """Windows of a text's bytes, at random places; the last part is held out.

    Parameters
    ----------
    text : bytes
    seq_len : int, default 64
    held_out : float, default 0.08
        Share of the end of the text that only validation sees.
    bos : bool, default True
        Overwrite the first byte of every window with token 256.

    Raises
    ------
    DataError
        If a part is shorter than a window.

    Examples
    --------
    >>> x, y = ByteWindows(b"abcdefgh" * 100, seq_len=6).batch(0, 2, seed=0)
    >>> x[:, 0].tolist(), bool((x[:, 1:] == y[:, :-1]).all())
    ([256, 256], True)
    """

    vocabulary = 257

    def __init__(self, text: bytes, seq_len: int = 64, held_out: float = 0.08, *, bos: bool = True) -> None:
        data = torch.frombuffer(bytearray(text), dtype=torch.uint8).long() if text else torch.empty(0)
        cut = round(len(data) * (1 - held_out))
        if min(cut, len(data) - cut) < seq_len + 2:
            raise DataError(f"a text of {len(data)} bytes is too short for windows of {seq_len}, a part held out")
        self._train, self._held, self.seq_len, self.bos = data[:cut], data[cut:], seq_len, bos

    def _windows(self, text: Tensor, n: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        start = torch.randint(len(text) - self.seq_len, (n, 1), generator=draw)
        window = text[start + torch.arange(self.seq_len + 1)]
        x, y = window[:, :-1].clone(), window[:, 1:]
        if self.bos:
            x[:, 0] = 256
        return x, y

    def batch(self, k: int, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """Return inputs and targets (n, seq_len)."""
        return self._windows(self._train, n, _draw(seed, k, 3))

    def validation(self, n_batches: int, n: int) -> list[tuple[Tensor, Tensor]]:
        """Return batches of the part held out."""
        return [self._windows(self._held, n, _draw(VALIDATION, k, 4)) for k in range(n_batches)]


class MaskedWindows(ByteWindows):
    """Windows of bytes in which 15 % of the tokens are to be told from both sides (masked language modelling).

    Of these, 80 % are replaced by token 257, 10 % by another byte and 10 % stay, as in BERT. Arguments as for
    :class:`ByteWindows`.

    Examples
    --------
    >>> x, y = MaskedWindows(b"abcdefgh" * 100, seq_len=6).batch(0, 2, seed=0)
    >>> bool((y[x == 257] >= 0).all())
    True
    """

    vocabulary = 258

    def _windows(self, text: Tensor, n: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        x, _ = super()._windows(text, n, draw)
        chosen = torch.rand(x.shape, generator=draw) < 0.15
        if self.bos:
            chosen[:, 0] = False
        if not chosen.any():
            chosen[:, -1] = True
        y = x.masked_fill(~chosen, IGNORE)
        fate = torch.rand(x.shape, generator=draw)
        other = torch.randint(256, x.shape, generator=draw)
        x = torch.where(chosen & (fate < 0.8), 257, x)
        return torch.where(chosen & (fate >= 0.8) & (fate < 0.9), other, x), y


class Images:
    """Labelled images held in memory, mirrored at random in training.

    Parameters
    ----------
    train, held : pair of (uint8 Tensor of shape (n, channels, size, size), int64 Tensor of shape (n,))
    n_classes : int
    patch_size : int, default 4

    Raises
    ------
    DataError
        If images and labels differ in number.
    """

    def __init__(
        self, train: tuple[Tensor, Tensor], held: tuple[Tensor, Tensor], n_classes: int, patch_size: int = 4
    ) -> None:
        for name, (x, y) in (("train", train), ("held", held)):
            if len(x) != len(y) or not len(x):
                raise DataError(f"{name}: {len(x)} images and {len(y)} labels")
        self._train, self._held = train, held
        self.vocabulary, self.patch_size = n_classes, patch_size
        self.channels, self.image_size = train[0].shape[1], train[0].shape[-1]
        self.seq_len = (self.image_size // patch_size) ** 2 + 1

    def batch(self, k: int, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """Return float images (n, channels, size, size) and labels (n,)."""
        draw = _draw(seed, k, 5)
        rows = torch.randint(len(self._train[0]), (n,), generator=draw)
        x = _scaled(self._train[0][rows])
        mirrored = torch.rand(n, 1, 1, 1, generator=draw) < 0.5
        return torch.where(mirrored, x.flip(-1), x), self._train[1][rows]

    def validation(self, n_batches: int, n: int) -> list[tuple[Tensor, Tensor]]:
        """Return the first held-out images."""
        parts = zip(self._held[0].split(n), self._held[1].split(n), strict=True)
        return [(_scaled(x), y) for _, (x, y) in zip(range(n_batches), parts, strict=False)]


def _scaled(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1
