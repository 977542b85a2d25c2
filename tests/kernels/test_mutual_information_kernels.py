"""The compiled estimators against plain NumPy twins."""

import numpy as np
import pytest
from scipy.special import digamma

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
    ours = kde_continuous(x[None], y, bandwidths.SPREAD, (4 / 3) ** 0.2)
    assert ours[0] == pytest.approx(_twin(x, y), abs=1e-9)


def test_hostile_columns_stay_finite_and_company_does_not_matter():
    rng = np.random.default_rng(0)
    y = rng.normal(size=50)
    X = np.stack([np.zeros(50), np.r_[1e100, np.zeros(49)], np.full(50, np.nan), rng.integers(0, 2, 50), y * 1e-200])
    one = kde_continuous(X, y, bandwidths.SPREAD, 1.06)
    assert np.isfinite(one).all() and one[0] == one[2] == 0.0
    np.testing.assert_array_equal(one[::-1], kde_continuous(X[::-1].copy(), y, bandwidths.SPREAD, 1.06))
    psi = np.r_[0.0, digamma(np.arange(1, 52))]
    codes = (y > 0).astype(float)
    for value in (
        kde_classes(X, codes, 2, bandwidths.SPREAD, 1.06),
        knn_continuous(X, y, 3, psi),
        knn_classes(X, codes, 2, 3, psi),
        binned_information(bin_columns(X), codes, 2, False),
    ):
        assert np.isfinite(value).all()


def _twin_of_classes(x, codes):
    """A density per class on one grid of 500, by the full matrix of kernel values."""
    z, spread = _scale(x)
    widths, shares, parts = [], [], []
    for c in np.unique(codes):
        own = z[codes == c]
        iqr = np.subtract(*np.percentile(own, [75, 25])) / 1.349
        h = max(min(own.std(ddof=1), iqr), 1e-2 * spread)
        widths.append(h * (4 / 3 / len(own)) ** 0.2)
        shares.append(len(own) / len(z))
    margin = max(widths) * 5**0.5
    grid = np.linspace(z.min() - margin, z.max() + margin, 500)
    step = grid[1] - grid[0]
    for c, h in zip(np.unique(codes), widths, strict=True):
        position = np.clip((z[codes == c] - grid[0]) / step, 0, 498.999999)
        weight = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(500))).sum(0)
        f = np.maximum(0, 1 - ((grid[:, None] - grid) / (h * 5**0.5)) ** 2) @ weight
        parts.append(f / f.sum())
    parts, shares = np.array(parts), np.array(shares)
    mixture = shares @ parts
    ratio = np.where(parts > 0, parts / np.where(mixture > 0, mixture, 1), 1)
    return float((shares[:, None] * parts * np.log(ratio)).sum())


@pytest.mark.parametrize("n_classes", [2, 4])
def test_densities_of_classes_equal_their_twin(n_classes):
    rng = np.random.default_rng(n_classes)
    codes = rng.integers(0, n_classes, 300).astype(float)
    x = rng.normal(size=300) * (1 + codes) + codes
    ours = kde_classes(x[None], codes, n_classes, bandwidths.SPREAD, (4 / 3) ** 0.2)
    assert ours[0] == pytest.approx(_twin_of_classes(x, codes), abs=1e-9)
