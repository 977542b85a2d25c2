"""Scales and rotations inside a Mamba block keep its function, make channels alike, and help where it is planted."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.bench.mamba_models import MambaChar, new_mamba, plant_gates
from skerry.core.errors import ModelError, ParameterError
from skerry.quant.architectures.mamba_block import SplitMambaBlock
from skerry.quant.engine import quantize_model
from skerry.quant.linear import BlockRotation
from skerry.quant.recipe import Recipe
from skerry.quant.recipes import make_recipe
from skerry.quant.transforms.smooth_fused import PLACES, SmoothFused, StateHadamard, listening, smoothing

SMALL = MambaChar(width=16, blocks=2, states=4, rank=4)


def tiny(**others):
    model = new_mamba(dataclasses.replace(SMALL, **others), 32).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data *= 2.0
        else:
            parameter.data += 0.3 * torch.rand(parameter.shape, generator=torch.Generator().manual_seed(1))
    return model


def tokens(count=3):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 32, (4, 16), generator=generator) for _ in range(count)]


@torch.no_grad()
def difference(a, b, batch):
    x, y = (m(batch, use_cache=False).logits for m in (a, b))
    return float((x - y).norm() / y.norm())


def inputs_of(model, layer, batches):
    seen = []
    handle = model.get_submodule(layer).register_forward_pre_hook(lambda m, a: seen.append(a[0].detach()))
    with torch.no_grad():
        for batch in batches:
            model(batch, use_cache=False)
    handle.remove()
    return torch.cat(seen).flatten(0, -2)


@pytest.mark.parametrize("place", [*PLACES, "all", "rotations", "everything"])
@pytest.mark.parametrize("others", [{}, {"width": 10, "rank": 3, "states": 6}], ids=["hadamard", "none"])
def test_the_function_stays(place, others):
    model, batches = plant_gates(tiny(**others), steps=2), tokens()
    smooth = SmoothFused(PLACES if place in ("all", "everything") else (place,) if place in PLACES else ())
    online = StateHadamard(inputs=True)
    chosen = {"rotations": (online,), "everything": (smooth, online)}.get(place, (smooth,))
    found, report = quantize_model(model, Recipe("x", transforms=chosen), calibration=batches)
    assert all(difference(found, model, batch) < 1e-5 for batch in batches)
    assert report.transforms


@pytest.mark.parametrize("centre", [False, True])
def test_decoding_with_scaled_states_is_the_same(centre):
    model, batches = plant_gates(tiny(), steps=2), tokens()
    recipe = make_recipe("mambaquant", "w16a16", smooth=PLACES, rotate=("residual", "dt", "out", "state", "input"))
    found, _ = quantize_model(model, recipe, calibration=batches)
    given = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    prompt = batches[0][:, :5]
    a, b = (m.generate(prompt, **given) for m in (found, model))
    assert torch.equal(a.sequences, b.sequences)
    x, y = torch.stack(a.logits), torch.stack(b.logits)
    assert float((x - y).norm() / y.norm()) < 1e-5


def test_in_double_precision_the_function_stays_to_rounding():
    torch.manual_seed(0)
    block = SplitMambaBlock(tiny().backbone.layers[0]).double()
    X = torch.randn(2, 9, 16, dtype=torch.float64)
    mixer = block.mixer
    with torch.no_grad():
        before = mixer(X)
        s = torch.rand(32, dtype=torch.float64) + 0.1
        mixer.set_gate_scale(s.float())
        mixer.out_proj.weight *= s.float().double()
        mixer.rotate_state(BlockRotation(4))
        after = mixer(X)
    assert float((after - before).abs().max() / before.abs().max()) < 1e-9


def test_the_product_of_B_and_C_stays():
    model, batches = tiny(), tokens()
    found, _ = quantize_model(model, Recipe("x", transforms=(SmoothFused(("bc",)),)), calibration=batches)
    for old, new in zip(model.backbone.layers, found.backbone.layers, strict=True):
        _, B, C = old.mixer.x_proj.weight.split([4, 4, 4])
        b, c = new.mixer.B_proj.weight, new.mixer.C_proj.weight
        torch.testing.assert_close(torch.einsum("nd,ne->nde", b, c), torch.einsum("nd,ne->nde", B, C))
        assert float((b - B).abs().max()) > 0


def test_behind_the_scales_states_and_readout_have_one_range():
    model, batches = tiny(), tokens()
    for layer in model.backbone.layers:  # B and C far apart
        layer.mixer.x_proj.weight.data[4:8] *= 9.0
        layer.mixer.x_proj.weight.data[8:] /= 9.0
    found, _ = quantize_model(model, Recipe("x", transforms=(SmoothFused(("bc",)),)), calibration=batches)
    mixer, seen = found.backbone.layers[0].mixer, {}
    with listening(mixer, seen), torch.no_grad():
        for batch in batches:
            found(batch, use_cache=False)
    assert mixer.listener is None
    torch.testing.assert_close(seen["state"], seen["readout"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("place", ["gate", "dt"])
def test_channels_and_their_weights_meet_in_the_middle(place):
    model, batches = plant_gates(tiny(), steps=2), tokens()
    layer = f"backbone.layers.0.mixer.{'out_proj' if place == 'gate' else 'dt_proj'}"
    before = inputs_of(model, layer, batches).abs().amax(0)
    found, _ = quantize_model(model, Recipe("x", transforms=(SmoothFused((place,)),)), calibration=batches)
    X, W = inputs_of(found, layer, batches).abs().amax(0), found.get_submodule(layer).weight.abs().amax(0)
    torch.testing.assert_close(X, W, rtol=1e-3, atol=1e-4)  # alpha 0.5: both are sqrt(max|X| max|W|)
    assert float(before.max() / before.median()) > 3 * float(X.max() / X.median())


def test_the_convolutions_input_meets_its_kernels():
    model, batches = tiny(), tokens()
    found, _ = quantize_model(model, Recipe("x", transforms=(SmoothFused(("conv",)),)), calibration=batches)
    mixer, seen = found.backbone.layers[0].mixer, {}
    with listening(mixer, seen), torch.no_grad():
        for batch in batches:
            found(batch, use_cache=False)
    torch.testing.assert_close(seen["conv"], mixer.conv1d.weight.abs().amax((1, 2)), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(mixer.conv1d.bias, model.backbone.layers[0].mixer.conv1d.bias)


def test_variances_come_closer_and_the_peak_falls():
    model, batches = plant_gates(tiny(), steps=2), tokens()
    layer = "backbone.layers.0.mixer.out_proj"

    def measured(*transforms):
        found, _ = quantize_model(model, Recipe("x", transforms=transforms), calibration=batches)
        X = inputs_of(found, layer, batches)
        for change in getattr(found.get_submodule(layer), "before", ()):
            X = change(X)
        variances = X.var(0)
        return float(variances.max() / variances.min()), float(X.abs().max() / X.std())

    online = StateHadamard(state=False)
    bare, scaled, both = measured(), measured(SmoothFused(("gate",))), measured(SmoothFused(("gate",)), online)
    assert both[0] < scaled[0] < bare[0] / 10
    assert both[1] < scaled[1] < bare[1]


def test_planted_gates_cost_less_with_the_gate_smoothed():
    model, batches = plant_gates(tiny(), steps=2), tokens()

    def noise(smooth):
        found, report = quantize_model(
            model, make_recipe("mambaquant", "w8a8", smooth=smooth, rotate=()), calibration=batches
        )
        return next(x.signal_to_noise for x in report.layers if x.name.endswith("0.mixer.out_proj"))

    assert noise(("gate",)) > noise(()) + 3.0  # decibels


def test_the_whole_recipe_is_ahead_of_rounding_and_deterministic():
    model, batches = plant_gates(tiny(), steps=2), tokens()

    def run(**given):
        return quantize_model(model, make_recipe("mambaquant", "w8a8", **given), calibration=batches)[0]

    full, again, bare = run(), run(), run(smooth=(), rotate=())
    assert difference(full, again, batches[0]) == 0.0
    assert difference(full, model, batches[0]) < difference(bare, model, batches[0])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=8), st.floats(0, 1))
def test_scales_are_positive_and_finite(sizes, alpha):
    s = smoothing(torch.tensor(sizes), torch.tensor(sizes).flip(0), alpha)
    assert bool(torch.isfinite(s).all()) and float(s.min()) >= 0.00999


def test_models_of_another_kind_are_left_alone(tiny, inputs):
    model, batches = tiny("llama"), inputs("llama")
    recipe = Recipe("x", transforms=(SmoothFused(), StateHadamard()))
    found, report = quantize_model(model, recipe, calibration=batches)
    assert not report.transforms
    assert difference(found, model, batches[0]) == 0.0


def test_wrong_settings_are_refused():
    with pytest.raises(ParameterError, match="gate, bc, dt, conv, channel"):
        SmoothFused(("gates",))
    with pytest.raises(ParameterError, match="alpha"):
        SmoothFused(alpha=2.0)
    with pytest.raises(ParameterError, match="rotations are"):
        make_recipe("mambaquant", "w8a8", rotate=("left",))
    with pytest.raises(ParameterError, match="observer"):
        make_recipe("mambaquant", "w8a8", observer="other")
    mixer = SplitMambaBlock(new_mamba(SMALL, 32).backbone.layers[0]).mixer
    mixer.rotate_state(BlockRotation(4))
    with pytest.raises(ModelError, match="already"):
        mixer.rotate_state(BlockRotation(4))
