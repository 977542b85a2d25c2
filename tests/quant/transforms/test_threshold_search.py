"""The threshold of Outlier Suppression+ is looked for coarsely, then closer and closer."""

import pytest
import torch
from torch import nn

from skerry.quant.activation import TokenClip
from skerry.quant.groups import Group
from skerry.quant.linear import PreparedLinear
from skerry.quant.numerics import AffineGrid
from skerry.quant.probe import PROBE_TOKENS, GroupContext, Probe
from skerry.quant.statistics import LayerStatistics
from skerry.quant.transforms.shift_scale import ShiftScale


def searched(seed, n_grid):
    """Return what the search tells, and how many thresholds it tried."""
    torch.manual_seed(seed)
    x = torch.randn(96, 12) * torch.rand(12)
    norm, layer = nn.LayerNorm(12), PreparedLinear(nn.Linear(12, 5))
    model = nn.Sequential(norm, layer).requires_grad_(False)
    norm.weight[:3] *= 30.0
    norm.bias += 5 * torch.randn(12)
    context = GroupContext(model, AffineGrid(6), TokenClip(6), Probe([model]))
    with context.probe.listening():
        model(x)
    looks, error = [], context.error
    context.error = lambda *a: looks.append(1) or error(*a)
    statistics = LayerStatistics.of(norm(x))
    return ShiftScale(floor=0.5, n_grid=n_grid).apply(Group("g", {"1": layer}, "0", "norm"), statistics, context), looks


@pytest.mark.parametrize("seed", range(4))
def test_a_look_from_afar_finds_what_trying_everything_does(seed):
    (quick, few), (slow, many) = searched(seed, "auto"), searched(seed, 120)
    assert quick["error"] <= quick["error_without_scale"] and slow["error"] <= slow["error_without_scale"]
    assert quick["error"] <= 1.05 * slow["error"]
    assert len(many) == 121 and len(few) < 50


def test_a_probe_keeps_few_tokens():
    layer = nn.Linear(4, 2)
    for tokens, kept in ((PROBE_TOKENS, 1), (PROBE_TOKENS // 2, 2), (10, 4)):
        probe = Probe([layer])
        with probe.listening():
            for _ in range(6):
                layer(torch.ones(tokens, 4))
        assert len(probe.calls) == kept
