"""Finding and replacing the norms of any network."""

import pytest

pytest.importorskip("torch", reason="needs the extra 'deep'")

import torch
from torch import nn

from skerry.core.errors import ModelError
from skerry.train.nn import DyT, GatedNorm, SingleScaleRMSNorm, find_norms, replace_norms


class ForeignRMSNorm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.full((dim,), 2.0))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(4), ForeignRMSNorm(6)
        self.q_norm, self.image = nn.RMSNorm(4), nn.LayerNorm((3, 4))
        self.batch, self.group = nn.BatchNorm1d(4), nn.GroupNorm(2, 4)
        self.gated, self.single = GatedNorm(4), SingleScaleRMSNorm(5)
        self.linear = nn.Linear(4, 4)
        self.alias = self.norm1


def test_what_is_a_norm():
    widths = {name: width for name, (_, width) in find_norms(Block()).items()}
    assert widths == {"norm1": 4, "norm2": 6, "gated": 4, "single": 5, "alias": 4}
    assert set(find_norms(Block(), "q_")) == {"q_norm"}
    assert set(find_norms(Block(), lambda name, m: isinstance(m, nn.LayerNorm))) == {"norm1", "alias"}


def test_replacing_keeps_places_modes_and_sharing():
    block = Block().double().eval()
    assert replace_norms(block, DyT) is block
    assert [type(m) for m in (block.norm1, block.norm2, block.gated, block.single)] == [DyT] * 4
    assert block.alias is block.norm1 and block.norm2.weight.shape == (6,)
    assert block.norm1.weight.dtype == torch.float64 and not block.norm1.training
    assert type(block.q_norm) is nn.RMSNorm and type(block.image) is nn.LayerNorm


def test_gain_and_bias_are_taken_over_on_request():
    block = Block()
    nn.init.normal_(block.norm1.weight)
    nn.init.normal_(block.norm1.bias)
    weight, bias = block.norm1.weight.clone(), block.norm1.bias.clone()
    replace_norms(block, DyT, "norm1", copy_affine=True)
    assert torch.equal(block.norm1.weight, weight) and torch.equal(block.norm1.bias, bias)
    replace_norms(block, GatedNorm, "norm1", copy_affine=True)
    assert torch.equal(block.norm1.norm.weight, weight)
    replace_norms(block, DyT, "norm2")
    assert (block.norm2.weight == 1).all()


def test_a_match_that_finds_nothing_is_an_error():
    with pytest.raises(ModelError, match="that matches"):
        replace_norms(Block(), DyT, "attention")
    with pytest.raises(ModelError, match="itself a norm"):
        replace_norms(nn.LayerNorm(3), DyT)


class GemmaLikeRMSNorm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim))

    def forward(self, x):
        return (1 + self.weight) * nn.functional.rms_norm(x, self.weight.shape)


class PlainRMSNorm(ForeignRMSNorm):
    def forward(self, x):
        return nn.functional.rms_norm(x, self.weight.shape, self.weight)


def test_a_gain_that_means_something_else_is_not_copied():
    net = nn.Sequential(GemmaLikeRMSNorm(6), nn.Linear(6, 2))
    with pytest.raises(ModelError, match="does not multiply the normalised input"):
        replace_norms(net, nn.RMSNorm, copy_affine=True)
    assert isinstance(replace_norms(net, nn.RMSNorm)[0], nn.RMSNorm)
    plain = nn.Sequential(PlainRMSNorm(6), nn.Linear(6, 2))
    assert (replace_norms(plain, nn.RMSNorm, copy_affine=True)[0].weight == 2).all()
