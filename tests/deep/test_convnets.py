"""Shapes, depths and sizes of the small convolutional networks."""

import pytest

pytest.importorskip("torch", reason="needs the extra 'deep'")

import torch
from torch import nn

from skerry.core.errors import ParameterError
from skerry.deep.convnets import VGG16, CifarResNet, SmallCNN


def count(model, kind):
    return sum(isinstance(m, kind) for m in model.modules())


@pytest.mark.parametrize("size", [28, 32, 45])
@pytest.mark.parametrize(
    "model", [SmallCNN(5, 2), CifarResNet(20, 5, 2, width=4), VGG16(5, 2, width=2)], ids=["small", "resnet", "vgg"]
)
def test_logits_and_gradients(model, size):
    logits = model.train()(torch.randn(3, 2, size, size))
    assert logits.shape == (3, 5)
    logits.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("depth", [20, 56, 110])
def test_the_depth_counts_layers_beside_the_shortcuts(depth):
    model = CifarResNet(depth, 10, width=2)
    assert count(model, nn.Conv2d) == depth - 1 + 2  # and two 1 x 1 shortcuts
    assert [len(s) for s in (model.layer1, model.layer2, model.layer3)] == [(depth - 2) // 6] * 3


def test_known_sizes():
    parameters = sum(p.numel() for n, p in CifarResNet(56, 10).named_parameters() if "shortcut" not in n)
    assert parameters == 853_018  # 0.85 million, as He et al. state
    assert count(VGG16(10, width=1), nn.Conv2d) == 13
    assert VGG16(10).features[-3].weight.shape == (512, 512, 3, 3)
    assert [m.out_channels for m in SmallCNN(10).modules() if isinstance(m, nn.Conv2d)] == [16, 32, 48]


def test_a_block_without_change_of_shape_has_a_plain_shortcut():
    model = CifarResNet(14, 3, width=2)
    assert isinstance(model.layer2[1].shortcut, nn.Identity)
    assert isinstance(model.layer2[0].shortcut, nn.Sequential)


@pytest.mark.parametrize("make", [lambda: CifarResNet(18, 10), lambda: SmallCNN(10, widths=()), lambda: VGG16(0)])
def test_impossible_sizes_are_refused(make):
    with pytest.raises(ParameterError):
        make()
