"""The census counts what was planted, whatever the batches."""

import torch
from torch import nn

from skerry.quant.diagnose import input_census


def planted() -> torch.Tensor:
    x = torch.randn(4, 50, 32, generator=torch.Generator().manual_seed(0))
    x[..., 5] *= 40.0  # a channel loud on every token
    x[1, 7, 9], x[3, 20, 9] = 30_000.0, -30_000.0  # two massive values of another one
    return x


def test_channels_and_tokens_are_told_apart():
    x = planted()
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 4))
    found = input_census(model, [x])
    assert [f.layer for f in found] == ["0", "1"]
    assert (found[0].n_normal_channels, found[0].n_massive_tokens) == (2, 2)
    assert found[0].tokens == 200
    assert found[0].max == 30_000.0
    size = x.abs().flatten(0, 1)
    torch.testing.assert_close(found[0].p99_9, float(size.flatten().sort().values[round(0.999 * size.numel()) - 1]))
    assert found[0].as_row()["n_massive_tokens"] == 2


def test_batches_do_not_matter():
    x = planted()
    model = nn.Sequential(nn.Linear(32, 8))
    assert input_census(model, [x]) == input_census(model, list(x.split(1)), layers=["0"])


def test_an_even_input_has_no_outlier():
    x = torch.randn(8, 40, 16, generator=torch.Generator().manual_seed(2))
    found = input_census(nn.Sequential(nn.Linear(16, 3)), [x])[0]
    assert (found.n_normal_channels, found.n_massive_tokens) == (0, 0)
    assert 1.0 < found.channel_ratio < 3.0
    assert 1.0 < found.token_ratio < 5.0
