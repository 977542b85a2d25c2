"""Hidden states between blocks: a list of tensors in memory, or in one memory-mapped file when they are large."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from skerry.core.errors import ModelError

__all__ = ["HiddenStates"]


class HiddenStates:
    """A fixed number of tensors that are read in order and overwritten in place.

    Parameters
    ----------
    tensors : sequence of Tensor
        One a calibration batch.
    limit : int
        Bytes that may stay in memory; above it they move to ``folder``.
    folder : Path, optional
        Where the file goes; it is removed by :meth:`close`.

    Raises
    ------
    ModelError
        If the limit is passed and there is no folder: the message has the numbers.
    """

    def __init__(self, tensors: list[Tensor], *, limit: int = 2**31, folder: Path | None = None) -> None:
        size = sum(t.numel() * t.element_size() for t in tensors)
        self.path: Path | None = None
        if size <= limit:
            self._tensors = list(tensors)
            return
        if folder is None:
            raise ModelError(
                f"{len(tensors)} calibration batches hold {size / 2**20:,.0f} MiB of hidden states and "
                f"{limit / 2**20:,.0f} MiB are allowed: give a scratch folder, or use fewer or shorter sequences"
            )
        self.path = folder / "hidden_states.bin"
        flat = torch.from_file(
            str(self.path), shared=True, size=size, dtype=torch.uint8
        )  # the file is made and grown as needed
        self._tensors, at = [], 0
        for tensor in tensors:
            end = at + tensor.numel() * tensor.element_size()
            view = flat[at:end].view(tensor.dtype).view(tensor.shape)
            view.copy_(tensor)
            self._tensors.append(view)
            at = end
        self._flat = flat

    def __len__(self) -> int:
        return len(self._tensors)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._tensors)

    def __getitem__(self, index: int) -> Tensor:
        return self._tensors[index]

    def __setitem__(self, index: int, value: Tensor) -> None:
        if self.path is None:
            self._tensors[index] = value
        else:
            self._tensors[index].copy_(value)

    def close(self) -> None:
        """Drop the tensors and the file."""
        self._tensors = []
        if self.path is not None:
            self._flat = torch.empty(0)
            self.path.unlink(missing_ok=True)
