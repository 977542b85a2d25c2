"""A split Mamba block computes what transformers' does, is saved, loaded and put together again."""

import copy
import dataclasses
import json

import pytest
import torch

import skerry.quant as quant
from skerry.bench.mamba_models import MambaChar, new_mamba, plant_gates
from skerry.core.errors import ModelError
from skerry.quant.architectures.base import architecture_of
from skerry.quant.architectures.mamba_block import SplitMambaBlock, SplitMambaMixer, gated_silu, split_linear
from skerry.quant.engine import quantize_model
from skerry.quant.recipes import make_recipe

SMALL = MambaChar(width=16, blocks=2, states=4, rank=4)


def tiny(**settings):
    model = new_mamba(dataclasses.replace(SMALL, **settings), 32).eval()
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():  # norms that do something, projections that are not tiny
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.rand(parameter.shape, generator=generator)
        else:
            parameter.data *= 2.0
    return model


def tokens(count=3, length=12, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 32, (2, length), generator=generator) for _ in range(count)]


def split_of(model):
    found = copy.deepcopy(model)
    architecture_of(found).prepare(found)
    return found


@torch.no_grad()
def logits(model, x, **others):
    return model(x, use_cache=False, **others).logits


def close(a, b, tolerance=1e-5):
    return float((a - b).norm() / b.norm()) < tolerance


def test_split_blocks_compute_the_same():
    model, x = tiny(), tokens()[0]
    split = split_of(model)
    assert isinstance(split.backbone.layers[0], SplitMambaBlock)
    assert close(logits(split, x), logits(model, x))
    mask = torch.ones_like(x)
    mask[0, :4] = 0
    assert close(logits(split, x, attention_mask=mask), logits(model, x, attention_mask=mask))
    assert close(logits(split, x[:, :2]), logits(model, x[:, :2]))  # shorter than the convolution


@pytest.mark.parametrize("prompt", [2, 5])
def test_decoding_from_a_cache_is_the_same(prompt):
    model, x = tiny(), tokens()[0][:, :prompt]
    split = split_of(model)
    settings = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    ours, theirs = split.generate(x, **settings), model.generate(x, **settings)
    assert torch.equal(ours.sequences, theirs.sequences)
    assert close(torch.stack(ours.logits), torch.stack(theirs.logits))


@torch.no_grad()
def test_a_cache_goes_on_with_several_tokens():
    split, x = split_of(tiny()), tokens()[0]
    first = split(x[:, :5], use_cache=True)
    name = "cache" if "cache" in first else "cache_params"  # before transformers 5.24
    rest = split(x[:, 5:], use_cache=True, **{name: first[name]})
    assert close(torch.cat([first.logits, rest.logits], 1), logits(split, x))


def test_long_texts_are_scanned_in_parts(monkeypatch):
    split, x = split_of(tiny()), tokens()[0]
    whole = logits(split, x)
    monkeypatch.setattr("skerry.quant.architectures.mamba_block.CHUNK", 1)
    assert close(logits(split, x), whole, 1e-6)


def test_put_together_again_it_is_the_model():
    model = tiny()
    split = split_of(model)
    whole = architecture_of(split).restore(split)
    assert whole.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(t, model.state_dict()[k]) for k, t in whole.state_dict().items())
    planted = plant_gates(model, steps=2)
    with pytest.raises(ModelError, match="gate scale"):
        architecture_of(planted).restore(planted)


def test_planted_outliers_are_there_and_change_nothing():
    model, x = tiny(), tokens()[0]
    planted = plant_gates(model, steps=2)
    assert close(logits(planted, x), logits(model, x))
    mixer, plain = planted.backbone.layers[0].mixer, model.backbone.layers[0].mixer
    ratio = (mixer.gate_proj.weight / plain.in_proj.weight[32:]).detach().mean(1)
    assert sorted(ratio.round(decimals=3).tolist()) == [1.0] * 31 + [20.0]
    assert float(mixer.gate_scale.min()) == pytest.approx(0.05)


def test_the_gate_with_a_scale():
    z = torch.linspace(-4, 4, 9)
    assert torch.equal(gated_silu(z), torch.nn.functional.silu(z))
    assert torch.equal(gated_silu(z, torch.ones(9)), z * torch.sigmoid(z))
    for s in (0.05, 1.0, 4.0):
        scale = torch.full((9,), s)
        torch.testing.assert_close(gated_silu(z / s, scale) * s, torch.nn.functional.silu(z), atol=1e-6, rtol=1e-5)


