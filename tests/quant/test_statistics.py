"""Statistics do not depend on how the tokens were cut into batches."""

import pytest
import torch

from skerry.core.errors import ModelError, ParameterError
from skerry.quant.statistics import KNOWN, LayerStatistics, StatisticsCollector


@pytest.mark.parametrize("cuts", [1, 3, 7])
def test_streaming_equals_in_memory(cuts):
    X = torch.randn(42, 5, 6, generator=torch.Generator().manual_seed(0))  # sequences of 5 tokens
    whole = LayerStatistics.of(X)
    collector = StatisticsCollector(KNOWN)
    for part in X.split(42 // cuts):
        collector.update(part)
    found = collector.finish()
    flat = X.reshape(-1, 6).double()
    assert found.tokens == whole.tokens == 210
    torch.testing.assert_close(found.gram, flat.T @ flat, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(found.covariance, torch.cov(flat.T), rtol=1e-5, atol=1e-6)
    for field in ("low", "high", "absmax", "mean_abs", "mid_range", "mean", "sample"):
        torch.testing.assert_close(getattr(found, field), getattr(whole, field), rtol=1e-6, atol=1e-6)
    middles = ((X.amax(1) + X.amin(1)) / 2).mean(0)
    torch.testing.assert_close(found.mid_range, middles)


def test_padding_is_left_out():
    X = torch.zeros(1, 4, 2)
    X[0, :2] = torch.tensor([[1.0, -1.0], [3.0, 5.0]])
    X[0, 2:] = 1000.0
    collector = StatisticsCollector({"range"})
    collector.update(X, torch.tensor([[1, 1, 0, 0]]))
    found = collector.finish()
    assert found.high.tolist() == [3.0, 5.0] and found.tokens == 2


def test_what_is_broken_is_named():
    collector = StatisticsCollector({"gram"}, "blocks.2.fc1")
    with pytest.raises(ModelError, match=r"blocks\.2\.fc1.*NaN"):
        collector.update(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(ModelError, match=r"blocks\.2\.fc1.*no calibration token"):
        collector.finish()
    with pytest.raises(ParameterError, match="unknown statistics"):
        StatisticsCollector({"grams"})
