"""Files that are either whole or not there (write beside, then rename), and where those that may go are kept."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from skerry.core.errors import DataError

__all__ = ["atomic_write", "cache_folder"]


def cache_folder() -> Path:
    """Return where Skerry keeps what can be made again: ``SKERRY_CACHE``, else ``skerry`` in the user's cache.

    The user's cache is ``XDG_CACHE_HOME``, else ``~/.cache``. The folder need not exist.

    Examples
    --------
    >>> cache_folder().is_absolute() or "SKERRY_CACHE" in os.environ
    True
    """
    own = os.environ.get("SKERRY_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "skerry"


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """Yield a binary file that becomes ``path`` only if the block ends well.

    On any error, an interruption among them, the file beside is removed and an older ``path`` is untouched.

    Raises
    ------
    DataError
        If the folder is missing or not writable, the disk is full, or ``path`` is no regular file; the
        message names the path.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "notes.txt"
    >>> with atomic_write(path) as file:
    ...     _ = file.write(b"whole")
    >>> path.read_bytes()
    b'whole'
    """
    path = Path(path)
    target = Path(os.path.realpath(path))  # a symbolic link stays one: its target is replaced
    if target.exists() and not target.is_file():
        kind = "a folder" if target.is_dir() else "not a regular file"  # renaming over /dev/null would destroy it
        raise DataError(f"{path}: is {kind}; give the path of a file")
    try:
        handle, beside = tempfile.mkstemp(prefix=f".{target.name[:100]}.", suffix=".part", dir=target.parent)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); choose another place") from None
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(beside, 0o666 & ~umask)
        os.replace(beside, target)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(beside)
        if isinstance(error, OSError):
            raise DataError(f"{path}: cannot be written ({error.strerror or error}); nothing was changed") from None
        raise
