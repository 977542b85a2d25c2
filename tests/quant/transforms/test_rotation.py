"""Rotations keep the function, spread outliers, and refuse what they cannot turn."""

import pytest
import torch

import skerry.quant as quant
from skerry.core.errors import ModelError
from skerry.deep.hadamard import fast_hadamard, hadamard_matrix, has_hadamard, rotation_matrix
from skerry.quant.engine import output_of, quantize_model
from skerry.quant.recipe import Recipe
from skerry.quant.transforms.rotation import OnlineHadamard, ResidualRotation


@pytest.mark.parametrize("n", [1, 2, 4, 12, 20, 24, 28, 36, 44, 60, 64, 76, 84, 96, 108, 168, 256])
def test_hadamard_matrices_are_orthonormal_signs(n):
    H = hadamard_matrix(n, torch.float64)
    torch.testing.assert_close(H @ H.T, torch.eye(n, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(H.abs(), torch.full((n, n), n**-0.5, dtype=torch.float64))
    x = torch.randn(2, 3, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(fast_hadamard(x), x @ H)


def test_widths_of_known_networks_have_one():
    assert all(has_hadamard(n) for n in (768, 2048, 3072, 4096, 5120, 11008, 14336, 192))
    assert not any(has_hadamard(n) for n in (0, 3, 6, 10, 14, 33, 92 + 2))


@pytest.mark.parametrize("n", [7, 16, 92, 100])
def test_rotations_are_orthogonal_and_seeded(n):
    R = rotation_matrix(n, random_state=3, dtype=torch.float64)
    torch.testing.assert_close(R @ R.T, torch.eye(n, dtype=torch.float64), atol=1e-10, rtol=0)
    assert torch.equal(R, rotation_matrix(n, random_state=3, dtype=torch.float64))
    assert not torch.equal(R, rotation_matrix(n, random_state=4, dtype=torch.float64))


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
def test_the_function_stays(family, tiny, inputs):
    model, batches = tiny(family), inputs(family)
    recipe = Recipe("x", transforms=(ResidualRotation(), OnlineHadamard()))
    found, report = quantize_model(model, recipe, calibration=batches)
    with torch.no_grad():
        for batch in batches:
            exact = output_of(model(batch))
            assert float((output_of(found(batch)) - exact).norm() / exact.norm()) < 2e-5
    assert report.transforms[0]["hadamard"] and len(report.transforms) == 1 + 2 * 2


def test_an_outlier_channel_of_the_stream_is_spread(tiny, inputs):
    model, batches = tiny("llama"), inputs("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 5] = 40.0
    rotated = quant.quantize(model, "quarot", "w4a4", batches)
    plain = quant.quantize(model, "rtn", "w4a4", batches)
    a, b = (quant.compare(model, m, batches, repetitions=1).signal_to_noise for m in (rotated, plain))
    assert a > b


@pytest.mark.parametrize("family", ["bert", "vit"])
def test_streams_that_are_not_described_are_refused(family, tiny, inputs):
    with pytest.raises(ModelError, match="cannot be rotated"):
        quantize_model(tiny(family), Recipe("x", transforms=(ResidualRotation(),)), calibration=inputs(family))


def test_a_skipped_reader_is_refused(tiny, inputs):
    recipe = Recipe("x", transforms=(ResidualRotation(),), skip=("*.k_proj",))
    with pytest.raises(ModelError, match="leaves out"):
        quantize_model(tiny("llama"), recipe, calibration=inputs("llama"))
