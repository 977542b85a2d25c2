"""A file that grows, read as ``tail -F`` does: what is appended, also after the file was cut or replaced."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from skerry.core.errors import DataError

__all__ = ["GrowingFile"]

MARK = 64  # bytes before the place read to, by which a file is known again


class GrowingFile:
    """The bytes of a file as they are written.

    Parameters
    ----------
    path : path
    state : dict, optional
        What :meth:`state` of an earlier reader returned. Where the file is still the same one, reading goes on from
        there (``resumed``); otherwise from its start.

    Attributes
    ----------
    resumed : bool
    anew : bool
        Whether the bytes last returned are the first of a file that was cut or replaced.
    notes : list of str
        What there is to tell; the caller takes them away.

    Raises
    ------
    DataError
        If the file cannot be opened.

    Notes
    -----
    A file that shrank was cut: it is read again from its start. One whose name leads to another file was replaced
    (rotated): the old one is read to its end first. A file that is cut and grows beyond its old size between two
    reads cannot be told from one that was only appended to.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as f:
    ...     growing = GrowingFile(f.name)
    ...     _ = f.write(b"a"), f.flush()
    ...     growing.read(), growing.read()
    (b'a', b'')
    """

    def __init__(self, path: str | Path, state: dict[str, Any] | None = None) -> None:
        self.path = Path(path)
        self.notes: list[str] = []
        self.resumed = self.anew = self.gone = False
        self._open()
        if state is not None and self._same(state):
            self.offset, self.resumed = state["offset"], True

    def _open(self) -> None:
        try:
            self.file = open(self.path, "rb", buffering=0)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror})") from None
        if not stat.S_ISREG(os.fstat(self.file.fileno()).st_mode):
            self.file.close()
            raise DataError(f"{self.path}: is no regular file; send it to standard input and follow -")
        self.offset = 0

    def _same(self, state: dict[str, Any]) -> bool:
        known = os.fstat(self.file.fileno())
        if (known.st_dev, known.st_ino) != (state["device"], state["inode"]) or known.st_size < state["offset"]:
            return False
        return self._mark(state["offset"]) == state["mark"]

    def _mark(self, offset: int) -> str:
        start = max(0, offset - MARK)
        return os.pread(self.file.fileno(), offset - start, start).decode("latin-1")

    def state(self) -> dict[str, Any]:
        """Return which file is read and how far, as plain values."""
        known = os.fstat(self.file.fileno())
        mark = self._mark(self.offset)
        return {"device": known.st_dev, "inode": known.st_ino, "offset": self.offset, "mark": mark}

    def read(self, size: int = 1 << 20) -> bytes:
        """Return the next bytes, none if nothing was appended."""
        self.anew = False
        if os.fstat(self.file.fileno()).st_size < self.offset:
            self.notes.append(f"{self.path}: was cut to a shorter file; read again from its start")
            self.offset, self.anew = 0, True
        data = os.pread(self.file.fileno(), size, self.offset)
        if not data and self._replaced():
            self.file.close()
            self._open()
            self.notes.append(f"{self.path}: was replaced by another file; read from its start")
            data = os.pread(self.file.fileno(), size, 0)
            self.anew = True
        self.offset += len(data)
        return data

    def _replaced(self) -> bool:
        try:
            now = os.stat(self.path)
        except OSError:
            if not self.gone:
                self.notes.append(f"{self.path}: is gone; waiting for a file of that name")
            self.gone = True
            return False
        self.gone = False
        known = os.fstat(self.file.fileno())
        return (now.st_dev, now.st_ino) != (known.st_dev, known.st_ino)

    def close(self) -> None:
        """Close the file."""
        self.file.close()
