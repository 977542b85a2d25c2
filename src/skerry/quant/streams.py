"""Hidden states between blocks: a list of tensors in memory, in memory-mapped files once they are many."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from skerry.core.errors import DataError, ModelError

__all__ = ["HiddenStates"]


class HiddenStates:
    """Tensors, one a calibration batch, that are read in order and overwritten in place.

    Parameters
    ----------
    limit : int, default 2 GiB
        Bytes that may stay in memory; with the first tensor beyond it all move to ``folder``.
    folder : Path, optional
        Where a folder for the files is made; it is removed by :meth:`close`.
    """

    def __init__(self, *, limit: int = 2**31, folder: Path | None = None) -> None:
        self._limit, self._folder = limit, folder
        self._tensors: list[Tensor] = []
        self._bytes = 0
        self.path: Path | None = None

    def append(self, tensor: Tensor) -> None:
        """Take the next batch.

        Raises
        ------
        ModelError
            If the limit is passed and there is no folder: the message has the numbers.
        DataError
            If the folder cannot be written, or its disk has no room.
        """
        self._bytes += tensor.numel() * tensor.element_size()
        if self.path is None and self._bytes > self._limit:
            if self._folder is None:
                raise ModelError(
                    f"{len(self) + 1} calibration batches hold {self._bytes / 2**20:,.0f} MiB of hidden states and "
                    f"{self._limit / 2**20:,.0f} MiB are allowed: give a scratch folder, or use fewer or shorter "
                    "sequences"
                )
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                self.path = Path(tempfile.mkdtemp(prefix="hidden-states-", dir=self._folder))
            except OSError as error:
                raise DataError(f"{self._folder}: cannot be written ({error.strerror}); give another folder") from None
            self._tensors = [self._mapped(i, t) for i, t in enumerate(self._tensors)]
        self._tensors.append(tensor if self.path is None else self._mapped(len(self), tensor))

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
        """Drop the tensors and the files."""
        self._tensors = []
        if self.path is not None:
            shutil.rmtree(self.path, ignore_errors=True)

    def _mapped(self, index: int, tensor: Tensor) -> Tensor:
        assert self.path is not None
        file, size = self.path / f"{index:05d}.bin", tensor.numel() * tensor.element_size()
        try:
            with file.open("wb") as opened:
                if hasattr(os, "posix_fallocate") and size:
                    os.posix_fallocate(
                        opened.fileno(), 0, size
                    )  # writing to a map of a full disk would end the process
        except OSError as error:
            raise DataError(
                f"{self.path.parent}: no room for {self._bytes / 2**20:,.0f} MiB of hidden states ({error.strerror}); "
                "give another scratch folder or fewer samples"
            ) from None
        found = torch.from_file(str(file), shared=True, size=size, dtype=torch.uint8)
        return found.view(tensor.dtype).view(tensor.shape).copy_(tensor)
