"""Compressed files and pipes are not trusted: a bomb is stopped, a truncated file is named, a full disk is told."""

from __future__ import annotations

import gzip
import io
import tempfile
import zlib
from pathlib import Path
from typing import Any

from skerry.core.errors import DataError

__all__ = ["GuardedGzip", "copy_to_spool", "most_unpacked"]

MAX_UNPACKED = 32 << 30  # bytes that a compressed file may grow to
MAX_RATIO = 200  # of unpacked to packed bytes, beyond FREE_BYTES; honest tables stay far below
FREE_BYTES = 1 << 30


def most_unpacked(packed: int) -> int:
    """Return how many bytes a file of ``packed`` bytes may grow to before it counts as a bomb.

    >>> most_unpacked(1_000) == FREE_BYTES, most_unpacked(1 << 40) == MAX_UNPACKED
    (True, True)
    """
    return min(MAX_UNPACKED, max(FREE_BYTES, packed * MAX_RATIO))


def copy_to_spool(stream: Any, handle: int, name: str) -> int:
    """Copy at most a little more than MAX_UNPACKED bytes to an open temporary file, close it, return how many.

    Raises
    ------
    DataError
        If the stream cannot be read or the folder for temporary files is full; ``name`` is the stream's.
    """
    size = 0
    try:
        with open(handle, "wb", buffering=0) as file:
            while size <= MAX_UNPACKED:
                try:
                    data = memoryview(stream.read(1 << 20))
                except OSError as error:
                    raise DataError(f"{name}: cannot be read ({error.strerror or error})") from None
                if not data:
                    break
                size += len(data)
                while data:  # a disk that fills up takes a part before it objects
                    data = data[file.write(data) :]
    except OSError as error:
        told = f"cannot be kept in the folder for temporary files, {tempfile.gettempdir()}"
        raise DataError(f"{name}: {told} ({error.strerror or error}); set TMPDIR to a larger one") from None
    return size


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
