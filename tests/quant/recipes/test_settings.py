"""A recipe's settings reach its parts, survive as JSON, and keep the paper's defaults."""

import pytest

import skerry.quant as quant
from skerry.core.errors import ParameterError
from skerry.quant.recipe import Recipe
from skerry.quant.solvers import GPTQ, RTN


@pytest.mark.parametrize(
    ("name", "bits", "settings"),
    [
        ("adadim", "w3a16g64", {"base": "rtn", "choose": "base", "reference": "float", "propagate": "quantized"}),
        ("adadim", "w4a16", {"official": True, "export_safe": True}),
        ("llm-int8", "w8a8", {"mode": "static", "threshold": 5.0, "symmetric": False, "scope": "entries"}),
        ("lrq-dit", "w3a8", {"weighted": True, "levels": "full", "threshold": "quantile:0.9"}),
        ("olive", "w4a4", {"search": [80, 200, 4], "first_n_8bit": 2, "tie": "even"}),
        ("outliertune", "w6a6", {"weight_solver": "gptq", "token_ratio": True, "range": "mse", "rms": "drop"}),
        ("quantease", "w3a16", {"init": "weight", "relax": True, "act_order": False, "outliers": 0.01}),
        ("svdquant", "w4a4", {"fold": False, "gptq": True, "iterations": 1}),
    ],
)
def test_settings_survive(name, bits, settings):
    recipe = quant.make_recipe(name, bits, **settings)
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert recipe != quant.make_recipe(name, bits)


def test_adadim():
    plain = quant.make_recipe("adadim", "w3a16")
    assert (plain.propagate, plain.solver.reference, plain.solver.choose) == ("float", "current", "rtn")
    assert plain.solver.dims == ("oc", "ic") and isinstance(plain.solver.base, GPTQ)
    safe = quant.make_recipe("adadim", "w3a16", base="rtn", export_safe=True)
    assert safe.solver.dims == ("oc",) and isinstance(safe.solver.base, RTN)
    for wrong in ({"base": "awq"}, {"choose": "x"}, {"reference": "x"}, {"propagate": "x"}):
        with pytest.raises(ParameterError):
            quant.make_recipe("adadim", "w3a16", **wrong)


def test_quantease_sweeps_more_where_it_looks_for_outliers():
    assert quant.make_recipe("quantease", "w3a16").solver.sweeps == 5
    assert quant.make_recipe("quantease", "w3a16", outliers=0.01).solver.sweeps == 30
    assert quant.make_recipe("quantease", "w3a16", outliers=0.01, sweeps=3).solver.sweeps == 3
    published = quant.make_recipe("quantease", "w3a16", init="weight", relax=True, sweeps=30, group_size=-1)
    assert [published.solver.rounded(i) for i in range(6)] == [True, False, True, True, False, True]
    assert published.weight.group_size == -1 and not published.weight.symmetric
    assert [quant.make_recipe("quantease", b).weight.group_size for b in ("w3a16", "w3a16g64", "w8a8")] == [128, 64, -1]


def test_olive_widens_the_first_blocks_only():
    recipe = quant.make_recipe("olive", "w4a4", first_n_8bit=2)
    for name, wide in (
        ("model.layers.0.mlp.up_proj", True),
        ("model.decoder.layers.1.fc1", True),
        ("transformer.h.1.attn.c_attn", True),
        ("encoder.layer.0.output.dense", True),
        ("transformer_blocks.1.ff.net.0.proj", True),
        ("transformer_blocks.3.ff.net.0.proj", False),
        ("model.layers.10.mlp.up_proj", False),
        ("model.layers.2.mlp.up_proj", False),
    ):
        weight, _, activation = recipe.parts_for(name)
        assert weight.bits == activation.bits == (8 if wide else 4)
    floats = quant.make_recipe("olive", "w4a16", first_n_8bit=2).parts_for("model.layers.0.mlp.up_proj")
    assert floats[0].bits == 8 and floats[2] is None
