"""LoRA on a quantized model: the branch takes it exactly, whatever stands in front of the layer."""

import pytest
import torch
from torch import nn

import skerry.quant as quant
from skerry.core.errors import ModelError, ParameterError, SkerryWarning
from skerry.quant.engine import output_of, quantize_model
from skerry.quant.linear import QuantizedLinear
from skerry.quant.numerics import AffineGrid
from skerry.quant.recipe import Recipe
from skerry.quant.transforms.low_rank import BranchSmooth, LiftedInput, LowRankAbsorb

RECIPES = {
    "rtn": ("w4a8", {}),
    "gptq": ("w4a16", {}),
    "lrq-dit": ("w4a8", {"block": 16, "threshold": 0.0, "max_steps": 4}),
    "svdquant": ("w4a4", {"fold": False, "rank": 4, "n_grid": 3}),
}


def adapter(model, names, rank=3, seed=0, prefix=""):
    g = torch.Generator().manual_seed(seed)
    found = {}
    for name in names:
        layer = model.get_submodule(name)
        inputs, outputs = layer.weight.shape if type(layer).__name__ == "Conv1D" else layer.weight.shape[::-1]
        found[f"{prefix}{name}.lora_A.weight"] = torch.randn(rank, inputs, generator=g)
        found[f"{prefix}{name}.lora_B.weight"] = torch.randn(outputs, rank, generator=g) * 0.1
    return found


def merged(model, halves, scale, prefix=""):
    with torch.no_grad():
        for key, A in halves.items():
            if ".lora_A" in key:
                layer = model.get_submodule(key.removeprefix(prefix).removesuffix(".lora_A.weight"))
                product = scale * halves[key.replace("lora_A", "lora_B")] @ A
                layer.weight += product.T if type(layer).__name__ == "Conv1D" else product
    return model


NAMES = {
    "llama": ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj", "model.layers.1.mlp.down_proj"],
    "opt": ["model.decoder.layers.0.self_attn.k_proj", "model.decoder.layers.1.fc2"],
    "gpt2": ["transformer.h.0.mlp.c_proj", "transformer.h.1.attn.c_attn"],
}


@pytest.mark.parametrize(("family", "name"), [(f, n) for f in NAMES for n in RECIPES if n != "lrq-dit" or f == "gpt2"])
def test_every_layer_gives_the_adapters_product_on_top(family, name, tiny, inputs):
    bits, settings = RECIPES[name]
    model, batches = tiny(family), inputs(family)
    found = quant.quantize(model, name, bits, batches, **settings)
    halves = adapter(model, NAMES[family])
    x = {n: torch.randn(5, found.get_submodule(n).in_features) for n in NAMES[family]}
    before = {n: found.get_submodule(n)(x[n]) for n in NAMES[family]}
    assert quant.attach_lora(found, halves, 0.5, dtype=torch.float32) == NAMES[family]
    for n in NAMES[family]:
        A, B = halves[f"{n}.lora_A.weight"], halves[f"{n}.lora_B.weight"]
        wanted = before[n] + 0.5 * x[n] @ A.T @ B.T
        torch.testing.assert_close(found.get_submodule(n)(x[n]), wanted, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("family", NAMES)
def test_without_rounding_it_is_the_merged_model(family, tiny, inputs):
    """A branch of full rank leaves nothing to round: the float model with the adapter in its weights."""
    model, batches = tiny(family), inputs(family)
    moves = (LiftedInput(), BranchSmooth(rank=2, n_grid=3, fold=False))
    recipe = Recipe("whole", AffineGrid(4), LowRankAbsorb(96, 1, dtype="float32"), transforms=moves)
    found, report = quantize_model(model, recipe, calibration=batches)
    found.quantization_report = report
    halves = adapter(model, NAMES[family], prefix="base_model.model.")
    quant.attach_lora(found, halves, 2.0)
    exact = merged(tiny(family), halves, 2.0, "base_model.model.")
    with torch.no_grad():
        for batch in batches:
            wanted = output_of(exact(batch))
            assert float((output_of(found(batch)) - wanted).norm() / wanted.norm()) < 1e-5


def test_the_fast_product_takes_it_too_and_it_is_saved(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16, bias=False))
    x = torch.randn(40, 64)
    found = quant.quantize(model, "svdquant", "w8a8", [x], fold=False, rank=4, n_grid=3)
    weight = found[0].solved.weight.dequantize()
    quant.use_kernels(found)
    halves = adapter(model, ["0", "2"])
    quant.attach_lora(found, halves, 0.3)
    assert found[0].kernel is not None
    assert torch.equal(found[0].solved.weight.dequantize(), weight)  # not quantized again
    fast = found(x)
    for layer in (found[0], found[2]):
        layer.set_kernel(None)
    assert float((fast - found(x)).norm() / fast.norm()) < 0.01
    quant.save(found, tmp_path / "out")
    again = quant.load(tmp_path / "out", nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16, bias=False)))
    assert torch.equal(again(x), found(x))
    assert isinstance(again[0], QuantizedLinear)
    assert quant.recipe_of(again) == quant.report_of(found).recipe
    quant.attach_lora(again, adapter(model, ["2"], seed=5))
    assert again[2].solved.low_rank.up.shape[1] == 4 + 3 + 3


