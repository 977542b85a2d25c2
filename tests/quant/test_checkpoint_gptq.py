"""The GPTQ layout: golden words, a decoder written from the layout's description, our own reader, what it refuses."""

import json

import pytest
import torch

pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from skerry.core.errors import ModelError
from skerry.quant.activation import TokenDynamic
from skerry.quant.api import quantize
from skerry.quant.checkpoint import load, save
from skerry.quant.checkpoint_gptq import GPTQForm, layer_tensors
from skerry.quant.linear import QuantizedLinear
from skerry.quant.numerics import AffineGrid
from skerry.quant.recipe import Recipe

GRIDS = {
    "4 bits, groups of 16": AffineGrid(4, group_size=16, scale_dtype="bfloat16"),
    "4 bits, rows": AffineGrid(4),
    "4 bits, one scale": AffineGrid(4, group_size=0),
    "4 bits, full range": AffineGrid(4, group_size=32, full_range=True, scale_dtype="float16"),
    "4 bits, asymmetric": AffineGrid(4, symmetric=False, group_size=16, scale_dtype="bfloat16"),
    "3 bits, groups of 32": AffineGrid(3, group_size=32, scale_dtype="bfloat16"),
    "3 bits, asymmetric": AffineGrid(3, symmetric=False),
    "2 bits, asymmetric": AffineGrid(2, symmetric=False, group_size=32, scale_dtype="bfloat16"),
    "8 bits, rows": AffineGrid(8),
    "8 bits, asymmetric": AffineGrid(8, symmetric=False, group_size=32, scale_dtype="bfloat16"),
}


