"""Every metric beside a naive twin, on hand-made tensors, and the Gaussian floor."""

import math

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra 'deep'")

import torch

from skerry.core.errors import ParameterError
from skerry.deep import outlier_metrics as om


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_golden_values_of_the_two_kurtoses():
    rows = torch.tensor([[1.0, 2, 3, 40], [1, -2, 2, -1]])
    assert om.excess_kurtosis(rows).tolist() == pytest.approx([1.893050, 0], abs=1e-6)
    assert om.excess_kurtosis(rows).mean().item() == pytest.approx(0.946525, abs=1e-6)
    odd = torch.tensor([[1.0, 2, 3, 4, 100]])
    assert om.sequence_kurtosis(odd).item() == pytest.approx(2.077899, abs=1e-5)
    assert om.excess_kurtosis(odd).item() == pytest.approx(2.525635, abs=1e-5)  # the other paper's: never mix them


def test_excess_kurtosis_naive():
    x = gaussian(3, 5, 24).numpy() * [1.0] * 24
    x[..., 3] *= 20
    want = np.maximum((x**4).mean(-1) / x.std(-1, ddof=1) ** 4 - 3, 0)
    assert om.excess_kurtosis(torch.tensor(x)).numpy() == pytest.approx(want, rel=1e-6)


def test_tokens_without_spread_give_zero():
    assert om.excess_kurtosis(torch.zeros(2, 8)).tolist() == [0, 0]
    assert om.excess_kurtosis(torch.full((1, 8), 3.0)).tolist() == [0]


def test_half_precision_is_computed_in_float32():
    x = torch.full((1, 64), 300.0, dtype=torch.float16)
    x[0, 0] = -60_000
    assert math.isfinite(om.excess_kurtosis(x).item()) and math.isfinite(om.sequence_kurtosis(x[None]).item())


@pytest.mark.parametrize("d", [64, 128, 256, 512, 1024, 2048])
def test_the_floor_is_what_gaussian_rows_give(d):
    told = {64: 0.182, 128: 0.136, 256: 0.109, 512: 0.078, 1024: 0.057, 2048: 0.042}[d]
    assert om.gaussian_floor(d) == pytest.approx(told, rel=0.1)
    assert om.excess_kurtosis(gaussian(4000, d)).mean().item() == pytest.approx(om.gaussian_floor(d), rel=0.1)


def test_the_floor_between_and_beyond_the_table():
    assert om.gaussian_floor(64) > om.gaussian_floor(96) > om.gaussian_floor(128)
    assert om.gaussian_floor(32768) == pytest.approx(om.gaussian_floor(8192) / 2)
    with pytest.raises(ParameterError, match="16"):
        om.gaussian_floor(8)


def test_sequence_kurtosis_of_a_gaussian_is_three_and_scale_free():
    x = gaussian(2, 500, 500)
    assert om.sequence_kurtosis(x).numpy() == pytest.approx(3, abs=0.05)
    assert om.sequence_kurtosis(7 * x + 3).numpy() == pytest.approx(om.sequence_kurtosis(x).numpy(), rel=1e-3)


def test_inf_norm_is_per_sequence():
    x = gaussian(3, 4, 5)
    assert om.infinity_norm(x).tolist() == pytest.approx([float(np.abs(s).max()) for s in x.numpy()])


def test_channels():
    x = gaussian(6, 7, 16)
    s = om.channel_rms(x)
    want = np.sqrt((x.numpy().reshape(-1, 16) ** 2).mean(0))
    assert s.numpy() == pytest.approx(want, rel=1e-5)
    one = torch.zeros(16)
    one[5] = 3
    assert om.feature_kurtosis(one) == pytest.approx(16)
    assert om.feature_kurtosis(torch.ones(16)) == pytest.approx(1)
    assert om.max_median_ratio(torch.tensor([1.0, 1, 1, 5])) == pytest.approx(5)


def test_massive_needs_both_bounds():
    x = torch.full((10, 200), 0.01)
    x[0, 0] = 150
    assert om.is_massive(x) and om.peak(x) == 150 and om.max_to_median(x) == pytest.approx(15000)
    assert not om.is_massive(x / 2)  # 75 is not above 100
    assert not om.is_massive(x.clamp_min(1.0))  # 150 medians


def test_sink_mass_leaves_out_early_queries():
    w = torch.zeros(2, 3, 12, 12)
    w[:, 1, 8:, 0] = 0.9
    w[:, 2, :8, 0] = 1.0
    assert om.sink_mass(w).tolist() == pytest.approx([0, 0.9, 0])
    with pytest.raises(ParameterError, match="8"):
        om.sink_mass(w[:, :, :8, :8])


def test_value_drain():
    v = gaussian(4, 9, 6)
    v[:, 0] *= 0.01
    norms = np.linalg.norm(v.numpy(), axis=-1)
    assert om.value_drain(v) == pytest.approx(norms[:, 0].mean() / norms[:, 1:].mean(), rel=1e-5)
