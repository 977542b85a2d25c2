"""Binning and its plug-in information against plain NumPy twins."""

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from skerry.kernels.binned_information import bin_columns, binned_information


def test_binned_information_is_the_plug_in_value():
    rng = np.random.default_rng(1)
    codes = bin_columns(rng.normal(size=(4, 300)))
    y = rng.integers(0, 5, 300).astype(float)
    ours = binned_information(codes, y, 5, False)
    assert ours == pytest.approx([mutual_info_score(c, y) for c in codes], abs=1e-10)


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


def test_miller_and_madow_take_off_their_term():
    rng = np.random.default_rng(4)
    codes, y = rng.integers(0, 4, (1, 200)).astype(float), rng.integers(0, 3, 200).astype(float)
    plain, corrected = (binned_information(codes, y, 3, m)[0] for m in (False, True))
    cells = len(np.unique(np.stack([codes[0], y]), axis=1).T)
    assert plain - corrected == pytest.approx((cells - 4 - 3 + 1) / 400, abs=1e-12)
