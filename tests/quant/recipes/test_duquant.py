"""DuQuant: the function is kept, massive values are spread, and what is built can be written down and read again."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.core.errors import ParameterError
from skerry.deep.masked_diffusion import MaskedDiffusionLM
from skerry.quant.engine import quantize_model
from skerry.quant.numerics import AffineGrid
from skerry.quant.recipe import Recipe
from skerry.quant.recipes import make_recipe
from skerry.quant.solvers.clipped import ClippedRTN
from skerry.quant.statistics import LayerStatistics
from skerry.quant.transforms.adaptive_rotation import AdaptiveRotation
from skerry.quant.transforms.smooth import Smooth


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), ratio=st.floats(0.3, 1.0), bits=st.integers(2, 8), symmetric=st.booleans())
def test_no_stored_value_leaves_the_clipped_range(seed, ratio, bits, symmetric):
    W = torch.randn(6, 32, generator=torch.Generator().manual_seed(seed))
    grid = AffineGrid(bits, symmetric=symmetric, group_size=16)
    stored = ClippedRTN(ratio).solve(W, LayerStatistics(), grid).weight
    view, found = W.reshape(6, 2, 16), stored.dequantize().reshape(6, 2, 16)
    step = stored.scale.float()
    assert bool((found.amax(-1) <= ratio * view.abs().amax(-1) + step).all())
    assert bool((found.amin(-1) >= -ratio * view.abs().amax(-1) - step).all())


def test_a_ratio_of_one_is_plain_rounding():
    W = torch.randn(5, 24, generator=torch.Generator().manual_seed(0))
    grid = AffineGrid(4, symmetric=False)
    assert torch.equal(ClippedRTN(1.0).solve(W, LayerStatistics(), grid).dense(), grid.round(W))
    with pytest.raises(ParameterError, match="ratio"):
        ClippedRTN(0.0)


def test_clipping_is_for_few_bits():
    four, eight = make_recipe("duquant", "w4a4"), make_recipe("duquant", "w8a8")
    assert (four.solver.ratio, four.activation.ratio) == (0.8, 0.9)
    assert (eight.solver.ratio, eight.activation.ratio) == (1.0, 1.0)
    with pytest.raises(ParameterError, match="duquant"):
        make_recipe("duquant", "w4a16")


def test_the_recipe_is_data():
    recipe = make_recipe("duquant", "w4a4", max_steps=3)
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_transforms_keep_the_function_and_spread_a_massive_value():
    torch.manual_seed(0)
    model = MaskedDiffusionLM(vocab_size=20, width=32, blocks=2, heads=2, hidden=64)
    with torch.no_grad():
        model.layers[0].mlp.up_proj.weight[5] *= 500.0
        model.layers[0].mlp.down_proj.weight[:, 5] /= 500.0
    tokens = torch.randint(0, 20, (4, 16), generator=torch.Generator().manual_seed(1))
    parts = (Smooth(), AdaptiveRotation(threshold=0.0, block=32, max_steps=8))
    floats = Recipe("floats", transforms=parts)
    found, report = quantize_model(model, floats, calibration=tokens)
    with torch.no_grad():
        torch.testing.assert_close(found(tokens), model(tokens), rtol=1e-4, atol=1e-5)
    facts = [t for t in report.transforms if t["transform"] == "AdaptiveRotation" and "down_proj" in t["group"]]
    assert len(facts) == 2
    assert all(t["kind"] == "dual" for t in facts)
    unsmoothed, report = quantize_model(model, Recipe("floats", transforms=parts[1:]), calibration=tokens)
    loud = next(t for t in report.transforms if t["group"] == "layers.0.mlp.down_proj")
    assert loud["peak_after"] < 0.5 * loud["peak_before"]