def integers(words, bits):
    """Every ``bits`` bits of a row of 32-bit words, lowest first, one after the other across words."""
    found = []
    for row in words.tolist():
        stream = sum((word & 0xFFFFFFFF) << (32 * i) for i, word in enumerate(row))
        found.append([stream >> (bits * i) & (2**bits - 1) for i in range(32 * len(row) // bits)])
    return torch.tensor(found)


def decoded(tensors, bits, offset):
    """What a program that reads the folder computes with, entry by entry."""
    codes = integers(tensors["qweight"].T, bits)
    zeros = integers(tensors["qzeros"], bits) + offset
    W = torch.zeros(codes.shape)
    for j, group in enumerate(tensors["g_idx"].tolist()):
        W[:, j] = (codes[:, j] - zeros[group]) * tensors["scales"][group].float()
    return W


def llama():
    """One block whose widths fill whole words at 3 bits too."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=1,
                         num_attention_heads=4, num_key_value_heads=2)  # fmt: skip
    return LlamaForCausalLM(config).eval()


def logits(model):
    x = torch.randint(0, 64, (2, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(x).logits


def test_golden_words():
    W = torch.tensor([[-8.0, -7, -1, 0, 1, 2, 6, 7]] * 8)
    found = layer_tensors(AffineGrid(4, full_range=True).quantize(W, torch.ones(8, 1)), GPTQForm(4, -1, True))
    assert [w & 0xFFFFFFFF for w in found["qweight"][0].tolist()] == [0xFEA98710] * 8  # inputs go down a column
    assert found["qzeros"].tolist() == [[0x77777777]]
    asymmetric = AffineGrid(4, symmetric=False)
    weight = asymmetric.quantize(W, torch.ones(8, 1), torch.arange(-8, 0, dtype=torch.int32)[:, None])
    assert layer_tensors(weight, GPTQForm(4, -1, False))["qzeros"].tolist() == [[0x76543210]]  # as they are


@pytest.mark.parametrize("name", GRIDS)
def test_another_decoder_finds_the_weights(name, tmp_path):
    model = llama()
    model.model.layers[0].mlp.up_proj.weight.data[3] = 0.0  # a dead row: asymmetric zero 0, a scale below float16's
    model.model.layers[0].mlp.up_proj.weight.data[5].abs_()
    small = quantize(model, Recipe("x", GRIDS[name]))
    told = save(small, tmp_path / "out", layout="gptq")
    assert told["layout"] == "gptq" and told["reason"] is None
    config = json.loads((tmp_path / "out" / "quantize_config.json").read_text())
    assert config == json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    bits, size = int(name[0]), GRIDS[name].group_size
    assert (config["bits"], config["group_size"], config["desc_act"]) == (bits, size or -1, False)
    assert config["checkpoint_format"] == ("gptq" if config["sym"] else "gptq_v2")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert told["bytes"] == sum(t.nbytes for t in tensors.values())
    for layer, module in small.named_modules():
        if isinstance(module, QuantizedLinear):
            mine = {k.rpartition(".")[2]: t for k, t in tensors.items() if k.startswith(f"{layer}.")}
            W = module.solved.dense()
            found = decoded(mine, bits, offset=1 if config["sym"] else 0)
            torch.testing.assert_close(found, W, rtol=2.0**-10, atol=1e-9)
            assert not W[(found == 0)].abs().max() > 1e-9
    again = load(tmp_path / "out")
    torch.testing.assert_close(logits(again), logits(small), atol=1e-3 * float(logits(small).abs().max()), rtol=0)


def test_layers_of_rows_join_those_of_groups(tmp_path, tiny):
    recipe = Recipe("x", AffineGrid(4, group_size=16), overrides=(("*down_proj", {"weight": AffineGrid(4)}),))
    small = quantize(tiny("llama"), recipe)
    save(small, tmp_path / "out", layout="gptq")
    found = load_file(tmp_path / "out" / "model.safetensors")["model.layers.0.mlp.down_proj.scales"]
    assert found.shape == (4, 32) and torch.equal(found, found[:1].expand(4, -1))
    torch.testing.assert_close(logits(load(tmp_path / "out")), logits(small), atol=2e-3, rtol=2e-3)


def test_float_layers_are_named_and_gpt2_is_written(tmp_path, tiny):
    recipe = Recipe("x", AffineGrid(4, group_size=16), skip=("lm_head", "*.1.mlp.up_proj"))
    save(quantize(tiny("llama"), recipe), tmp_path / "llama", layout="gptq")
    config = json.loads((tmp_path / "llama" / "quantize_config.json").read_text())
    assert config["lm_head"] is False and config["dynamic"] == {r"-:^model\.layers\.1\.mlp\.up_proj$": {}}
    small = quantize(tiny("gpt2"), "rtn", "w4a16g32")
    save(small, tmp_path / "gpt2", layout="gptq")
    assert "transformer.h.0.attn.c_attn.bias" in load_file(tmp_path / "gpt2" / "model.safetensors")
    torch.testing.assert_close(logits(load(tmp_path / "gpt2")), logits(small), atol=1e-3, rtol=1e-3)


@pytest.fixture
def written(tmp_path, tiny):
    small = quantize(tiny("llama"), Recipe("x", AffineGrid(4, group_size=8)))
    save(small, tmp_path / "out", layout="gptq")
    return small, tmp_path / "out"


def rewritten(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file({k: t.contiguous() for k, t in tensors.items()}, folder / "model.safetensors")


def test_groups_in_the_order_of_activations_are_read(written):
    """Another program's ``desc_act``: each input has any group; the first layer computes with its own permutation."""
    small, folder = written
    name = "model.layers.0.self_attn.q_proj"
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    found = {}

    def shuffle(tensors):
        tensors[f"{name}.g_idx"] = tensors[f"{name}.g_idx"][order]
        found["W"] = decoded({k: tensors[f"{name}.{k}"] for k in ("qweight", "qzeros", "scales", "g_idx")}, 4, 1)

    rewritten(folder, shuffle)
    layer = load(folder).model.layers[0].self_attn.q_proj
    assert len(layer.before) == 1
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(layer(x), x @ found["W"].T, atol=1e-4, rtol=1e-4)
    save(small, folder.parent / "ours", layout="skerry-v1")  # and what was read can be kept
    saved = load(folder)
    save(saved, folder.parent / "theirs", layout="skerry-v1")
    assert torch.equal(logits(load(folder.parent / "theirs")), logits(saved))


def test_zeros_that_wrapped_are_read(tmp_path, tiny):
    """Format "gptq" with a zero of 0: minus one, some writers leave all bits set."""
    small = quantize(tiny("llama"), Recipe("x", AffineGrid(4, symmetric=False, group_size=8)))
    save(small, tmp_path / "out", layout="gptq")
    path = tmp_path / "out" / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["checkpoint_format"] = "gptq"
    path.write_text(json.dumps(config))

    def minus_one(tensors):
        for key in [k for k in tensors if k.endswith(".qzeros")]:
            zeros = (integers(tensors[key], 4) - 1) % 16
            words = (zeros.reshape(len(zeros), -1, 8) << torch.arange(0, 32, 4)).sum(-1)
            tensors[key] = torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)

    before = load_file(tmp_path / "out" / "model.safetensors")
    rewritten(tmp_path / "out", minus_one)
    assert any(bool((integers(t, 4) == 0).any()) for k, t in before.items() if k.endswith(".qzeros"))
    torch.testing.assert_close(logits(load(tmp_path / "out")), logits(small), atol=2e-2, rtol=1e-2)


MIXED = (("*down_proj", {"weight": AffineGrid(8)}),)
FINER = (("*up_proj", {"weight": AffineGrid(4, group_size=8)}), ("*q_proj", {"weight": AffineGrid(4, group_size=4)}))


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        (Recipe("x", AffineGrid(5)), "q_proj: weights of 5 bits are unknown there"),
        (Recipe("x", AffineGrid(4, axis=0)), "q_proj: its groups run along the outputs"),
        (Recipe("x", AffineGrid(8), activation=TokenDynamic(8)), "q_proj: its inputs are rounded"),
        (Recipe("x", AffineGrid(4), overrides=MIXED), "differ in bits"),
    ],
)
def test_what_it_cannot_hold_is_said(recipe, reason, tmp_path, tiny):
    with pytest.raises(ModelError, match=rf"GPTQ layout cannot hold this model: .*{reason}"):
        save(quantize(tiny("llama", blocks=1), recipe), tmp_path / "out", layout="gptq")
    assert not list(tmp_path.iterdir())


