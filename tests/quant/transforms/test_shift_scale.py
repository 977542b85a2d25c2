"""Outlier Suppression+: invariants of its brief on any data, inputs as the paper rounds them, a plain checkpoint."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import skerry.quant as quant
from skerry.core.errors import ParameterError
from skerry.quant.activation import GroupDynamic, TensorStatic, TokenClip, TokenDynamic
from skerry.quant.engine import quantize_model
from skerry.quant.groups import Group
from skerry.quant.linear import PreparedLinear
from skerry.quant.numerics import AffineGrid
from skerry.quant.probe import GroupContext, Probe
from skerry.quant.recipe import Recipe
from skerry.quant.recipes import make_recipe
from skerry.quant.statistics import LayerStatistics
from skerry.quant.transforms.shift_scale import ShiftScale, channel_scale


class Fed(nn.Module):
    """A LayerNorm and two readers."""

    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.a = PreparedLinear(nn.Linear(width, 2))
        self.b = PreparedLinear(nn.Linear(width, 2, bias=False))

    def forward(self, x):
        y = self.norm(x)
        return torch.cat([self.a(y), self.b(y)], -1)


def fed(width=3):
    model = Fed(width).requires_grad_(False)
    return model, Group("ab", {"a": model.a, "b": model.b}, "norm", "norm")


def observed(model, group, x, weight, activation):
    context = GroupContext(model, weight, activation, Probe([model]))
    with context.probe.listening():
        model(x)
    return LayerStatistics.of(model.norm(x)), context


@given(st.lists(st.floats(0.0, 500.0), min_size=1, max_size=12), st.floats(0.05, 500.0))
def test_only_wide_channels_are_scaled_and_none_is_amplified(half, threshold):
    half = torch.tensor(half, dtype=torch.float64)
    s = channel_scale(half, threshold)
    assert bool((s >= 1.0).all())
    assert bool((s[half <= threshold] == 1.0).all())
    torch.testing.assert_close((half / s).clamp(max=threshold), half / s)
    assert torch.equal(channel_scale(half, max(float(half.max()), 1e-9)), torch.ones_like(half))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), bits=st.sampled_from([4, 6, 8]), token=st.booleans())
def test_the_search_on_any_data(seed, bits, token):
    """Within the threshold, symmetric, the function kept, at or under no scaling, and nothing left to do again."""
    torch.manual_seed(seed)
    model, group = fed(5)
    model.norm.weight *= torch.rand(5) * 20 + 0.1
    model.norm.bias += torch.randn(5) * 30
    x = torch.randn(48, 5)
    exact = model(x)
    activation = TokenDynamic(bits, False) if token else TensorStatic(bits)
    found, context = observed(model, group, x, AffineGrid(bits), activation)
    facts = ShiftScale(floor=0.5, n_grid=12).apply(group, found, context)
    y = model.norm(x)
    assert facts["error"] <= facts["error_without_scale"] or facts["threshold"] == facts["range"]
    torch.testing.assert_close(y.amax(0), -y.amin(0), atol=2e-4, rtol=0)
    assert float(y.abs().max()) <= facts["threshold"] * (1 + 1e-4)
    torch.testing.assert_close(model(x), exact, rtol=1e-3, atol=1e-3)
    # once more with the threshold found as the only one tried: no channel is wider, none moves
    again, context = observed(model, group, x, AffineGrid(bits), activation)
    kept = model.norm.weight.clone()
    once = ShiftScale(floor=facts["threshold"] * 1.001, n_grid=1).apply(group, again, context)
    assert once["largest_shift"] < 2e-4 and once["scaled_channels"] == 0
    torch.testing.assert_close(model.norm.weight, kept)


def test_symmetric_channels_are_not_shifted():
    model, group = fed()
    model.norm.bias.zero_()
    x = torch.randn(32, 3)
    found = LayerStatistics.of(torch.cat([model.norm(x), -model.norm(x)]))
    context = GroupContext(model, None, None, Probe([model]))
    facts = ShiftScale(scale=False).apply(group, found, context)
    assert facts["largest_shift"] < 1e-7 and float(model.norm.bias.abs().max()) < 1e-7


@pytest.mark.parametrize(
    ("given_", "kind"),
    [
        ({}, TensorStatic),
        ({"act": "token-clip"}, TensorStatic),
        ({"static": False}, TokenDynamic),
        ({"act": "token", "rms": "bias"}, TokenDynamic),
        ({"act": "group", "group_size": 16}, GroupDynamic),
    ],
)
def test_inputs_as_the_paper_rounds_them(given_, kind, tiny, inputs):
    model, batches = tiny("opt"), inputs("opt")
    recipe = quant.make_recipe("os-plus", "w6a6", n_grid=4, **given_)
    assert isinstance(recipe.activation, kind if given_.get("act") != "token-clip" else TokenClip)
    found = quant.quantize(model, recipe, calibration=batches)
    layer = found.model.decoder.layers[0].self_attn.q_proj
    assert isinstance(layer.activation, kind) and layer.activation.symmetric is False
    if given_.get("act") == "group":
        assert layer.solved.weight.grid.group_size == 16 and not layer.solved.weight.grid.symmetric
    assert quant.compare(model, found, batches, repetitions=1).signal_to_noise > 10.0


def test_an_unknown_way_to_round_inputs_is_refused():
    with pytest.raises(ParameterError, match="token-clip"):
        quant.make_recipe("os-plus", "w6a6", act="channel")


def test_what_is_exported_computes_bit_for_bit_the_same(tiny, inputs, tmp_path):
    """Weaker outliers and nothing else: an ordinary float checkpoint, read by transformers itself."""
    from transformers import OPTForCausalLM

    batches = inputs("opt")
    moves = Recipe("x", transforms=(ShiftScale(n_grid=4, folded_only=True),))
    found, _ = quantize_model(tiny("opt"), moves, calibration=batches)
    found.save_pretrained(tmp_path)
    again = OPTForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again.eval()(batches[0]).logits, found(batches[0]).logits)


def test_a_shift_that_stays_at_run_time_never_raises_the_error(tiny, inputs):
    model, batches = tiny("bert"), inputs("bert")
    for name, layer in model.named_modules():
        if name.endswith("intermediate.dense"):  # what its GELU gives is mostly 0, far from the middle of the range
            layer.weight.data *= 40.0
            layer.bias.data -= 2.0 * layer.weight.data.norm(dim=1)
    reports = [
        quantize_model(model, make_recipe("os-plus", "w4a16", shift=shift, n_grid=10), calibration=batches)[1]
        for shift in (True, False)
    ]
    first = [[t for t in r.transforms if t["group"].startswith("encoder.layer.0.")] for r in reports]
    assert len(first[0]) == len(first[1]) >= 4
    for shifted, plain in zip(*first, strict=True):
        assert shifted["error"] <= plain["error"] * (1 + 1e-6), shifted["group"]
    behind = next(t for t in first[0] if t["group"].endswith("layer.0.output.dense"))
    assert behind["largest_shift"] == 0.0
