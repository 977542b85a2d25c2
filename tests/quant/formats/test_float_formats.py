"""FP8 and FP4 storage: golden values, nearest rounding, round trips."""

import math

import pytest
import torch

from skerry.core.errors import ModelError, ParameterError
from skerry.quant.formats.float4 import Float4, Float4Group, Float4Tensor, decode_e2m1, encode_e2m1, round_e2m1
from skerry.quant.formats.float8 import Float8, Float8Tensor, Float8Token


def weight(rows=6, width=64, seed=0):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("settings", [{}, {"granularity": "tensor"}, {"scale_dtype": "bfloat16"}])
def test_float8_round_trip_and_error(settings):
    W = weight()
    form = Float8(**settings)
    stored = form.quantize(W)
    assert stored.nbytes == sum(t.numel() * t.element_size() for t in stored.tensors().values())
    assert form.bits_per_weight(stored.shape) == pytest.approx(stored.nbytes * 8 / W.numel())
    back = Float8Tensor.from_tensors(stored.meta(), stored.tensors())
    assert torch.equal(back.dequantize(), stored.dequantize())
    normal = W.abs() > stored.scale.float() * 2**-6  # e4m3 has 3 mantissa bits above its subnormal range
    assert ((stored.dequantize() - W).abs() <= W.abs() * 2**-4 + 1e-7)[normal].all()


def test_float8_saturates_instead_of_nan():
    W = torch.tensor([[1.0, -3.0, 0.0]])
    stored = Float8(scale_dtype="bfloat16").quantize(W * 1.001)  # the rounded scale puts the largest beyond 448
    assert torch.isfinite(stored.dequantize()).all()
    assert torch.isfinite(Float8().quantize(torch.zeros(2, 4)).dequantize()).all()


def test_float8_inputs_are_scaled_by_token():
    x = weight(4, 32)
    y = Float8Token().fake(x)
    assert torch.equal(Float8Token().fake(x[1:2]), y[1:2])
    assert ((y - x).abs() <= x.abs() * 2**-4 + 1e-2).all()


def test_e2m1_codes_and_ties():
    values = torch.tensor([0.0, 0.5, 1, 1.5, 2, 3, 4, 6])
    assert encode_e2m1(values).tolist() == list(range(8))
    assert encode_e2m1(-values).tolist() == [0, *range(9, 16)]
    assert torch.equal(decode_e2m1(encode_e2m1(-values)), -values)
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 9.0])
    assert decode_e2m1(encode_e2m1(ties)).tolist() == [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 6.0]


def test_nvfp4_golden_bytes():
    W = torch.zeros(1, 16)
    W[0, :4] = torch.tensor([0.25, -0.75, 3.0, -0.25])  # at scale 1/2: .5, -1.5, 6, -.5
    stored = Float4("nvfp4").quantize(W)
    assert float(stored.global_scale) == 896.0
    assert stored.packed[0, :2].tolist() == [177, 151]
    assert torch.equal(stored.dequantize(), W)


@pytest.mark.parametrize(("scale", "block"), [("nvfp4", 16), ("mxfp4", 32)])
def test_float4_round_trip_and_error(scale, block):
    W = weight(5, 64, 2)
    W[2] = 0.0
    form = Float4(scale)
    stored = form.quantize(W)
    assert stored.nbytes == sum(t.numel() * t.element_size() for t in stored.tensors().values())
    assert form.bits_per_weight(stored.shape) == pytest.approx(stored.nbytes * 8 / W.numel())
    back = Float4Tensor.from_tensors(stored.meta(), stored.tensors())
    assert torch.equal(back.dequantize(), stored.dequantize())
    assert not stored.dequantize()[2].any()
    top = W.abs().reshape(5, -1, block).amax(-1).repeat_interleave(block, 1)
    assert ((stored.dequantize() - W).abs() <= top / 3.9).all()
    again = form.quantize(stored.dequantize())
    assert torch.allclose(again.dequantize(), stored.dequantize(), atol=0.07)


def test_errors():
    with pytest.raises(ModelError, match="do not divide"):
        Float4().quantize(torch.zeros(2, 24))
    with pytest.raises(ParameterError):
        Float4("fp4")
    with pytest.raises(ParameterError):
        Float8("block")
    with pytest.raises(ParameterError):
        Float8(scale_dtype="int8")


@pytest.mark.parametrize(("scale", "block"), [("nvfp4", 16), ("mxfp4", 32)])
def test_e2m1_inputs_are_those_of_counting(scale, block):
    x = weight(5, 64) * torch.tensor([1e-4, 0.3, 1.0, 40.0, 1e4])[:, None]
    found, values = Float4Group(scale).fake(x), [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    for t in range(5):
        for start in range(0, 64, block):
            part = x[t, start : start + block].double()
            top = float(part.abs().max())
            if scale == "nvfp4":
                step = float(torch.tensor(min(top / 6.0, 448.0)).to(torch.float8_e4m3fn))
            else:
                step = 2.0 ** (math.floor(math.log2(top)) - 2)
            for one, other in zip(part.tolist(), found[t, start : start + block].tolist(), strict=True):
                nearest = min(abs(abs(one) - v * step) for v in values)
                assert abs(other) == 0.0 or other * one > 0.0
                assert abs(one - other) == pytest.approx(nearest, abs=1e-6 * top)
    assert torch.equal(Float4Group(scale).fake(x[1:3]), found[1:3])  # tokens do not look at each other
    assert Float4Group(scale).fake(x.bfloat16()).dtype == torch.bfloat16
    assert not Float4Group(scale).fake(torch.zeros(2, 32)).any()


def test_e2m1_inputs_refuse_what_does_not_fit():
    with pytest.raises(ParameterError, match="nvfp4, mxfp4"):
        Float4Group("fp4")
    with pytest.raises(ModelError, match="blocks of 32, which do not divide 48"):
        Float4Group("mxfp4").fake(torch.ones(1, 48))


@pytest.mark.parametrize("scale", ["nvfp4", "mxfp4"])
def test_rounding_without_codes_is_the_same(scale):
    y = torch.cat([torch.linspace(-8, 8, 1281), weight().flatten() * 3])  # with every tie
    assert torch.equal(round_e2m1(y), decode_e2m1(encode_e2m1(y)))
    W = weight() * torch.tensor([1e-30, 1e-6, 0.0, 1.0, 50.0, 1e6])[:, None]
    assert torch.equal(Float4(scale).round(W), Float4(scale).quantize(W).dequantize())
