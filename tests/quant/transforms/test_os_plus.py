"""Outlier Suppression+ and OutlierTune: the golden values and invariants of their papers."""

import pytest
import torch
from torch import nn

import skerry.quant as quant
from skerry.quant.activation import RoundClamp
from skerry.quant.engine import output_of, quantize_model
from skerry.quant.groups import Group
from skerry.quant.linear import PreparedLinear
from skerry.quant.numerics import AffineGrid
from skerry.quant.probe import GroupContext, Probe
from skerry.quant.recipe import Recipe
from skerry.quant.statistics import LayerStatistics
from skerry.quant.transforms.shift_scale import ShiftScale, channel_scale
from skerry.quant.transforms.symmetrize import PreDequant, Symmetrize

X = torch.tensor([[10.0, -1.0, 0.5], [14.0, 1.0, -0.5], [12.0, 0.0, 0.25], [11.0, -2.0, 0.0]])


class Fed(nn.Module):
    """A LayerNorm and two readers."""

    def __init__(self, width=3, out=2):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.a = PreparedLinear(nn.Linear(width, out))
        self.b = PreparedLinear(nn.Linear(width, out, bias=False))

    def forward(self, x):
        y = self.norm(x)
        return torch.cat([self.a(y), self.b(y)], -1)


def fed(width=3):
    torch.manual_seed(0)
    model = Fed(width).requires_grad_(False)
    model.norm.weight += torch.rand(width)
    model.norm.bias += torch.randn(width) * 5
    group = Group("ab", {"a": model.a, "b": model.b}, "norm", "norm")
    return model, group


def observed(model, group, x, weight=None, activation=None):
    context = GroupContext(model, weight, activation, Probe([model]))
    with context.probe.listening():
        model(x)
    return LayerStatistics.of(model.norm(x)), context


def test_golden_shift_and_scale():
    low, high = X.amin(0), X.amax(0)
    z = (low + high) / 2
    assert z.tolist() == [12.0, -0.5, 0.0]
    half = (high - low) / 2
    assert half.tolist() == [2.0, 1.5, 0.5]
    s = channel_scale(half, 1.0)
    assert s.tolist() == [2.0, 1.5, 1.0]
    layer = PreparedLinear(nn.Linear(3, 2).requires_grad_(False))
    layer.weight.copy_(torch.tensor([[0.2, -0.5, 0.3], [0.1, 0.4, -0.2]]))
    layer.bias.copy_(torch.tensor([0.1, -0.3]))
    exact = layer(X)
    Group("one", {"layer": layer}).rescale(nn.Module(), s, z)
    torch.testing.assert_close(layer.bias, torch.tensor([2.75, 0.7]))
    torch.testing.assert_close(layer.weight, torch.tensor([[0.4, -0.75, 0.3], [0.2, 0.6, -0.2]]))
    torch.testing.assert_close(layer(X), exact)


def test_after_it_channels_are_symmetric_and_within_the_threshold():
    model, group = fed()
    x = torch.randn(64, 3)
    exact = model(x)
    found, context = observed(model, group, x, AffineGrid(4), None)
    facts = ShiftScale(floor=0.2, n_grid=20).apply(group, found, context)
    y = model.norm(x)
    torch.testing.assert_close(y.amax(0), -y.amin(0), atol=1e-5, rtol=0)
    assert float(y.abs().max()) <= facts["threshold"] * (1 + 1e-5)
    torch.testing.assert_close(model(x), exact, rtol=1e-5, atol=1e-5)
    assert facts["error"] <= facts["error_without_scale"]
    again, context = observed(model, group, x)
    assert ShiftScale(scale=False).apply(group, again, context)["largest_shift"] < 1e-5


def test_without_shift_an_rms_norm_gets_no_parameter(tiny, inputs):
    plain = Recipe("x", transforms=(ShiftScale(n_grid=3, folded_only=True),))
    found, _ = quantize_model(tiny("llama"), plain, calibration=inputs("llama"))
    assert len(list(found.parameters())) == len(list(tiny("llama").parameters()))
    biased = Recipe("x", transforms=(ShiftScale(n_grid=3, rms="bias", folded_only=True),))
    found, _ = quantize_model(tiny("llama"), biased, calibration=inputs("llama"))
    assert len(list(found.parameters())) > len(list(tiny("llama").parameters()))


