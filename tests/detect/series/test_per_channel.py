"""Detectors that score each channel by itself: one score from many, and the blame."""

import numpy as np
import pytest

from skerry.core.errors import ParameterError
from skerry.detect.series.matrix_profile import MatrixProfile
from skerry.detect.series.per_channel import PerChannel
from skerry.detect.series.seasonal_residual import SeasonalResidual
from skerry.detect.series.spectral_residual import SpectralResidual


@pytest.fixture(scope="module")
def X():
    X = np.random.default_rng(0).normal(size=(400, 3))
    X[200, 1] += 9.0
    return X


@pytest.mark.parametrize("make", [MatrixProfile, SeasonalResidual, SpectralResidual])
def test_channels_are_reduced_as_told_and_blamed_alone(make, X):
    assert issubclass(make, PerChannel)
    for reduce, want in (("max", np.max), ("mean", np.mean)):
        detector = make(channel_reduce=reduce).fit(X)
        parts = detector.explain(X)
        np.testing.assert_array_equal(detector.anomaly_score(X), want(parts, axis=1))
        for j in range(3):
            alone = make(channel_reduce=reduce).fit(X[:, j])
            np.testing.assert_allclose(alone.anomaly_score(X[:, j]), parts[:, j])
    with pytest.raises(ParameterError, match="channel_reduce"):
        make(channel_reduce="sum").fit(X)
