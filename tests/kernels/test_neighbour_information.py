"""Nearest-neighbour information against brute force over all pairs."""

import numpy as np
import pytest
from scipy.special import digamma

from skerry.kernels.neighbour_information import knn_classes, knn_continuous


def _scale(v):
    return np.clip((v - np.median(v)) / np.subtract(*np.percentile(v, [75, 25])), -10, 10)


def test_neighbours_equal_the_brute_force_count():
    x, y = np.random.default_rng(2).normal(size=(2, 80))
    zx, zy = _scale(x), _scale(y)
    dx, dy = np.abs(zx[:, None] - zx), np.abs(zy[:, None] - zy)
    radius = np.sort(np.maximum(dx, dy), axis=1)[:, 3:4]
    counts = digamma((dx < radius).sum(1)) + digamma((dy < radius).sum(1))
    expected = max(0.0, digamma(3) + digamma(80) - counts.mean())
    psi = np.r_[0.0, digamma(np.arange(1, 82))]
    assert knn_continuous(x[None], y, 3, psi)[0] == pytest.approx(expected, abs=1e-9)


def test_ross_estimator_equals_brute_force():
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 3, 90).astype(float)
    x = rng.normal(size=90) + codes
    z = _scale(x)
    gaps = np.abs(z[:, None] - z)
    total = 0.0
    for i in range(90):
        same = np.flatnonzero((codes == codes[i]) & (np.arange(90) != i))
        radius = np.sort(gaps[i, same])[2]
        total += digamma(3) - digamma(len(same) + 1) - digamma((gaps[i] < radius).sum())
    psi = np.r_[0.0, digamma(np.arange(1, 92))]
    ours = knn_classes(x[None], codes, 3, 3, psi)[0]
    assert ours == pytest.approx(max(0.0, digamma(90) + total / 90), abs=1e-9)
