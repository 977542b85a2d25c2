"""SplitQuant: golden values and invariants of its brief."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import skerry.quant as quant
from skerry.core.errors import ModelError, ParameterError
from skerry.quant.formats.split import SplitGrid, SplitTensor, split_module, value_masks
from skerry.quant.numerics import AffineGrid

GOLDEN = torch.tensor([[-3, -2.6, -0.2, -0.1, 0, 0.05, 0.1, 0.15, 0.2, 2.9, 3.1, 3.3]])


def tailed(seed, out=6, inputs=10):
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(out, inputs, generator=generator)
    W.view(-1)[:: 7 + seed % 3] *= 8.0
    return W


def test_golden_split():
    masks, boundaries = value_masks(GOLDEN)
    assert boundaries == pytest.approx([-1.3857143, 1.5642857], abs=1e-6)
    assert [int(m.sum()) for m in masks] == [2, 7, 3]
    for bits, plain, split in ((2, 0.3029167, 0.0311574), (4, 0.0138167, 0.00021296)):
        whole = AffineGrid(bits, symmetric=False, group_size=0).round(GOLDEN)
        assert float(((whole - GOLDEN) ** 2).mean()) == pytest.approx(plain, abs=1e-6)
        parts = SplitGrid(bits).round(GOLDEN)
        assert float(((parts - GOLDEN) ** 2).mean()) == pytest.approx(split, abs=1e-6)
    middle = SplitGrid(2).round(GOLDEN)[0, 2:9]
    wanted = [-0.2666667, -0.1333333, 0.0, 0.0, 0.1333333, 0.1333333, 0.1333333]
    assert middle.tolist() == pytest.approx(wanted, abs=1e-6)


@given(st.integers(0, 500), st.sampled_from([2, 3, 4]), st.sampled_from([0, -1]))
def test_invariants(seed, bits, group_size):
    W = tailed(seed)
    masks, _ = value_masks(W)
    assert torch.equal(torch.stack(masks).sum(0), torch.ones(W.shape, dtype=torch.long))
    assert torch.equal(sum(W * m for m in masks), W)
    stored = SplitGrid(bits, group_size).quantize(W)
    plain = AffineGrid(bits, symmetric=False, group_size=group_size).quantize(W)
    assert torch.all(stored.scale <= plain.scale * (1 + 1e-6))
    layers = stored.layers()
    for i, layer in enumerate(layers):
        assert torch.all(layer[stored.parts != i] == 0.0)
    torch.testing.assert_close(sum(layers), stored.dequantize(), rtol=1e-6, atol=1e-6)
    rebuilt = SplitTensor.from_tensors(stored.meta(), stored.tensors())
    assert torch.equal(rebuilt.dequantize(), stored.dequantize())
    assert sum(t.numel() * t.element_size() for t in stored.tensors().values()) == stored.nbytes


def test_three_values_are_exact_at_two_bits():
    W = torch.tensor([[-5.0, 0.2, 7.0, 0.2], [7.0, 7.0, -5.0, 0.2]])
    torch.testing.assert_close(SplitGrid(2).round(W), W, atol=1e-6, rtol=0)


def test_better_than_plain_on_tails():
    for seed in range(20):
        W = tailed(seed, 16, 32)
        plain = (AffineGrid(3, symmetric=False, group_size=0).round(W) - W).square().mean()
        assert (SplitGrid(3).round(W) - W).square().mean() < 0.5 * plain


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("granularity", ["auto", "tensor", "channel"])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(9, 7), (5, 9)),
        (nn.Linear(9, 7, bias=False), (2, 5, 9)),
        (nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2), (2, 4, 9, 9)),
        (nn.Conv1d(3, 6, 3, padding=2), (2, 3, 11)),
        (nn.Conv2d(2, 4, 1), (1, 2, 3, 3)),  # two values a kernel: too few to split
    ],
)
def test_the_sum_of_the_parts_is_the_layer(layer, shape, granularity, bias):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        split_module(layer, granularity=granularity, bias=bias)(x), layer(x), atol=1e-5, rtol=1e-5
    )


def test_a_silent_bias_does_not_keep_the_weight_whole():
    layer = nn.Linear(8, 8)
    nn.init.zeros_(layer.bias)
    assert len(split_module(layer).layers) == 3
    nn.init.constant_(layer.weight, 0.5)
    assert split_module(layer) is layer


def test_the_recipe_needs_no_data_and_beats_one_scale(tiny, inputs):
    model = tiny("opt")
    model.model.decoder.layers[0].fc1.weight.data[0, 0] = 20.0
    split = quant.quantize(model, "splitquant", "w4a16")
    assert 6.0 < quant.report_of(split).bits_per_weight < 7.0
    plain = quant.quantize(model, quant.Recipe("x", AffineGrid(4, symmetric=False, group_size=0)))
    a, b = (quant.compare(model, m, inputs("opt"), repetitions=1).signal_to_noise for m in (split, plain))
    assert a > b + 3.0


def test_what_cannot_be_split_is_refused():
    with pytest.raises(ModelError, match="cannot be split"):
        split_module(nn.LayerNorm(3))
    with pytest.raises(ParameterError, match="granularity"):
        split_module(nn.Linear(3, 3), granularity="row")
    with pytest.raises(ParameterError, match="two bits more"):
        quant.make_recipe("splitquant", "w8a16")