def test_what_does_not_fit_is_refused_and_nothing_changes(tiny, inputs):
    model, batches = tiny("llama"), inputs("llama")
    halves = adapter(model, NAMES["llama"])
    folded = quant.quantize(model, "svdquant", "w4a8", batches, rank=2, n_grid=2)
    with pytest.raises(ModelError, match=r"BranchSmooth folds.*fold=False"):
        quant.attach_lora(folded, halves)
    with pytest.raises(ModelError, match="Smooth folds"):
        quant.attach_lora(quant.quantize(model, "smoothquant", "w8a8", batches), halves)
    found = quant.quantize(model, "rtn", "w4a8")
    with torch.no_grad():
        before = found(batches[0]).logits
    q = NAMES["llama"][0]
    for wrong, message in (
        ({"q.lora_A.weight": torch.ones(2, 32), "q.lora_B.weight": torch.ones(32, 2)}, "does not have"),
        ({"lm_head.lora_A.weight": torch.ones(2, 32), "lm_head.lora_B.weight": torch.ones(64, 2)}, "not quantized"),
        (halves | {f"{q}.lora_A.weight": torch.ones(3, 31)}, "does not fit"),
        ({f"{q}.lora_A.weight": torch.ones(3, 32)}, "other half"),
        (halves | {f"{q}.lora_A.weight": torch.full((3, 32), float("nan"))}, "NaN"),
        (halves | {f"{q}.weight": torch.ones(3, 32)}, "no half"),
    ):
        with pytest.raises(ModelError, match=message):
            quant.attach_lora(found, wrong)
    for wrong, scale in (({}, 1.0), (halves, float("inf"))):
        with pytest.raises(ParameterError):
            quant.attach_lora(found, wrong, scale)
    with torch.no_grad():
        assert torch.equal(found(batches[0]).logits, before)
    del found.quantization_report
    with pytest.raises(ModelError, match="recipe"):
        quant.attach_lora(found, halves)


@pytest.mark.parametrize(
    ("name", "layout"), [("rtn", "compressed-tensors"), ("gptq", "gptq"), ("svdquant", "skerry-v1")]
)
def test_a_loaded_model_takes_an_adapter_without_being_told_its_recipe(name, layout, tiny, inputs, tmp_path):
    bits, settings = RECIPES[name] if layout == "skerry-v1" else ("w4a16g32", {})
    found = quant.quantize(tiny("llama"), name, bits, inputs("llama"), **settings)
    quant.save(found, tmp_path / "out", layout=layout)
    again = quant.load(tmp_path / "out")
    assert quant.recipe_of(again) == quant.report_of(found).recipe
    halves, batch = adapter(tiny("llama"), NAMES["llama"]), inputs("llama")[0]
    for model in (found, again):
        quant.attach_lora(model, halves, 0.5)
    with torch.no_grad():
        torch.testing.assert_close(again(batch).logits, found(batch).logits, atol=1e-4, rtol=1e-4)
    quant.save(again, tmp_path / "more")  # what was loaded is saved with its recipe, too
    assert quant.recipe_of(quant.load(tmp_path / "more")) == quant.recipe_of(found)
    if layout == "compressed-tensors":
        from transformers import AutoModelForCausalLM, CompressedTensorsConfig

        other = AutoModelForCausalLM.from_pretrained(
            tmp_path / "out", quantization_config=CompressedTensorsConfig(run_compressed=False), dtype=torch.float32
        )
        assert other(batch).logits.shape == found(batch).logits.shape


def test_a_folder_that_says_nothing_or_nonsense_of_its_recipe(tiny, inputs, tmp_path):
    found = quant.quantize(tiny("llama"), "smoothquant", "w8a8", inputs("llama"))
    quant.save(found, tmp_path / "out")
    with pytest.raises(ModelError, match="Smooth folds"):
        quant.attach_lora(quant.load(tmp_path / "out"), adapter(tiny("llama"), NAMES["llama"]))
    path = tmp_path / "out" / "skerry-recipe.json"
    path.write_text('{"part": "Recipe", "name": "x", "solver": {"part": "os.system"}}')
    with pytest.warns(SkerryWarning, match=r"skerry-recipe\.json.*unknown part"):
        again = quant.load(tmp_path / "out")
    assert quant.recipe_of(again) is None
    path.unlink()
    with pytest.raises(ModelError, match="give attach_lora its recipe"):
        quant.attach_lora(quant.load(tmp_path / "out"), adapter(tiny("llama"), NAMES["llama"]))
