"""The density against scipy's, its limits, and where a likelihood stops having a maximum."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import gammaln
from scipy.stats import multivariate_normal, multivariate_t

from skerry.robust.q_gaussian import lowest_safe_df, q_gaussian_logpdf


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), df=st.floats(0.3, 500.0), d=st.integers(1, 6))
def test_density_is_the_multivariate_student(seed, df, d):
    rng = np.random.default_rng(seed)
    B = rng.normal(size=(d, d))
    S, x = B @ B.T + np.eye(d), 3 * rng.normal(size=(5, d))
    distance, log_det = np.einsum("ij,jk,ik->i", x, np.linalg.inv(S), x), np.linalg.slogdet(S)[1]
    assert q_gaussian_logpdf(distance, log_det, d, df) == pytest.approx(
        multivariate_t(shape=S, df=df).logpdf(x), abs=1e-8
    )
    normal = multivariate_normal(cov=S).logpdf(x)
    near = np.abs(normal) < 50  # the approach to the limit is as fast as the distance squared over df
    assert q_gaussian_logpdf(distance, log_det, d, 1e6)[near] == pytest.approx(normal[near], abs=5e-3)
    assert q_gaussian_logpdf(distance, log_det, d, np.inf) == pytest.approx(normal, abs=1e-9)


def test_a_million_degrees_are_normal():
    x = np.linspace(-3, 3, 7)
    assert q_gaussian_logpdf(x**2, 0.0, 1, 1e6) == pytest.approx(-0.5 * (x**2 + np.log(2 * np.pi)), abs=1e-4)


def test_manuscripts_form_of_the_constant():
    q, n = 1.25, 3
    a = 1 / (q - 1)
    m = 2 * a - n
    theirs = gammaln(a) - gammaln(a - n / 2) - n / 2 * np.log(np.pi * m) - a * np.log1p(2.7 / m)
    assert q_gaussian_logpdf(2.7, 0.0, n, m) == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("n", [1, 5, 20, 100])
def test_profile_likelihood_of_one_draw_tends_to_the_gaussian(n):
    # at scale^2 = Q / n every squared distance is n: the likelihood depends on n and df alone, and only grows
    df = np.geomspace(0.1, 1e5, 200)
    profile = np.array([q_gaussian_logpdf(n, 0.0, n, m) for m in df])
    assert (np.diff(profile) > -1e-9).all()
    assert -profile[-1] - n / 2 * np.log(np.pi) == pytest.approx(0.8466 * n, rel=1e-3)


def test_lowest_safe_df_is_where_the_density_stops_falling():
    # 20 of 40 rows met exactly, each its own cluster: the likelihood in the scale grows below df = 1 only
    bound = lowest_safe_df(20, 40, 40)
    assert bound == pytest.approx(1.0)
    distance = np.r_[np.zeros(20), np.full(20, 4.0)]

    def likelihood(scale, df):
        return q_gaussian_logpdf(distance / scale**2, 2 * np.log(scale), 1, df).sum()

    for df, grows in ((0.8 * bound, True), (1.2 * bound, False)):
        assert (likelihood(1e-6, df) > likelihood(1e-3, df)) == grows
    assert lowest_safe_df(40, 40, 40) == np.inf
