"""Windowed against windows cut by hand."""

import numpy as np
import pytest

from skerry.core.series_detector import forward_filled, interpolated
from skerry.detect.series.windowed import Windowed
from skerry.detect.tabular.hbos import HBOS
from skerry.detect.tabular.knn import KNN


@pytest.mark.parametrize(("window", "stride"), [(1, 1), (5, 1), (8, 3), (7, 10)])
def test_rows_are_the_windows_that_end_at_each_step(window, stride):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 2)) * [1.0, 9.0] + 3.0
    detector = Windowed(KNN(n_neighbors=2), window=window, stride=stride).fit(X)
    z = (X - X.mean(axis=0)) / X.std(axis=0)
    rows = []
    for t in range(len(X)):
        back = [max(t - lag, 0) for lag in range(0, window, stride)]
        rows.append(np.concatenate([z[back, j] for j in range(2)]))
    np.testing.assert_allclose(detector.anomaly_score(X), KNN(n_neighbors=2).fit_score(np.array(rows)), rtol=1e-9)


def test_blocks_do_not_matter(monkeypatch):
    X = np.random.default_rng(1).normal(size=(200, 3))
    detector = Windowed(HBOS(), window=6).fit(X)
    whole = detector.anomaly_score(X)
    monkeypatch.setattr("skerry.detect.series.windowed.BLOCK_VALUES", 100)
    np.testing.assert_array_equal(detector.anomaly_score(X), whole)


def test_gaps_are_filled_forward_or_by_a_line():
    X = np.array([[np.nan, np.nan], [1.0, np.nan], [np.nan, np.nan], [3.0, np.nan]])
    np.testing.assert_array_equal(forward_filled(X, np.array([8.0, 9.0])), [[8, 9], [1, 9], [1, 9], [3, 9]])
    np.testing.assert_array_equal(interpolated(X, np.array([8.0, 9.0])), [[1, 9], [1, 9], [2, 9], [3, 9]])
