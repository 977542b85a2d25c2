"""SwitchSurprise counts values; switches are told from waves."""

import numpy as np
import pytest

from skerry.detect.series.switch_surprise import SwitchSurprise, is_switch


def test_switches_have_at_most_two_values():
    n = 30
    t = np.arange(n, dtype=float)
    X = np.column_stack([t % 2, t % 3, np.full(n, 4.0), np.full(n, np.nan), np.where(t > 3, np.nan, t), t > 7])
    assert is_switch(X).tolist() == [True, False, True, True, False, True]


def test_surprise_of_each_value():
    X = np.zeros((1_000, 2))
    X[:100, 0] = 1.0
    X[500:, 1] = np.nan
    X[0, 1] = 5.0
    got = SwitchSurprise().fit(X)
    tenth, once = np.log(10) / np.log(1_000), 1.0
    steps = [([0, 0], (np.log(1 / 0.9) / np.log(1_000)) ** 4), ([1, 0], tenth**4), ([0, 5], once), ([7, np.nan], 1.0)]
    for x, want in steps:
        assert got.anomaly_score(np.array([x], dtype=float))[0] == pytest.approx(want, abs=1e-9)
        assert got.update(x) == pytest.approx(want, abs=1e-9)
    assert got.anomaly_score(np.full((1, 2), np.nan))[0] == 0.0
    np.testing.assert_allclose(got.explain(np.array([[1.0, 5.0], [9.0, 9.0]])), [[0.0, 1.0], [0.5, 0.5]])
    assert SwitchSurprise().fit(np.full((3, 1), np.nan)).anomaly_score([[1.0]])[0] == 1.0
