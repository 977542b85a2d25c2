"""The exact 8-bit product against NumPy's in 64 bits, up to the largest sums."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.kernels.int8_dot import WIDEST, int8_dot


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(0, 9), width=st.integers(0, 70), tokens=st.integers(0, 4), seed=st.integers(0, 10**6))
def test_equals_numpy(rows, width, tokens, seed):
    rng = np.random.default_rng(seed)
    W = rng.integers(-128, 128, (rows, width)).astype(np.int8)
    x = rng.integers(-255, 256, (tokens, width)).astype(np.int16)
    np.testing.assert_array_equal(int8_dot(W, x), x.astype(np.int64) @ W.T.astype(np.int64))


@pytest.mark.parametrize("sign", [1, -1])
def test_nothing_saturates(sign):
    W, x = np.full((2, WIDEST), -128, np.int8), np.full((1, WIDEST), 255 * sign, np.int16)
    assert int8_dot(W, x).tolist() == [[-128 * 255 * sign * WIDEST] * 2]
    with pytest.raises(ValueError, match="cannot be multiplied"):
        int8_dot(np.zeros((1, WIDEST + 1), np.int8), np.zeros((1, WIDEST + 1), np.int16))
    with pytest.raises(ValueError, match="cannot be multiplied"):
        int8_dot(np.zeros((1, 3), np.int8), np.zeros((1, 4), np.int16))


def test_threads_do_not_matter():
    rng = np.random.default_rng(0)
    W = rng.integers(-128, 128, (1025, 1111)).astype(np.int8)
    x = rng.integers(-255, 256, (3, 1111)).astype(np.int16)
    assert W.size * len(x) > 3_000_000  # enough for three threads
    one = int8_dot(W, x)
    for threads in (2, 3, 8):
        np.testing.assert_array_equal(int8_dot(W, x, threads=threads), one)
