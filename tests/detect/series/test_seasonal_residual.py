"""Periods and medians on series whose parts are known."""

import numpy as np
import pytest

from skerry.core.errors import ParameterError
from skerry.detect.series.seasonal_residual import SeasonalResidual, find_periods


@pytest.mark.parametrize("period", [7, 24, 60, 288])
def test_the_period_is_found_under_noise_drift_and_spikes(period):
    rng = np.random.default_rng(period)
    t = np.arange(10 * period)
    x = 2 * np.cos(2 * np.pi * t / period) + np.sin(4 * np.pi * t / period + 1) + 0.3 * rng.normal(size=t.size)
    x[rng.choice(t.size, 3, replace=False)] += 50
    assert find_periods(x)[0] == pytest.approx(period, abs=1)


def test_noise_and_a_random_walk_have_none():
    rng = np.random.default_rng(0)
    assert find_periods(rng.normal(size=3_000)) == []
    assert find_periods(np.linspace(0, 5, 500)) == []
    assert find_periods(np.full(100, 3.0)) == []


def test_level_and_cycles_leave_nothing_but_the_outlier():
    t = np.arange(1_200)
    x = 10 + 3 * np.sin(2 * np.pi * t / 24) + np.sin(2 * np.pi * t / 168)
    x[500] += 4.0
    rest = SeasonalResidual(periods=[24, 168]).residual(x)
    assert rest[500] == pytest.approx(4.0, abs=0.2)
    inner = np.delete(rest, 500)[340:-340]
    assert np.abs(inner).max() < 0.25


def test_periods_are_checked():
    with pytest.raises(ParameterError, match="whole numbers"):
        SeasonalResidual(periods=[1.5]).fit(np.arange(50.0))
