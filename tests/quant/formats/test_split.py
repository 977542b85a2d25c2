"""SplitQuant: golden values and invariants of its brief."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import skerry.quant as quant
from skerry.core.errors import ModelError, ParameterError
from skerry.quant.formats.split import SplitGrid, SplitTensor, pack_parts, split_module, value_masks
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


@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 7), st.integers(0, 99), st.sampled_from([2, 3, 5, 8]))
def test_codes_and_parts_survive(clusters, inputs, out, seed, bits):
    """Of any size, also of one part; the bytes are those that were promised, and never more than ``bits + 2`` bits."""
    W = tailed(seed, out, inputs)
    stored = SplitGrid(bits, clusters=clusters).quantize(W)
    tensors = stored.tensors()
    assert ("parts" in tensors) == (len(stored.scale) > 1)
    rebuilt = SplitTensor.from_tensors(stored.meta(), tensors)
    assert torch.equal(rebuilt.codes, stored.codes) and torch.equal(rebuilt.parts, stored.parts)
    assert sum(t.numel() * t.element_size() for t in tensors.values()) == stored.nbytes
    sides = 5 * len(stored.scale)
    assert stored.nbytes - sides <= out * -(-inputs * bits // 8) + -(-2 * out * inputs // 8)


def test_parts_are_digits_of_base_three():
    """Against a decoder written as the layout is described: digit after digit, lowest first."""
    parts = torch.randint(0, 3, (7, 11), generator=torch.Generator().manual_seed(0))
    found = []
    for byte in pack_parts(parts, 3).tolist():
        for _ in range(5):
            found.append(byte % 3)
            byte //= 3
    assert found[:77] == parts.flatten().tolist() and len(found) == 80


def test_the_size_promised_is_that_of_the_file(tmp_path):
    """b + 1.6 bits, where three layers take 3 b and a code with its part side by side b + 2."""
    model = nn.Sequential(nn.Linear(100, 50))
    small = quant.quantize(model, "splitquant", "w4a16")
    promised = SplitGrid(4).bits_per_weight((50, 100))
    assert promised == pytest.approx(5.6 + 3 * 40 / 5000)
    assert quant.report_of(small).bits_per_weight == pytest.approx(promised)
    saved = quant.save(small, tmp_path / "out")
    assert saved["bytes"] == 5000 * promised / 8 + 4 * 50  # and the bias
    back = quant.load(tmp_path / "out", nn.Sequential(nn.Linear(100, 50)))
    x = torch.randn(3, 100, generator=torch.Generator().manual_seed(0))
    assert torch.equal(back(x), small(x))
    wanted = back(x)
    assert quant.use_kernels(back) == {"0": "reference"}
    torch.testing.assert_close(back(x), wanted)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ({"parts": torch.full((12,), 243, dtype=torch.uint8)}, "no scale"),
        ({"parts": torch.zeros(11, dtype=torch.uint8)}, "do not belong"),
        ({"scale": torch.zeros(4, 1, 1)}, "1 to 3 parts"),
        ({"packed": torch.zeros(6, 4, dtype=torch.uint8)}, "packed codes"),
    ],
)
def test_damaged_parts_are_told(damage, reason):
    stored = SplitGrid(4).quantize(tailed(0))
    with pytest.raises(ModelError, match=reason):
        SplitTensor.from_tensors(stored.meta(), stored.tensors() | damage)


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
    assert 5.6 < quant.report_of(split).bits_per_weight < 6.0
    plain = quant.quantize(model, quant.Recipe("x", AffineGrid(4, symmetric=False, group_size=0)))
    a, b = (quant.compare(model, m, inputs("opt"), repetitions=1).signal_to_noise for m in (split, plain))
    assert a > b + 3.0


def test_what_cannot_be_split_is_refused():
    with pytest.raises(ModelError, match="cannot be split"):
        split_module(nn.LayerNorm(3))
    with pytest.raises(ParameterError, match="granularity"):
        split_module(nn.Linear(3, 3), granularity="row")
    with pytest.raises(ParameterError, match="2 to 8 bits"):
        quant.make_recipe("splitquant", "w16a8")
