"""Compressed files from others are not trusted: a bomb is stopped, a truncated file is named."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import Any

from skerry.core.errors import DataError

__all__ = ["GuardedGzip", "most_unpacked"]

MAX_UNPACKED = 32 << 30  # bytes that a compressed file may grow to
MAX_RATIO = 200  # of unpacked to packed bytes, beyond FREE_BYTES; honest tables stay far below
FREE_BYTES = 1 << 30


def most_unpacked(packed: int) -> int:
    """Return how many bytes a file of ``packed`` bytes may grow to before it counts as a bomb.

    >>> most_unpacked(1_000) == FREE_BYTES, most_unpacked(1 << 40) == MAX_UNPACKED
    (True, True)
    """
    return min(MAX_UNPACKED, max(FREE_BYTES, packed * MAX_RATIO))


class GuardedGzip(io.RawIOBase):
    """A gzip stream that stops a bomb and names a truncated file."""

    def __init__(self, path: Path, name: str) -> None:
        self.inner = gzip.open(path, "rb")
        self.name_, self.done = name, 0
        self.limit = most_unpacked(path.stat().st_size)

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer``; a broken or boundless stream raises DataError with the file's name."""
        try:
            data = self.inner.read(len(buffer))
        except EOFError:
            raise DataError(f"{self.name_}: the gzip file is truncated; fetch it again") from None
        except (OSError, zlib.error) as error:
            raise DataError(f"{self.name_}: not a sound gzip file ({error}); fetch it again") from None
        self.done += len(data)
        if self.done > self.limit:
            raise DataError(f"{self.name_}: unpacks to more than {self.limit >> 20} MiB; unpack it if you trust it")
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the file too."""
        self.inner.close()
        super().close()
