"""A masked-diffusion language model has Llama's groups: it folds, rotates and is calibrated on masked text."""

import pytest
import torch

from skerry.deep.masked_diffusion import MaskedDiffusionLM
from skerry.quant.architectures.base import architecture_of
from skerry.quant.engine import quantize_model
from skerry.quant.linear import QuantizedLinear
from skerry.quant.recipe import Recipe
from skerry.quant.recipes import make_recipe
from skerry.quant.transforms.rotation import OnlineHadamard, ResidualRotation
from skerry.quant.transforms.smooth import Smooth

TOKENS = torch.randint(0, 20, (4, 12), generator=torch.Generator().manual_seed(0))


def made(**settings) -> MaskedDiffusionLM:
    torch.manual_seed(0)
    return MaskedDiffusionLM(vocab_size=20, width=32, blocks=2, heads=4, hidden=64, **settings).eval()


@pytest.mark.parametrize("settings", [{}, {"kv_heads": 2}, {"shifted": True}, {"causal": True}])
def test_transforms_keep_the_function(settings):
    model = made(**settings)
    assert architecture_of(model).block_names(model) == ["layers.0", "layers.1"]
    for parts in ((Smooth(),), (ResidualRotation(), OnlineHadamard())):
        found, report = quantize_model(model, Recipe("floats", transforms=parts), calibration=TOKENS)
        with torch.no_grad():
            torch.testing.assert_close(found(TOKENS), model(TOKENS), rtol=1e-3, atol=1e-5)
        assert report.transforms


def test_head_and_embeddings_stay_and_every_layer_of_a_block_is_rounded():
    found, report = quantize_model(made(), make_recipe("rtn", "w4a16g16"))
    rounded = [n for n, m in found.named_modules() if isinstance(m, QuantizedLinear)]
    assert len(rounded) == 2 * 7 == len(report.layers)
    assert isinstance(found.lm_head, torch.nn.Linear)


def test_smoothing_folds_at_all_four_inputs_of_a_block():
    _, report = quantize_model(made(), Recipe("floats", transforms=(Smooth(),)), calibration=TOKENS)
    groups = {t["group"].removeprefix("layers.0.") for t in report.transforms if t["group"].startswith("layers.0")}
    assert groups == {
        "self_attn.q_proj+k_proj+v_proj", "self_attn.o_proj", "mlp.gate_proj+up_proj", "mlp.down_proj",
    }  # fmt: skip
