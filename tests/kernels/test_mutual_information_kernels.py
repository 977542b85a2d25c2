"""The compiled estimators against plain NumPy twins."""

import numpy as np
import pytest
from scipy.fft import dct
from scipy.optimize import brentq
from scipy.special import digamma
from sklearn.metrics import mutual_info_score

from skerry.kernels import bandwidths
from skerry.kernels.binned_information import bin_columns, binned_information
from skerry.kernels.mutual_information import kde_classes, kde_continuous
from skerry.kernels.neighbour_information import knn_classes, knn_continuous


def _scale(v):
    iqr = np.subtract(*np.percentile(v, [75, 25]))
    z = np.clip((v - np.median(v)) / iqr, -10, 10)
    return z, min(z.std(ddof=1), 1 / 1.349)


def _twin(x, y):
    """The product density evaluated at grid points from binned weights, by matrix products."""
    sides = []
    for v in (x, y):
        z, s = _scale(v)
        h = s * (4 / 3 / len(v)) ** 0.2 * 5**0.5
        low, high = z.min() - h, z.max() + h
        grid = np.linspace(low, high, 300)
        position = np.clip((z - low) / (grid[1] - grid[0]), 0, 298.999999)
        share = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(300)))
        sides.append(share @ np.maximum(0, 1 - ((grid[:, None] - grid) / h) ** 2))
    f = sides[0].T @ sides[1]
    f /= f.sum()
    a, b = f.sum(1, keepdims=True), f.sum(0, keepdims=True)
    keep = f > 0
    return float((f[keep] * np.log(f[keep] / (a * b)[keep])).sum())


@pytest.mark.parametrize("n", [5, 60, 400])
def test_density_on_the_plane_equals_its_twin(n):
    x, y = np.random.default_rng(n).standard_t(3, size=(2, n))
    ours = kde_continuous(x[None], y, bandwidths.SPREAD, (4 / 3) ** 0.2, 1)
    assert ours[0] == pytest.approx(_twin(x, y), abs=1e-9)


def test_hostile_columns_stay_finite_and_blocks_do_not_matter():
    rng = np.random.default_rng(0)
    y = rng.normal(size=50)
    X = np.stack([np.zeros(50), np.r_[1e100, np.zeros(49)], np.full(50, np.nan), rng.integers(0, 2, 50), y * 1e-200])
    one = kde_continuous(X, y, bandwidths.SPREAD, 1.06, 1)
    assert np.isfinite(one).all() and one[0] == one[2] == 0.0
    np.testing.assert_array_equal(one, kde_continuous(X, y, bandwidths.SPREAD, 1.06, 3))
    psi = np.r_[0.0, digamma(np.arange(1, 52))]
    codes = (y > 0).astype(float)
    for value in (
        kde_classes(X, codes, 2, bandwidths.SPREAD, 1.06),
        knn_continuous(X, y, 3, psi),
        knn_classes(X, codes, 2, 3, psi),
        binned_information(bin_columns(X), codes, 2, False),
    ):
        assert np.isfinite(value).all()


def test_binned_information_is_the_plug_in_value():
    rng = np.random.default_rng(1)
    codes = bin_columns(rng.normal(size=(4, 300)))
    y = rng.integers(0, 5, 300).astype(float)
    ours = binned_information(codes, y, 5, False)
    assert ours == pytest.approx([mutual_info_score(c, y) for c in codes], abs=1e-10)


def test_neighbours_equal_the_brute_force_count():
    x, y = np.random.default_rng(2).normal(size=(2, 80))
    (zx, _), (zy, _) = _scale(x), _scale(y)
    dx, dy = np.abs(zx[:, None] - zx), np.abs(zy[:, None] - zy)
    radius = np.sort(np.maximum(dx, dy), axis=1)[:, 3:4]
    counts = digamma((dx < radius).sum(1)) + digamma((dy < radius).sum(1))
    expected = max(0.0, digamma(3) + digamma(80) - counts.mean())
    psi = np.r_[0.0, digamma(np.arange(1, 82))]
    assert knn_continuous(x[None], y, 3, psi)[0] == pytest.approx(expected, abs=1e-9)


def _birge_rozenholc(v):
    """Codes of the number of equal-width bins that maximises the penalised likelihood, by numpy's histogram."""
    best, codes = -np.inf, np.zeros(len(v))
    for bins in range(2, 100):
        where = np.minimum(((v - v.min()) / np.ptp(v) * bins).astype(int), bins - 1)
        counts = np.bincount(where, minlength=bins)
        kept = counts[counts > 0]
        value = (kept * np.log(kept)).sum() + len(v) * np.log(bins) - (bins - 1 + np.log(bins) ** 2.5)
        if value > best:
            best, codes = value, where
    return codes


@pytest.mark.parametrize("draw", ["normal", "bimodal", "skewed", "uniform"])
def test_bins_and_their_information_equal_the_twin(draw):
    rng = np.random.default_rng(3)
    x = {
        "normal": rng.normal(size=500),
        "bimodal": rng.normal(size=500) + 8 * (rng.random(500) < 0.5),
        "skewed": rng.exponential(size=500),
        "uniform": rng.random(500),
    }[draw]
    y = x**2 + rng.normal(size=500)
    codes = bin_columns(np.stack([x, y]))
    np.testing.assert_array_equal(codes, [_birge_rozenholc(x), _birge_rozenholc(y)])
    ours = binned_information(codes[:1], codes[1], 99, False)[0]
    assert ours == pytest.approx(mutual_info_score(codes[0], codes[1]), abs=1e-10)
    table = np.histogram2d(codes[0], codes[1], bins=(99, 99), range=[(0, 99), (0, 99)])[0] / 500
    a, b = table.sum(1, keepdims=True), table.sum(0, keepdims=True)
    keep = table > 0
    assert ours == pytest.approx((table[keep] * np.log(table[keep] / (a * b)[keep])).sum(), abs=1e-10)


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
