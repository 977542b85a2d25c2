"""How many threads a piece of work deserves: waking a second one costs more than a millisecond of arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numba

__all__ = ["threads_for"]

OPERATIONS_PER_THREAD = 4_000_000  # a few milliseconds; on a busy machine a thread may wait as long for its core


@contextmanager
def threads_for(operations: float) -> Iterator[None]:
    """Run compiled loops on no more threads than ``operations`` (inner-loop steps) can keep busy.

    The results of Skerry's kernels do not depend on the number of threads, only the time does.

    >>> with threads_for(1_000):
    ...     numba.get_num_threads()
    1
    """
    before = numba.get_num_threads()
    numba.set_num_threads(max(1, min(before, int(operations // OPERATIONS_PER_THREAD))))
    try:
        yield
    finally:
        numba.set_num_threads(before)