def test_the_smallest_group_serves_all_that_it_divides(tmp_path, tiny):
    small = quantize(tiny("llama", blocks=1), Recipe("x", AffineGrid(4, group_size=16), overrides=FINER))
    save(small, tmp_path / "out", layout="gptq")
    assert json.loads((tmp_path / "out" / "quantize_config.json").read_text())["group_size"] == 4
    torch.testing.assert_close(logits(load(tmp_path / "out")), logits(small), atol=1e-3, rtol=1e-3)


def test_other_models_are_refused(tmp_path, tiny, inputs):
    with pytest.raises(ModelError, match="no model of transformers"):
        save(quantize(tiny("plain"), "rtn", "w4a16"), tmp_path / "out", layout="gptq")
    rotated = quantize(tiny("llama"), "quarot", "w4a16g16", inputs("llama"))
    with pytest.raises(ModelError, match="transformed at run time"):
        save(rotated, tmp_path / "out", layout="gptq")
    narrow = quantize(tiny("llama"), "rtn", "w4a16g16")
    narrow.model.layers[0].self_attn.q_proj = QuantizedLinear(
        quantize(torch.nn.Sequential(torch.nn.Linear(12, 8)), "rtn", "w4a16")[0].solved
    )
    with pytest.raises(ModelError, match="12 inputs of 4 bits do not fill words"):
        save(narrow, tmp_path / "out", layout="gptq")


@pytest.mark.parametrize(
    ("key", "change", "reason"),
    [
        ("qweight", lambda t: t.float(), "qweight holds torch.float32"),
        ("qweight", lambda t: t[:, :-1], "qweight does not fit"),
        ("qzeros", lambda t: t[:-1], "qzeros has shape"),
        ("scales", lambda t: t[:3], "does not fit"),
        ("scales", lambda t: t[:0], "holds no weight of 4 bits"),
        ("scales", lambda t: t.to(torch.int32), "holds no weight of 4 bits"),
        ("g_idx", lambda t: t * 0, "groups of other sizes"),
        ("g_idx", lambda t: t - 5, "groups of other sizes"),
    ],
)
def test_damage_is_told(key, change, reason, written):
    _, folder = written
    name = f"model.layers.1.mlp.up_proj.{key}"
    rewritten(folder, lambda tensors: tensors.update({name: change(tensors[name])}))
    with pytest.raises(ModelError, match=rf"model\.safetensors: .*{reason}"):
        load(folder)


@pytest.mark.parametrize("change", [{"bits": 5}, {"bits": "4"}, {"checkpoint_format": "marlin"}, {"bits": 8}])
def test_a_configuration_that_does_not_fit_is_told(change, written):
    _, folder = written
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"cannot be read here|has shape|which the model's|does not fit"):
        load(folder)
