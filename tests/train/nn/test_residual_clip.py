"""The negative control that clips the residual stream."""

import pytest

pytest.importorskip("torch", reason="needs the extra 'deep'")

import torch
from torch import nn

from skerry.core.errors import ParameterError
from skerry.train.nn import ResidualClip


class Pair(nn.Module):
    def forward(self, x):
        return x, "cache"


def test_it_clips_after_each_block_until_removed():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    for layer in net:
        nn.init.eye_(layer.weight)
        nn.init.constant_(layer.bias, 4.0)
    x = torch.tensor([[0.0, 10.0, -30.0]], requires_grad=True)
    with ResidualClip(net, 10.0) as clip:
        assert net(x).tolist() == [[8.0, 10.0, -6.0]]
        net(x).sum().backward()
        assert x.grad.tolist() == [[1.0, 0.0, 0.0]]
        assert clip.limit == 10
    assert net(x).tolist() == [[8.0, 18.0, -22.0]]


def test_blocks_that_return_more_than_the_stream():
    block = Pair()
    clip = ResidualClip([block], 1)
    out, cache = block(torch.tensor([5.0]))
    assert out.item() == 1 and cache == "cache"
    clip.remove()
    assert block(torch.tensor([5.0]))[0].item() == 5


def test_a_limit_must_be_positive():
    with pytest.raises(ParameterError, match="positive"):
        ResidualClip([], 0)
