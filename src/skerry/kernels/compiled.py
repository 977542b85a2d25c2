"""Numba's ``njit`` with a cache on disk that may fail: no kernel needs it, it only saves compiling again.

Numba gives up where it cannot store what it compiled (a full disk, a quota) or finds no folder to store it in (a
read-only installation without a home). Here the compiled function is used all the same, and a stored one that cannot be
read, because something cut it short, is compiled anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
from numba.core.caching import FunctionCache, NullCache

__all__ = ["njit"]


class _Cache(FunctionCache):
    """Numba's cache of one function, without its errors."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # whatever a damaged file can make pickle and LLVM raise
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError:
            self.disable()  # a disk that is full now is so for the next signature
        except Exception:  # the index is damaged: begin a new one
            try:
                self.flush()
                super().save_overload(sig, data)
            except Exception:
                self.disable()


def njit(*args: Any, cache: bool = False, **options: Any) -> Any:
    """``numba.njit`` whose cache cannot break a run; the options are numba's.

    >>> @njit(cache=True)
    ... def twice(x):
    ...     return 2 * x
    >>> twice(4)
    8
    """

    def wrap(function: Callable) -> Any:
        dispatcher = numba.njit(**options)(function)
        if cache and not numba.config.DISABLE_JIT:
            try:
                dispatcher._cache = _Cache(function)
            except (RuntimeError, OSError):  # no folder to write to
                dispatcher._cache = NullCache()
        return dispatcher

    return wrap(args[0]) if args else wrap