def test_split_linear_keeps_biases():
    linear, x = torch.nn.Linear(3, 5), torch.randn(2, 3)
    parts = split_linear(linear, [2, 3])
    torch.testing.assert_close(torch.cat([p(x) for p in parts], 1), linear(x))


@pytest.mark.parametrize("recipe", ["rtn", "smoothquant", "quarot", "gptq"])
def test_recipes_of_others_work(recipe):
    model, batches = tiny(), tokens()
    found, report = quantize_model(model, make_recipe(recipe, "w8a8"), calibration=batches)
    assert len(report.layers) == 2 * 7 and report.architecture == "Mamba"
    assert close(logits(found, batches[0]), logits(model, batches[0]), 0.2)


def test_the_order_of_states_and_gates():
    mixer = tiny().backbone.layers[0].mixer
    split = SplitMambaMixer(mixer)
    assert torch.equal(torch.cat([split.states_proj.weight, split.gate_proj.weight]), mixer.in_proj.weight)
    rows = torch.cat([split.step_proj.weight, split.B_proj.weight, split.C_proj.weight])
    assert torch.equal(rows, mixer.x_proj.weight)


@pytest.mark.parametrize("states", [4, 6])  # 6: no Hadamard matrix, the rotation is stored
def test_saved_and_loaded_it_computes_the_same(tmp_path, states):
    model, batches = plant_gates(tiny(states=states), steps=2), tokens()
    smooth = ("gate", "bc", "dt", "conv", "channel")
    found, _ = quantize_model(model, make_recipe("mambaquant", "w8a8", smooth=smooth, centre=True), calibration=batches)
    saved = quant.save(found, tmp_path / "out")
    assert saved["layout"] == "skerry-v1" and "original architecture" in saved["reason"]
    back = quant.load(tmp_path / "out")
    assert torch.equal(logits(back, batches[0]), logits(found, batches[0]))
    mixer = back.backbone.layers[1].mixer
    assert mixer.gate_scale is not None and mixer.channel_scale is not None
    assert mixer.conv_input == found.backbone.layers[1].mixer.conv_input and mixer.state.bits == 8
    again = quant.load(tmp_path / "out", tiny(states=states))  # into a float model
    assert torch.equal(logits(again, batches[0]), logits(found, batches[0]))


def test_dense_weights_are_those_of_transformers(tmp_path):
    from transformers import MambaForCausalLM

    model, batches = tiny(), tokens()
    recipe = make_recipe("mambaquant", "w4a16", smooth=("bc", "dt", "conv"), rotate=("residual", "dt"))
    found, _ = quantize_model(model, recipe, calibration=batches)
    quant.save(found, tmp_path / "out", layout="dense")
    back = MambaForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert close(logits(back, batches[0]), logits(found, batches[0]))


@pytest.mark.parametrize(
    ("settings", "reason"), [({}, "gate scale"), ({"smooth": (), "rotate": ("out",)}, "transformed at run time")]
)
def test_what_transformers_cannot_do_is_not_written(tmp_path, settings, reason):
    found, _ = quantize_model(tiny(), make_recipe("mambaquant", "w8a8", **settings), calibration=tokens())
    for layout, why in (("dense", reason), ("compressed-tensors", "original architecture")):
        with pytest.raises(ModelError, match=why):
            quant.save(found, tmp_path / layout, layout=layout)
        assert not (tmp_path / layout).exists()


@pytest.mark.parametrize(
    "damage", [{"kind": "other"}, {"state_rotation": {"block": 64}}, {"state": {"part": "AffineGrid"}}, {"state": 3}]
)
def test_damaged_descriptions_are_told(tmp_path, damage):
    found, _ = quantize_model(tiny(), make_recipe("mambaquant", "w8a8"), calibration=tokens())
    quant.save(found, tmp_path / "out")
    path = tmp_path / "out" / "skerry.json"
    data = json.loads(path.read_text())
    next(iter(data["blocks"].values())).update(damage)
    path.write_text(json.dumps(data))
    with pytest.raises(ModelError, match=r"skerry\.json"):
        quant.load(tmp_path / "out")
