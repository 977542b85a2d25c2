"""Input quantizers: error bounds, who shares a scale, what calibration sets."""

import pytest
import torch

from skerry.core.errors import ModelError, ParameterError
from skerry.quant.activation import GroupDynamic, RoundClamp, TensorDynamic, TensorStatic, TokenClip, TokenDynamic
from skerry.quant.statistics import LayerStatistics

X = torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", [TokenDynamic, TensorDynamic, GroupDynamic])
def test_half_a_step(kind, bits, symmetric):
    quantizer = kind(bits=bits, symmetric=symmetric) if kind is not GroupDynamic else kind(bits, 8, symmetric)
    view = {TokenDynamic: X, TensorDynamic: X.reshape(1, -1), GroupDynamic: X.unflatten(-1, (-1, 8))}[kind]
    low, high = view.amin(-1, keepdim=True), view.amax(-1, keepdim=True)
    step = view.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1) if symmetric else (high - low) / (2**bits - 1)
    error = (quantizer.fake(X) - X).abs().reshape(view.shape)
    assert torch.all(error <= 1.01 * step)
    assert torch.all(error.mean(-1, keepdim=True) <= 0.5 * step)
    assert quantizer.fake(X).dtype == X.dtype


def test_one_token_does_not_change_another():
    Y = X.clone()
    Y[0, 0] *= 1000.0
    assert torch.equal(TokenDynamic(4).fake(Y)[1:], TokenDynamic(4).fake(X)[1:])
    assert not torch.equal(TensorDynamic(4).fake(Y)[1:], TensorDynamic(4).fake(X)[1:])


def test_static_scale_comes_from_calibration_and_clips():
    with pytest.raises(ModelError, match="has not seen calibration"):
        TensorStatic(8).fake(X)
    fitted = TensorStatic(8).calibrated(LayerStatistics.of(X.reshape(-1, 16), {"range"}))
    assert fitted.low == float(X.min()) and fitted.high == float(X.max())
    top = max(-fitted.low, fitted.high)
    assert float(fitted.fake(100.0 * X).abs().max()) == pytest.approx(top)


def test_unsigned_groups_use_all_codes_above_zero():
    levels = GroupDynamic(2, 16, unsigned=True).fake(torch.linspace(0, 3, 16)[None])
    assert sorted(set(levels.flatten().tolist())) == pytest.approx([0.0, 1.0, 2.0, 3.0])
    with pytest.raises(ModelError, match="does not divide"):
        GroupDynamic(4, 5).fake(X)


def test_round_clamp_is_integers_of_the_range():
    out = RoundClamp(4).fake(torch.tensor([[-9.0, 2.5, 3.5, 7.9]]))
    assert out.tolist() == [[-8.0, 2.0, 4.0, 7.0]]


@pytest.mark.parametrize("bits", [1, 17])
def test_bits_out_of_range(bits):
    with pytest.raises(ParameterError, match="2 to 16"):
        TokenDynamic(bits).fake(X)


@pytest.mark.parametrize("quantizer", [TokenDynamic(8), TensorDynamic(8), GroupDynamic(8, 8), RoundClamp(8)])
def test_silence_stays_silent(quantizer):
    assert torch.equal(quantizer.fake(torch.zeros(2, 16)), torch.zeros(2, 16))


def clipped(X, **settings):
    return TokenClip(**settings).calibrated(LayerStatistics.of(X, {"sample"}))


def test_clipping_ranks_tokens_not_values():
    X = torch.randn(200, 16, generator=torch.Generator().manual_seed(1))
    X[10, :8] = 50.0  # one token with many huge values: a percentile of values would keep it, one of tokens does not
    assert clipped(X, keep=1.0).high == 50.0
    tops = X.amax(-1).sort().values
    assert clipped(X, keep=0.99).high == pytest.approx(float(tops[197]))
    assert clipped(X, keep=0.99).low == pytest.approx(-float((-X.amin(-1)).sort().values[197]))


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_searched_clip_is_never_worse_than_none(bits, symmetric):
    X = torch.randn(400, 16, generator=torch.Generator().manual_seed(2))
    for loud in (1.0, 8.0):
        X[3] *= loud
        found, whole = (clipped(X, bits=bits, symmetric=symmetric, keep=k) for k in (None, 1.0))
        error, other = (float(((q.fake(X) - X) ** 2).sum()) for q in (found, whole))
        assert error <= other
        least = int((1.0 - (0.05 if bits == 8 else 0.10)) * len(X)) - 1
        assert found.high >= float(X.amax(-1).sort().values[least])


def test_clipping_refuses_what_it_cannot_do():
    for wrong in ({"keep": 0.0}, {"keep": 1.1}, {"bits": 1}):
        with pytest.raises(ParameterError):
            TokenClip(**wrong)
    with pytest.raises(ModelError, match="has not seen"):
        TokenClip().fake(X)
    with pytest.raises(ModelError, match="'sample'"):
        TokenClip().calibrated(LayerStatistics())
