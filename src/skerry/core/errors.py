"""The one family of errors that Skerry raises.

::

    SkerryError
    ├── DataError (also ValueError)      the input is at fault: file, column, row
    ├── ModelError (also ValueError)     a saved model or a network is at fault
    ├── ParameterError (also ValueError) an argument is out of range or unknown
    └── MissingExtra (also ImportError)  an optional dependency is absent
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "DataError",
    "MissingExtra",
    "ModelError",
    "ParameterError",
    "SkerryError",
    "SkerryWarning",
    "nearest",
]


class SkerryError(Exception):
    """Root of every error that Skerry raises on purpose."""


class DataError(SkerryError, ValueError):
    """The data cannot be used as given; the message names the file, column or row and the remedy."""


class ModelError(SkerryError, ValueError):
    """A saved model or a network cannot be used; the message names the part and the remedy."""


class ParameterError(SkerryError, ValueError):
    """An argument is out of range or unknown; the message names what is allowed."""


class MissingExtra(SkerryError, ImportError):
    """An optional dependency is missing; the message holds the exact install line.

    Parameters
    ----------
    package : str
        The module that could not be imported.
    extra : str
        The extra of Skerry that brings it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package!r} is needed here: pip install 'skerry[{extra}]'")
        self.package = package
        self.extra = extra

    def __reduce__(self):
        return (type(self), (self.package, self.extra))


class SkerryWarning(UserWarning):
    """Something was repaired or skipped; the message says what and why."""


def nearest(name: str, known: Iterable[str], n: int = 3) -> str:
    """Return a hint that lists the known names closest to ``name``.

    >>> nearest("izolation", ["isolation-forest", "knn", "lof"])
    "did you mean 'isolation-forest'?"
    """
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=n, cutoff=0.4)
    if close:
        return "did you mean " + " or ".join(repr(c) for c in close) + "?"
    return "known: " + ", ".join(known)