def test_golden_steps_of_outliertune():
    Y = torch.tensor([[8.0, -0.5], [12.0, 0.5], [10.0, 0.25]])
    W = torch.tensor([[0.5, -1.0], [0.25, 0.75]])
    for shift, columns, integers in (
        ([0.0, 0.0], [[6.0, -0.5], [3.0, 0.375]], [[85, -127], [127, 127], [106, 64]]),
        ([10.0, 0.0], [[1.0, -0.5], [0.5, 0.375]], [[-127, -127], [127, 127], [0, 64]]),
    ):
        centred = Y - torch.tensor(shift)
        step = centred.abs().amax(0) / 127
        torch.testing.assert_close(W * step * 127, torch.tensor(columns))
        assert RoundClamp(8).fake(centred / step).int().tolist() == integers


def test_symmetrize_takes_the_mean_of_the_sequences_mid_ranges():
    model, group = fed()
    sequences = torch.randn(4, 16, 3)
    exact = model(sequences)
    y = model.norm(sequences)
    wanted = ((y.amax(1) + y.amin(1)) / 2).mean(0)
    found = LayerStatistics.of(y)
    before = model.norm.bias.clone()
    Symmetrize().apply(group, found, GroupContext(model, None, None, Probe([model])))
    torch.testing.assert_close(before - model.norm.bias, wanted)
    torch.testing.assert_close(model(sequences), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("range_", ["absmax", "mse"])
def test_integers_use_the_whole_range(range_):
    model, group = fed()
    x = torch.randn(64, 3)
    exact = model(x)
    found, context = observed(model, group, x)
    PreDequant(bits=6, range=range_).apply(group, found, context)
    y = model.norm(x)
    top = RoundClamp(6).fake(y).abs().amax(0)
    assert torch.all(top >= 31) and (range_ == "mse" or torch.all(top == 31))
    torch.testing.assert_close(model(x), exact, rtol=1e-5, atol=1e-5)


def test_layers_behind_no_norm_are_left_alone(tiny, inputs):
    model = tiny("opt")
    recipe = Recipe("x", transforms=(Symmetrize(), PreDequant(8)))
    found, _ = quantize_model(model, recipe, calibration=inputs("opt"))
    for a, b in zip(model.model.decoder.layers, found.model.decoder.layers, strict=True):
        assert torch.equal(a.fc2.weight, b.fc2.weight) and torch.equal(
            a.self_attn.out_proj.weight, b.self_attn.out_proj.weight
        )
        assert not torch.equal(a.fc1.weight, b.fc1.weight)


def test_planted_gains_are_undone(tiny, inputs):
    """A planted model and its natural twin give nearly the same numbers under OutlierTune, and far apart under RTN."""
    model, batches = tiny("opt"), inputs("opt")
    planted = tiny("opt")
    with torch.no_grad():
        for block in planted.model.decoder.layers:
            for norm, readers in (
                (block.self_attn_layer_norm, (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj)),
                (block.final_layer_norm, (block.fc1,)),
            ):
                norm.weight[:2] *= 25.0
                norm.bias[:2] = norm.bias[:2] * 25.0 + 12.0
                for reader in readers:
                    reader.weight[:, :2] /= 25.0
                    reader.bias -= reader.weight[:, :2] @ torch.tensor([12.0, 12.0])

    def error(one, name, **settings):
        made = quant.quantize(one, name, "w6a6", batches, **settings)
        with torch.no_grad():
            exact = torch.cat([output_of(model(b)) for b in batches])
            given = torch.cat([output_of(made(b)) for b in batches])
        return float((given - exact).norm() / exact.norm())

    natural, twin = error(model, "outliertune"), error(planted, "outliertune")
    assert abs(twin - natural) < 0.3 * natural
    assert error(planted, "rtn", static=True) > 3 * error(model, "rtn", static=True)
    assert error(planted, "os-plus", n_grid=30, floor=0.3) < 0.5 * error(planted, "rtn", static=True)
