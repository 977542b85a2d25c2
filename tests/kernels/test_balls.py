"""Balls around sampled rows against NumPy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from skerry.kernels import balls

VALUES = st.sampled_from([0.0, 1.0, -1.0, 0.5, 3.0, 1e100, -1e100, 1e-100, 1e-160, -0.0, 1e-310, 1e300, -1e300])


def squares(a, b):
    with np.errstate(over="ignore"):
        return ((a[:, None] - b[None]) ** 2).sum(-1)


def naive_balls(centres):
    radii, terms = np.zeros(centres.shape[:2]), np.zeros(centres.shape[:2])
    for s, sample in enumerate(centres):
        if len(sample) > 1:
            D = np.sqrt(squares(sample, sample))
            np.fill_diagonal(D, np.inf)
            radii[s], near = D.min(1), D.argmin(1)
            positive = (radii[s] > 0) & np.isfinite(radii[s])
            terms[s, positive] = 1 - (radii[s][near])[positive] / radii[s][positive]
    return radii, terms


def naive_isolation(X, centres, radii, terms):
    out = np.zeros(len(X))
    for sample, radius, term in zip(centres, radii, terms, strict=True):
        covers = np.sqrt(squares(X, sample)) <= radius
        ball = np.where(covers, np.minimum(radius, 1.7e308), np.inf).argmin(1)
        out += np.where(covers.any(1), term[ball], 1.0)
    return out / len(centres)


@pytest.mark.parametrize("d", [1, 2, 3, 4, 7, 10])
@pytest.mark.parametrize("m", [1, 2, 16, 150])
def test_equal_to_numpy(d, m):
    rng = np.random.default_rng(d * m)
    centres = rng.normal(size=(5, m, d))
    radii, terms = balls.grow_balls(centres)
    for got, want in zip((radii, terms), naive_balls(centres), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)
    X = rng.normal(size=(300, d))
    got = balls.isolation(X, centres, radii, terms)
    np.testing.assert_allclose(got, naive_isolation(X, centres, radii, terms), rtol=1e-9)
    np.testing.assert_allclose(balls.attribute_isolation(X, centres, radii, terms).sum(1), got, rtol=1e-9)


@settings(max_examples=50, deadline=None)
@given(
    arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)), elements=VALUES), st.data()
)
def test_hostile_values(centres, data):
    radii, terms = balls.grow_balls(centres)
    X = data.draw(arrays(np.float64, (4, centres.shape[2]), elements=VALUES))
    got = balls.isolation(X, centres, radii, terms)
    naive_r, naive_t = naive_balls(centres)
    np.testing.assert_allclose(radii, naive_r, rtol=1e-10)
    np.testing.assert_allclose(terms, naive_t, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(got, naive_isolation(X, centres, radii, terms), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(balls.attribute_isolation(X, centres, radii, terms).sum(1), got, rtol=1e-9, atol=1e-12)
    alone = [balls.isolation(row[None], centres, radii, terms)[0] for row in X]
    np.testing.assert_array_equal(got, alone)


def test_a_centre_lies_on_the_ball_of_its_nearest_neighbour():
    for d in range(1, 12):
        centres = np.random.default_rng(d).normal(size=(1, 2, d))
        radii, terms = balls.grow_balls(centres)
        assert (balls.isolation(centres[0], centres, radii, terms) == 0.0).all()


def test_strided_tables_are_their_copies():
    wide = np.random.default_rng(0).normal(size=(400, 6))
    centres = wide[:40].reshape(4, 10, 6)[:, ::2, ::-2]
    radii, terms = balls.grow_balls(centres)
    for got, want in zip((radii, terms), balls.grow_balls(centres.copy()), strict=True):
        np.testing.assert_array_equal(got, want)
    X = wide[::3, ::-2]
    want = balls.isolation(X.copy(), centres.copy(), radii, terms)
    np.testing.assert_array_equal(balls.isolation(X, centres, radii, terms), want)
