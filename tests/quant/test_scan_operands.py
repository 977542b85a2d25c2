"""States, C and the convolution are rounded when asked, the scan is not, and static ranges come from calibration."""

import pytest
import torch

from skerry.bench.mamba_models import MambaChar, new_mamba
from skerry.core.errors import ModelError, ParameterError
from skerry.quant.activation import TensorStatic, TokenDynamic
from skerry.quant.engine import quantize_model
from skerry.quant.numerics import AffineGrid
from skerry.quant.recipe import Recipe
from skerry.quant.recipes import make_recipe
from skerry.quant.scan_operands import PercentileStatic, ScanOperands
from skerry.quant.statistics import LayerStatistics

GRID = AffineGrid(4, symmetric=False)


def model():
    return new_mamba(MambaChar(width=16, blocks=2, states=4, rank=4), 32).eval()


def tokens():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 32, (4, 16), generator=generator) for _ in range(3)]


def test_operands_are_rounded_and_told():
    bits = TokenDynamic(8, symmetric=False)
    operands = ScanOperands(bits, bits, GRID, TensorStatic(8, symmetric=False))
    found, report = quantize_model(model(), Recipe("x", operands=operands), calibration=tokens())
    for old, new in zip(model().backbone.layers, found.backbone.layers, strict=True):
        mixer = new.mixer
        kernel = mixer.conv1d.weight.squeeze(1)
        assert max(len(row.unique()) for row in kernel) <= 4
        assert 0 < float((kernel - old.mixer.conv1d.weight.detach().squeeze(1)).abs().max()) < 0.2
        assert mixer.conv_input.low < 0 < mixer.conv_input.high and mixer.listener is None
        assert mixer.state == bits and mixer.readout == bits
    lines = [t for t in report.transforms if t["transform"] == "ScanOperands"]
    assert [t["group"] for t in lines] == ["backbone.layers.0", "backbone.layers.1"]
    assert lines[0]["kernel_bits"] == 4 and lines[0]["state_bits"] == 8


@torch.no_grad()
def test_fewer_bits_of_the_states_cost_more():
    batches, float_model = tokens(), model()
    exact = float_model(batches[0], use_cache=False).logits

    def error(width):
        part = TokenDynamic(width, symmetric=False)
        found, _ = quantize_model(model(), Recipe("x", operands=ScanOperands(part, part)), calibration=batches)
        return float((found(batches[0], use_cache=False).logits - exact).norm())

    assert 0 < error(8) < error(4) < error(2)


def test_models_without_a_scan_are_left_alone(tiny, inputs):
    recipe = Recipe("x", AffineGrid(8), operands=ScanOperands(TokenDynamic(8), TokenDynamic(8), GRID, TensorStatic(8)))
    _, report = quantize_model(tiny("llama"), recipe, calibration=inputs("llama"))
    assert not report.transforms


def test_static_ranges_ask_for_calibration():
    assert Recipe("x", operands=ScanOperands(conv_input=TensorStatic(8))).needs_calibration
    assert not Recipe("x", operands=ScanOperands(TokenDynamic(8))).needs_calibration


def test_a_percentile_cuts_both_ends():
    X = torch.arange(-500.0, 500.0)[:, None]
    found = PercentileStatic(8, percentile=0.99).calibrated(LayerStatistics.of(X))
    assert isinstance(found, TensorStatic) and (found.low, found.high) == (-490.0, 489.0)
    whole = PercentileStatic(8, percentile=1.0).calibrated(LayerStatistics.of(X))
    assert (whole.low, whole.high) == (-500.0, 499.0)
    with pytest.raises(ParameterError, match="percentile"):
        PercentileStatic(percentile=0.4)
    with pytest.raises(ModelError, match="calibration"):
        PercentileStatic().fake(X)
    with pytest.raises(ModelError, match="sample"):
        PercentileStatic().calibrated(LayerStatistics())


@pytest.mark.parametrize("given", [{}, {"observer": "percentile", "percentile": 0.999}, {"gptq": True}, {"klt": False}])
def test_the_recipe_is_data_and_runs(given):
    recipe = make_recipe("mambaquant", "w4a8", **given)
    assert Recipe.from_json(recipe.to_json()) == recipe
    found, report = quantize_model(model(), recipe, calibration=tokens())
    quantizer = found.backbone.layers[0].mixer.out_proj.activation
    assert isinstance(quantizer, TensorStatic) and not quantizer.symmetric and len(report.layers) == 14
