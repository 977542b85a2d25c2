"""FP8, NVFP4 and MXFP4 by name: what the recipes make of them, what they refuse."""

import pytest
import torch

import skerry.quant as quant
from skerry.core.errors import ModelError, ParameterError
from skerry.quant.auto import candidates_for
from skerry.quant.engine import output_of
from skerry.quant.formats.float4 import Float4, Float4Group
from skerry.quant.formats.float8 import Float8, Float8Token
from skerry.quant.recipe import Recipe, parse_bits
from skerry.quant.recipes import FLOATING, RECIPES, make_recipe

FORMS = {"fp8": (Float8(), Float8Token(), 8.5), "nvfp4": (Float4(), None, 4.6), "mxfp4": (Float4("mxfp4"), None, 4.3)}


@pytest.mark.parametrize("form", FORMS)
def test_a_format_by_its_name(form, tiny, inputs, tmp_path):
    weight, activation, most = FORMS[form]
    recipe = make_recipe("rtn", form.upper())
    assert (recipe.weight, recipe.activation) == (weight, activation) and str(parse_bits(form)) == form
    assert Recipe.from_json(recipe.to_json()) == recipe
    model, batches = tiny("llama"), inputs("llama")
    small = quant.quantize(model, "rtn", form)
    assert quant.report_of(small).bits_per_weight < most + 2  # rows of 32 weights share few scales
    with torch.no_grad():
        exact, given = output_of(model(batches[0])), output_of(small(batches[0]))
    assert float((given - exact).norm() / exact.norm()) < (0.1 if form == "fp8" else 0.4)
    assert quant.save(small, tmp_path / "out")["layout"] == "compressed-tensors"


def test_smoothing_in_front_of_fp8(tiny, inputs):
    small = quant.quantize(tiny("opt"), "smoothquant", "fp8", inputs("opt"))
    assert small.model.decoder.layers[0].fc1.solved.weight.kind == "float8"


def test_recipes_for_integers_refuse_them():
    for form, known in FLOATING.items():
        for name in RECIPES.keys() - set(known):
            with pytest.raises(ParameterError, match=f"does not know {form}.*rtn, smoothquant"):
                make_recipe(name, form)
    with pytest.raises(ParameterError, match="gptq=False"):
        make_recipe("svdquant", "nvfp4", gptq=True)
    with pytest.raises(ParameterError, match="one scale a token"):
        make_recipe("rtn", "fp8", static=True)
    with pytest.raises(ParameterError, match="fp8, nvfp4, mxfp4"):
        make_recipe("rtn", "fp4")
    assert candidates_for("fp8") == ("rtn", "smoothquant") and candidates_for("mxfp4") == ("rtn",)


def test_blocks_that_do_not_divide_name_the_layer():
    model = torch.nn.Sequential(torch.nn.Linear(40, 8))
    with pytest.raises(ModelError, match=r"^0: mxfp4 has blocks of 32, which do not divide 40 input channels"):
        quant.quantize(model, "rtn", "mxfp4")
    with pytest.raises(ModelError, match=r"^0: nvfp4 has blocks of 16.*40 input channels"):
        quant.quantize(model, "svdquant", "nvfp4", torch.randn(8, 40))


def planted(gain=30.0):
    """A network with two loud channels behind a norm, its inputs and its outputs' energy."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.LayerNorm(64), torch.nn.Linear(64, 96), torch.nn.GELU(), torch.nn.Linear(96, 32)
    )
    with torch.no_grad():
        model[0].weight[[5, 40]] *= gain
    return model.eval(), torch.randn(400, 64)


@pytest.mark.parametrize("form", ["nvfp4", "mxfp4"])
def test_a_branch_beside_e2m1_on_both_sides(form, tmp_path):
    model, x = planted()
    recipe = make_recipe("svdquant", form, rank=8, n_grid=6, iterations=8)
    assert recipe.activation == Float4Group(form) and Recipe.from_json(recipe.to_json()) == recipe
    plain = Recipe("plain", Float4(form), activation=Float4Group(form))
    whole, empty = (make_recipe("svdquant", form, rank=r, n_grid=6) for r in (64, 0))
    seen, held = x[:200], x[200:]
    lost = {}
    with torch.no_grad():
        exact = model(held)
        for name, tried in (("svdquant", recipe), ("plain", plain), ("no branch", empty), ("full rank", whole)):
            found = quant.quantize(model, tried, calibration=seen)
            lost[name] = float((found(held) - exact).norm() / exact.norm())
            if name == "svdquant":
                quant.save(found, tmp_path / "out")
                again = quant.load(tmp_path / "out", planted()[0])
                assert torch.equal(again(held), found(held))
                assert set(quant.use_kernels(again).values()) == {"reference"}
    assert lost["svdquant"] < 0.7 * lost["no branch"] and lost["no branch"] < lost["plain"]
    assert lost["full rank"] < 0.01  # the branch is the weight, in bfloat16
