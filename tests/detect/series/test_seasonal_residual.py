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


@pytest.mark.parametrize("seed", [396, 1204, 2015, *range(60)])  # the first three once looked past the longest lag
def test_periods_of_any_short_series_are_seen_three_times(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(40, 500))
    t = np.arange(n)
    x = np.sin(2 * np.pi * t / rng.uniform(5, n / 3)) + rng.uniform(0, 0.6) * rng.normal(size=n)
    x += rng.uniform(0, 1) * np.sin(2 * np.pi * t / rng.uniform(4, n / 2))
    assert all(2 <= period <= n // 3 + 1 for period in find_periods(x))


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
