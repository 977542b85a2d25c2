"""The 8-bit product for processors without VNNI against dequantizing and multiplying; it runs on every processor."""

import pytest
import torch

import skerry.quant as quant
from skerry.core.errors import ModelError
from skerry.quant.activation import GroupDynamic, RoundClamp, TensorDynamic, TensorStatic, TokenDynamic
from skerry.quant.formats.mixed_decomposition import MixedInt8
from skerry.quant.formats.outlier_victim import OutlierVictim
from skerry.quant.numerics import AffineGrid
from skerry.quant.parts import LowRank, Solved, SparseColumns, SparseEntries
from skerry.quant.runtime.int8_exact import Int8ExactLinear
from skerry.quant.runtime.reference import Reference

WEIGHTS = {
    "int8": AffineGrid(8),
    "int8 asymmetric": AffineGrid(8, symmetric=False),
    "int8 tensor": AffineGrid(8, group_size=0),
    "int3 asymmetric": AffineGrid(3, symmetric=False),
    "full range": AffineGrid(8, full_range=True),
    "victims": OutlierVictim(types=("int",)),
    "mixed": MixedInt8(),
}
INPUTS = {
    "token": TokenDynamic(8),
    "token asymmetric": TokenDynamic(8, symmetric=False),
    "token 4 bits": TokenDynamic(4, ratio=0.9),
    "tensor asymmetric": TensorDynamic(8, symmetric=False),
    "static": TensorStatic(8, True, -2.0, 3.0),
    "integers": RoundClamp(8),
}


def weight(out=48, width=70):
    W = torch.randn(out, width, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.03
    W[7] = 0.0
    return W


def inputs(tokens, width=70):
    x = torch.randn(tokens, width, generator=torch.Generator().manual_seed(1))
    x[:, 5] = 30.0 * x[:, 5] + 9.0
    if tokens > 1:
        x[1] = 0.0
    return x


def agree(kernel, solved, activation, x, bias=None):
    """1e-5 of the sum of absolute products: nothing but float32's own rounding."""
    expected = Reference(solved, activation, bias)(x)
    total = activation.fake(x).abs() @ solved.dense().abs().T + 1.0
    assert ((kernel(x) - expected).abs() <= 1e-5 * total).all()


@pytest.mark.parametrize("form", WEIGHTS)
@pytest.mark.parametrize("activation", INPUTS)
def test_products(form, activation):
    solved, rounding, bias = Solved(WEIGHTS[form].quantize(weight())), INPUTS[activation], torch.ones(48)
    kernel = Int8ExactLinear(solved, rounding, bias, many=17)
    for tokens in (1, 3, 17, 64):
        agree(kernel, solved, rounding, inputs(tokens), bias)
    assert kernel(inputs(3).bfloat16()).dtype == torch.bfloat16
    assert kernel(inputs(6).reshape(2, 3, 70)).shape == (2, 3, 48) and kernel(inputs(6)[:0]).shape == (0, 48)


def test_few_and_many_tokens_are_the_same():
    solved, x = Solved(AffineGrid(8, False).quantize(weight())), inputs(9)
    few, many = (Int8ExactLinear(solved, TokenDynamic(8, False), many=n)(x) for n in (10, 1))
    torch.testing.assert_close(few, many, rtol=1e-5, atol=1e-4)


def test_what_is_added_beside_it():
    g = torch.Generator().manual_seed(2)
    W, columns = weight(), torch.tensor([3, 50], dtype=torch.int32)
    rows = torch.tensor([0, 9], dtype=torch.int32)
    extras = (
        {"sparse": SparseColumns(columns, torch.randn(48, 2, generator=g).bfloat16(), (48, 70))},
        {"sparse": SparseEntries(rows, columns, torch.randn(2, generator=g), (48, 70))},
        {"low_rank": LowRank(torch.randn(48, 4, generator=g), torch.randn(4, 70, generator=g))},
    )
    for extra in extras:
        solved = Solved(AffineGrid(8).quantize(W), **extra)
        for rounding in (TokenDynamic(8), TokenDynamic(8, False)):
            agree(Int8ExactLinear(solved, rounding), solved, rounding, inputs(5))


def test_the_stored_weight_comes_back_and_others_are_refused():
    stored = AffineGrid(8, False).quantize(weight())
    kernel = Int8ExactLinear(Solved(stored), TokenDynamic(8))
    assert torch.equal(kernel.restore().dequantize(), stored.dequantize())
    assert kernel.nbytes == 48 * 70 + 2 * 4 * 48
    for grid, activation in (
        (AffineGrid(4, group_size=35), TokenDynamic(8)),
        (AffineGrid(8), GroupDynamic(8, 35)),
        (AffineGrid(8), None),
    ):
        with pytest.raises(ModelError, match="int8_exact"):
            Int8ExactLinear(Solved(grid.quantize(weight())), activation)


def test_models_use_it_where_products_saturate(monkeypatch, tiny, inputs):
    monkeypatch.setattr("skerry.quant.runtime.w8a8.int8_products", lambda device: False)
    monkeypatch.setattr("skerry.quant.runtime.choose.known_costs", lambda: None)
    found, batch = quant.quantize(tiny("llama"), "rtn", "w8a8"), inputs("llama")[0]
    with torch.no_grad():
        exact = found(batch).logits
        assert set(quant.use_kernels(found).values()) == {"int8_exact"}
        torch.testing.assert_close(found(batch).logits, exact, rtol=1e-3, atol=1e-3)
