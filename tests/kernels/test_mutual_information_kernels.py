"""The compiled estimators against plain NumPy twins."""

import numpy as np
import pytest
from scipy.special import digamma
from sklearn.metrics import mutual_info_score

from skerry.kernels import mutual_information as kernels


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
    ours = kernels.kde_continuous(x[None], y, (4 / 3) ** 0.2, 0.0, 1)
    assert ours[0] == pytest.approx(_twin(x, y), abs=1e-9)


def test_hostile_columns_stay_finite_and_blocks_do_not_matter():
    rng = np.random.default_rng(0)
    y = rng.normal(size=50)
    X = np.stack([np.zeros(50), np.r_[1e100, np.zeros(49)], np.full(50, np.nan), rng.integers(0, 2, 50), y * 1e-200])
    one = kernels.kde_continuous(X, y, 1.06, 0.0, 1)
    assert np.isfinite(one).all() and one[0] == one[2] == 0.0
    np.testing.assert_array_equal(one, kernels.kde_continuous(X, y, 1.06, 0.0, 3))
    psi = np.r_[0.0, digamma(np.arange(1, 52))]
    codes = (y > 0).astype(float)
    for value in (
        kernels.kde_classes(X, codes, 2, 1.06, 0.0),
        kernels.knn_continuous(X, y, 3, psi),
        kernels.knn_classes(X, codes, 2, 3, psi),
        kernels.binned_information(kernels.bin_columns(X), codes, 2, False),
    ):
        assert np.isfinite(value).all()


def test_binned_information_is_the_plug_in_value():
    rng = np.random.default_rng(1)
    codes = kernels.bin_columns(rng.normal(size=(4, 300)))
    y = rng.integers(0, 5, 300).astype(float)
    ours = kernels.binned_information(codes, y, 5, False)
    assert ours == pytest.approx([mutual_info_score(c, y) for c in codes], abs=1e-10)


def test_neighbours_equal_the_brute_force_count():
    x, y = np.random.default_rng(2).normal(size=(2, 80))
    (zx, _), (zy, _) = _scale(x), _scale(y)
    dx, dy = np.abs(zx[:, None] - zx), np.abs(zy[:, None] - zy)
    radius = np.sort(np.maximum(dx, dy), axis=1)[:, 3:4]
    counts = digamma((dx < radius).sum(1)) + digamma((dy < radius).sum(1))
    expected = max(0.0, digamma(3) + digamma(80) - counts.mean())
    psi = np.r_[0.0, digamma(np.arange(1, 82))]
    assert kernels.knn_continuous(x[None], y, 3, psi)[0] == pytest.approx(expected, abs=1e-9)
