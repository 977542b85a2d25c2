"""The matrix profile against all pairs of windows."""

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.kernels import matrix_profile as mp


def naive(x, reference, window, exclude):
    def windows(v):
        rows = np.lib.stride_tricks.sliding_window_view(v, window)
        centred = rows - rows.mean(axis=1, keepdims=True)
        length = np.sqrt((centred**2).sum(axis=1))
        flat = length <= np.sqrt(window) * mp.FLAT * np.abs(rows).max(axis=1)
        return np.where(flat[:, None], 0.0, centred / np.where(flat, 1.0, length)[:, None]), flat

    (a, flat_a), (b, flat_b) = windows(x), windows(reference)
    r = np.maximum(a @ b.T, 0.0)
    r[np.ix_(flat_a, flat_b)] = 1.0
    if exclude >= 0:
        r[np.abs(np.arange(len(a))[:, None] - np.arange(len(b))) <= exclude] = 0.0
    return r


@settings(max_examples=60)
@given(
    st.integers(0, 10**6), st.integers(2, 30), st.integers(2, 300), st.integers(0, 20),
    st.sampled_from(["walk", "noise", "steps", "spike", "tiny"]),
)  # fmt: skip
def test_self_profile_is_the_best_of_all_pairs(seed, window, n, exclude, kind):
    rng = np.random.default_rng(seed)
    n = max(n, window)
    x = {
        "walk": lambda: np.cumsum(rng.normal(size=n)),
        "noise": lambda: rng.normal(size=n),
        "steps": lambda: np.repeat(rng.normal(size=n), 7)[:n],
        "spike": lambda: rng.normal(size=n) + 1e4 * (np.arange(n) == n // 2),
        "tiny": lambda: 1e-9 * rng.normal(size=n),
    }[kind]()
    got, at = mp.self_profile(x, window, exclude)
    r = naive(x, x, window, exclude)
    np.testing.assert_allclose(got, r.max(axis=1), atol=1e-6)
    found = np.flatnonzero(at >= 0)
    np.testing.assert_allclose(r[found, at[found]], got[found], atol=1e-6)


@pytest.mark.parametrize(("n", "m"), [(300, 40), (40, 300), (900, 700), (12, 12)])
def test_join_is_the_best_of_all_pairs(n, m):
    rng = np.random.default_rng(n)
    x, reference = np.cumsum(rng.normal(size=n)), np.cumsum(rng.normal(size=m))
    got, at = mp.join_profile(x, reference, 12)
    r = naive(x, reference, 12, -1)
    np.testing.assert_allclose(got, r.max(axis=1), atol=1e-8)
    found = at >= 0
    np.testing.assert_allclose(r[found, at[found]], got[found], atol=1e-8)


def test_rounding_does_not_travel_past_a_fresh_start(monkeypatch):
    rng = np.random.default_rng(0)
    x = np.sin(np.arange(6_000) / 9) + 0.01 * rng.normal(size=6_000)
    x[700] = 1e6
    got, _ = mp.self_profile(x, 50, 25)
    np.testing.assert_allclose(got, naive(x, x, 50, 25).max(axis=1), atol=1e-5)


def test_threads_do_not_matter():
    x = np.random.default_rng(1).normal(size=3_000)
    before = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        one = mp.self_profile(x, 20, 10)
    finally:
        numba.set_num_threads(before)
    np.testing.assert_array_equal(one, mp.self_profile(x, 20, 10))
