"""Parts of a loop on several threads: each index once, on no more threads than allowed, errors come through."""

import threading

import numba
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.kernels import threads
from skerry.kernels.threads import OPERATIONS_PER_THREAD, in_parts, threads_for

MANY = 64.0 * OPERATIONS_PER_THREAD


@given(count=st.integers(0, 200), share=st.floats(0, 16))
def test_every_index_is_done_once(count, share):
    done = [0] * count

    def run(start, stop):
        for i in range(start, stop):
            done[i] += 1

    in_parts(run, count, share * OPERATIONS_PER_THREAD)
    assert done == [1] * count


@pytest.mark.parametrize(("operations", "most"), [(1.0, 1), (2.0 * OPERATIONS_PER_THREAD, 2), (MANY, 3)])
def test_no_more_threads_than_the_work_is_worth(operations, most, monkeypatch):
    monkeypatch.setattr(threads.numba, "get_num_threads", lambda: 3)
    seen = set()
    together = threading.Barrier(most)

    def run(start, stop):
        if threading.get_ident() not in seen:
            seen.add(threading.get_ident())
            together.wait(timeout=30)  # as many threads as are expected are here at once

    in_parts(run, 100, operations)
    assert len(seen) == most


def test_an_error_comes_through():
    def run(start, stop):
        raise ValueError(f"{start}")

    for operations in (1.0, MANY):
        with pytest.raises(ValueError, match="0"):
            in_parts(run, 100, operations)


def test_the_number_of_threads_is_given_back():
    before = numba.get_num_threads()
    with threads_for(1.0):
        assert numba.get_num_threads() == 1
    assert numba.get_num_threads() == before
