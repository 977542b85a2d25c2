"""Grids, packing and rounding: the numbers that every recipe stands on."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skerry.core.errors import ModelError, ParameterError
from skerry.quant.numerics import AffineGrid, IntTensor, pack_bits, signal_to_noise, unpack_bits

grids = st.builds(
    AffineGrid,
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    group_size=st.sampled_from([-1, 0, 4, 8]),
    axis=st.sampled_from([0, 1]),
    full_range=st.booleans(),
    scale_dtype=st.sampled_from(["float32", "bfloat16"]),
)
seeds = st.integers(0, 2**16)


def weight(seed, out=8, inputs=16):
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(out, inputs, generator=generator)
    W[seed % out, seed % inputs] *= 50.0
    return W


@given(grids, seeds)
def test_every_value_is_within_half_a_step_of_its_code(grid, seed):
    W = weight(seed)
    stored = grid.quantize(W)
    step = grid.expand(stored.scale, W.shape).float()
    slack = 1.6 if grid.scale_dtype == "bfloat16" else 0.5 + 1e-3  # a scale rounded down clips the end by a little
    if grid.symmetric and grid.full_range:
        slack += 0.5  # the positive end lies half a step beyond the last code
    assert torch.all((stored.dequantize() - W).abs() <= slack * step)
    assert stored.codes.min() >= grid.qmin and stored.codes.max() <= grid.qmax


@given(grids, seeds)
def test_zero_stays_zero_and_rounding_twice_changes_nothing(grid, seed):
    W = weight(seed)
    W[:, 3] = 0.0
    stored = grid.quantize(W)
    assert torch.all(stored.dequantize()[:, 3] == 0.0)
    again = grid.codes(stored.dequantize(), stored.scale, stored.zero)
    assert torch.equal(again, stored.codes)


@given(grids, seeds)
def test_saved_and_rebuilt_is_the_same(grid, seed):
    stored = grid.quantize(weight(seed))
    tensors = stored.tensors()
    rebuilt = IntTensor.from_tensors(stored.meta(), tensors)
    assert torch.equal(rebuilt.codes, stored.codes)
    assert torch.equal(rebuilt.dequantize(), stored.dequantize())
    bits = 8 * (tensors["packed"].numel() + tensors["scale"].numel() * tensors["scale"].element_size())
    if stored.zero is None:
        assert 8 * stored.nbytes == bits
    assert abs(grid.bits_per_weight(stored.shape) - 8 * stored.nbytes / stored.codes.numel()) < 0.07


@given(st.integers(2, 8), st.integers(1, 5), st.integers(1, 21), seeds)
def test_packing_keeps_every_code(bits, rows, n, seed):
    rng = np.random.default_rng(seed)
    codes = torch.from_numpy(rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (rows, n)).astype(np.int8))
    packed = pack_bits(codes, bits)
    assert packed.shape == (rows, (n * bits + 7) // 8)
    assert torch.equal(unpack_bits(packed, bits, n), codes)
    # a naive twin: one long integer a row, first code lowest
    for row, line in zip(codes.tolist(), packed.tolist(), strict=True):
        number = sum((code % 2**bits) << (bits * i) for i, code in enumerate(row))
        assert line == list(number.to_bytes(len(line), "little"))


def test_an_outlier_at_the_end_keeps_its_sign():
    # in bfloat16 127.5 would round to 128 and wrap to -128
    W = torch.tensor([[1.0, -0.01, 0.5]], dtype=torch.bfloat16)
    for symmetric in (True, False):
        stored = AffineGrid(8, symmetric=symmetric, scale_dtype="bfloat16").quantize(W)
        assert stored.dequantize()[0, 0] > 0.9


def test_groups_along_inputs_are_groups_along_outputs_of_the_transpose():
    W = weight(5)
    along = AffineGrid(3, symmetric=False, group_size=4, axis=1).round(W)
    across = AffineGrid(3, symmetric=False, group_size=4, axis=0).round(W.T)
    assert torch.equal(along, across.T)


@pytest.mark.parametrize(
    "settings", [{"bits": 1}, {"bits": 9}, {"axis": 2}, {"group_size": -2}, {"scale_dtype": "int8"}]
)
def test_settings_out_of_range(settings):
    with pytest.raises(ParameterError):
        AffineGrid(**settings)


def test_a_group_that_does_not_divide_names_the_layer_and_what_would():
    with pytest.raises(ModelError, match=r"layers\.3.*128 does not divide.*96.*32"):
        AffineGrid(4, group_size=128).group_of((8, 96), "layers.3")
    assert AffineGrid(4, group_size=128).for_shape((8, 96)).group_size == -1


def test_a_constant_and_a_dead_row_are_exact():
    W = torch.zeros(3, 8)
    W[1] = 0.7
    for grid in (AffineGrid(4), AffineGrid(4, symmetric=False)):
        np.testing.assert_allclose(grid.round(W), W, atol=1e-6)


def test_codes_for_too_few_bytes_are_refused():
    with pytest.raises(ModelError, match="do not hold"):
        unpack_bits(torch.zeros(2, 3, dtype=torch.uint8), 4, 9)


def test_signal_to_noise_in_decibels():
    assert signal_to_noise(torch.tensor([10.0, 0.0]), torch.tensor([9.0, 0.0])) == pytest.approx(20.0)
    assert signal_to_noise(torch.ones(2), torch.ones(2)) == float("inf")
