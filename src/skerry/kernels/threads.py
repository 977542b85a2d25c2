"""How many threads a piece of work deserves: waking a second one costs more than a millisecond of arithmetic.

There are two ways to use them. Numba's own (``parallel=True``, under :func:`threads_for`) costs it two to three seconds
a kernel to compile; :func:`in_parts` runs a plain compiled loop over parts of its rows from Python, which costs it
none. Kernels that a user meets in the first minute take the second way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numba

__all__ = ["in_parts", "threads_for"]

OPERATIONS_PER_THREAD = 4_000_000  # a few milliseconds; on a busy machine a thread may wait as long for its core
PARTS = 4  # a thread: cores are not equally fast, nor equally free


@contextmanager
def threads_for(operations: float) -> Iterator[None]:
    """Run compiled loops on no more threads than ``operations`` (inner-loop steps) can keep busy.

    The results of Skerry's kernels do not depend on the number of threads, only the time does.

    >>> with threads_for(1_000):
    ...     numba.get_num_threads()
    1
    """
    before = numba.get_num_threads()
    numba.set_num_threads(_worth(operations))
    try:
        yield
    finally:
        numba.set_num_threads(before)


def in_parts(run: Callable[[int, int], object], count: int, operations: float) -> None:
    """Call ``run(start, stop)`` for parts of ``range(count)``, on as many threads as ``operations`` can keep busy.

    ``run`` must release the interpreter's lock (``nogil=True``) and write to places of its own.

    >>> done = [0] * 5
    >>> def run(start, stop):
    ...     done[start:stop] = [i * i for i in range(start, stop)]
    >>> in_parts(run, 5, operations=1e9)
    >>> done
    [0, 1, 4, 9, 16]
    """
    threads = min(_worth(operations), count)
    if threads <= 1:
        run(0, count)
        return
    parts = min(count, PARTS * threads)
    edges = [count * i // parts for i in range(parts + 1)]
    pool = ThreadPoolExecutor(threads)
    try:
        for _ in pool.map(run, edges[:-1], edges[1:]):
            pass
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C does not wait for the parts that have not begun


def _worth(operations: float) -> int:
    """Return the number of threads, at most those that numba may use."""
    return max(1, min(numba.get_num_threads(), int(operations // OPERATIONS_PER_THREAD)))
