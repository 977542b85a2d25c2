"""Sheather and Jones' bandwidth against a twin with scipy's transform and root."""

import numpy as np
import pytest
from scipy.fft import dct
from scipy.optimize import brentq

from skerry.kernels import bandwidths


def _botev(z):
    """Botev, Grotowski and Kroese's equation with scipy's cosine transform and Brent's root."""
    span = np.ptp(z)
    low, width = z.min() - 0.1 * span, 1.2 * span
    cells = np.minimum(((z - low) / width * 1024).astype(int), 1023)
    energy = (dct(np.bincount(cells, minlength=1024) / len(z), type=2)[1:] / 2) ** 2
    k, n = np.arange(1.0, 1024.0), len(np.unique(z))

    def roughness(s, t):
        return 2 * np.pi ** (2 * s) * (k ** (2 * s) * energy * np.exp(-((k * np.pi) ** 2) * t)).sum()

    def excess(t):
        f = roughness(7, t)
        for s in range(6, 1, -1):
            constant = (1 + 0.5 ** (s + 0.5)) / 3 * np.prod(np.arange(1.0, 2 * s, 2)) / np.sqrt(2 * np.pi)
            f = roughness(s, (2 * constant / n / f) ** (2 / (3 + 2 * s)))
        return t - (2 * n * np.sqrt(np.pi) * f) ** (-0.4)

    return np.sqrt(brentq(excess, 1e-7, 0.05, xtol=1e-14)) * width


@pytest.mark.parametrize("n", [60, 500, 4000])
def test_sheather_jones_solves_botevs_equation(n):
    rng = np.random.default_rng(n)
    for z in (rng.normal(size=n), rng.normal(size=n) + 12 * (rng.random(n) < 0.5), rng.exponential(size=n)):
        assert bandwidths.sheather_jones(z) == pytest.approx(_botev(z), rel=1e-4)


def test_sheather_jones_knows_two_modes_from_one_wide_one():
    rng = np.random.default_rng(0)
    one = rng.normal(size=2000)
    two = one + 40.0 * (rng.random(2000) < 0.5)
    ideal = (4 / 3 / 2000) ** 0.2
    assert bandwidths.sheather_jones(one) == pytest.approx(ideal, rel=0.25)
    # each mode holds half the rows; Silverman's width follows the distance between the modes instead
    assert bandwidths.sheather_jones(two) == pytest.approx((4 / 3 / 1000) ** 0.2, rel=0.25)
    assert two.std() * ideal > 10 * bandwidths.sheather_jones(two)
    assert bandwidths.sheather_jones(np.zeros(20)) == 0.0
    rule = (bandwidths.PLUG_IN, 1.0)
    assert bandwidths.bandwidth(np.r_[0.0, 1.0, 1.0], 0.5, *rule) > 0.0
