"""Every kernel against dequantizing and multiplying, over tokens, widths, biases, zero points and extras."""

import pytest
import torch

from skerry.core.errors import ModelError
from skerry.quant.activation import RoundClamp, TensorDynamic, TensorStatic, TokenDynamic
from skerry.quant.formats.mixed_decomposition import MixedInt8, OutlierSplit
from skerry.quant.formats.outlier_victim import OutlierVictim
from skerry.quant.formats.twin_log import TwinLog
from skerry.quant.numerics import AffineGrid
from skerry.quant.parts import LowRank, Solved, SparseColumns, SparseEntries
from skerry.quant.runtime.capability import int4_products, int8_products, product_dtype
from skerry.quant.runtime.mixed_int8 import MixedInt8Kernel
from skerry.quant.runtime.reference import Reference
from skerry.quant.runtime.w4a16 import Int4Linear
from skerry.quant.runtime.w8a8 import Int8Linear
from skerry.quant.runtime.w8a16 import Int8WeightLinear
from skerry.quant.statistics import LayerStatistics

TOKENS = (1, 3, 17, 64)
needs_int8 = pytest.mark.skipif(not int8_products(), reason="this processor has no exact 8-bit products")
needs_int4 = pytest.mark.skipif(not int4_products(), reason="this build of torch has no int4 product")


def weight(out=96, width=128, seed=0):
    g = torch.Generator().manual_seed(seed)
    W = torch.randn(out, width, generator=g) * 0.1 + 0.03
    W[7] = 0.0  # a dead row
    return W


def inputs(tokens, width=128, seed=1):
    x = torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed))
    x[:, 5] *= 30.0
    x[tokens // 2, 9] = 8.0
    if tokens > 1:
        x[1] = 0.0  # a dead token
    return x


def agree(kernel, solved, activation, x, bias=None, cast=False, weight16=False):
    """Compare with the reference: 1e-4 of the sum of absolute products, plus the last bit of a 16-bit output."""
    seen = x.float()
    if cast:  # weight-only products: what is multiplied is the rounded input, in bfloat16
        seen = (x if activation is None else activation.fake(x)).bfloat16().float()
    expected = Reference(solved, None if cast else activation, bias)(seen)
    dense = solved.dense().abs()
    total = seen.abs() @ dense.T + (0 if bias is None else bias.abs())
    got = kernel(x)
    assert got.dtype == x.dtype
    slack = 1e-4 * total + 1e-6
    if cast:  # the product itself comes in bfloat16
        slack = slack + 2.0**-8 * (seen @ solved.weight.dequantize().T).abs()
    if weight16:  # every weight is off by up to 2^-9, independently
        slack = slack + 4 * 2.0**-9 * (seen**2 @ solved.weight.dequantize().T ** 2).sqrt()
    if x.dtype == torch.bfloat16:
        slack = slack + 2.0**-8 * expected.abs()
    assert ((got.float() - expected).abs() <= slack).all(), float(((got.float() - expected).abs() / slack).max())


ROWS = {
    "int8": AffineGrid(8),
    "int8 asymmetric": AffineGrid(8, symmetric=False),
    "int8 tensor": AffineGrid(8, group_size=0),
    "int4": AffineGrid(4),
    "int3 asymmetric": AffineGrid(3, symmetric=False),
    "full range": AffineGrid(8, full_range=True),
    "victims": OutlierVictim(types=("int",)),
    "mixed": MixedInt8(),
}
INPUTS = {
    "token": TokenDynamic(8),
    "token asymmetric": TokenDynamic(8, symmetric=False),
    "token 4 bits": TokenDynamic(4, ratio=0.9),
    "tensor": TensorDynamic(8),
    "tensor asymmetric": TensorDynamic(8, symmetric=False),
    "static": TensorStatic(8).calibrated(LayerStatistics.of(inputs(20) * 0.8, {"range"})),
    "static asymmetric": TensorStatic(8, False).calibrated(LayerStatistics.of(inputs(20), {"range"})),
    "integers": RoundClamp(8),
}


@needs_int8
@pytest.mark.parametrize("form", ROWS)
@pytest.mark.parametrize("activation", INPUTS)
def test_eight_bit_products(form, activation):
    solved, rounding = Solved(ROWS[form].quantize(weight())), INPUTS[activation]
    kernel = Int8Linear.prepare(solved, rounding)
    for tokens in TOKENS:
        x = inputs(tokens) * (4.0 if activation == "integers" else 1.0)
        agree(kernel, solved, rounding, x)
    agree(kernel, solved, rounding, inputs(17).bfloat16())


@needs_int8
@pytest.mark.parametrize(("out", "width"), [(33, 47), (1, 8), (130, 257)])
def test_eight_bit_products_of_odd_widths_shapes_and_bias(out, width):
    W, bias = torch.randn(out, width, generator=torch.Generator().manual_seed(0)), torch.arange(out) * 0.1
    for grid, activation in ((AffineGrid(8), TokenDynamic(8)), (AffineGrid(8, False), TokenDynamic(8, False))):
        solved = Solved(grid.quantize(W))
        kernel = Int8Linear.prepare(solved, activation, bias)
        x = torch.randn(2, 3, width, generator=torch.Generator().manual_seed(1))
        assert kernel(x).shape == (2, 3, out)
        agree(kernel, solved, activation, x.reshape(6, width), bias)
        assert kernel(x[:, :0]).shape == (2, 0, out)


SPLITS = {
    "dynamic": OutlierSplit(),
    "entries": OutlierSplit(scope="entries"),
    "zero point": OutlierSplit(symmetric=False),
    "none": OutlierSplit(1e9),
    "all": OutlierSplit(0.0),
}


@needs_int8
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("form", ["int8", "float", "asymmetric", "odd"])
def test_decomposed_products(split, form):
    W = weight(33, 47) if form == "odd" else weight()
    stored = (
        AffineGrid(8, False).quantize(W)
        if form == "asymmetric"
        else MixedInt8("float" if form == "float" else "int8").quantize(W)
    )
    solved, rounding, bias = Solved(stored), SPLITS[split], torch.ones(len(W))
    kernel = MixedInt8Kernel.prepare(solved, rounding, bias)
    for tokens in TOKENS:
        agree(kernel, solved, rounding, inputs(tokens, W.shape[1]), bias)
    agree(kernel, solved, rounding, inputs(17, W.shape[1]).bfloat16(), bias)
    assert 5 in kernel.outliers or split == "none"
    assert kernel(inputs(6, W.shape[1]).reshape(2, 3, -1)).shape == (2, 3, len(W))


@needs_int8
def test_static_columns():
    W, x = weight(), inputs(17)
    split = OutlierSplit(mode="static").calibrated(LayerStatistics.of(x, {"absmax"}))
    solved = MixedInt8().with_columns(W, split.columns)
    assert MixedInt8Kernel.matches(solved, split)
    agree(MixedInt8Kernel.prepare(solved, split), solved, split, x)
    assert not MixedInt8Kernel.matches(solved, OutlierSplit(mode="static"))
    assert not MixedInt8Kernel.matches(solved, OutlierSplit())
    plain = Solved(MixedInt8().quantize(W))
    agree(MixedInt8Kernel.prepare(plain, split), plain, split, x)


@needs_int8
def test_no_outlier_means_the_plain_product():
    W, x = weight(), torch.randn(5, 128, generator=torch.Generator().manual_seed(0)).clamp(-5, 5)
    mixed = MixedInt8Kernel.prepare(Solved(MixedInt8().quantize(W)), OutlierSplit())
    plain = Int8Linear.prepare(Solved(MixedInt8().quantize(W)), TokenDynamic(8))
    assert torch.equal(mixed(x), plain(x))
    assert len(mixed.outliers) == 0


FOUR = {
    "group": AffineGrid(4, group_size=32),
    "group bf16": AffineGrid(4, group_size=64, scale_dtype="bfloat16"),
    "group asymmetric": AffineGrid(4, False, 32),
    "row": AffineGrid(4),
    "row asymmetric": AffineGrid(3, False),
    "tensor": AffineGrid(2, group_size=0),
    "full range": AffineGrid(4, group_size=128, full_range=True),
}


@needs_int4
@pytest.mark.parametrize("form", FOUR)
@pytest.mark.parametrize("activation", [None, TokenDynamic(8), TokenDynamic(4, False)], ids=str)
def test_four_bit_weights(form, activation):
    solved, bias = Solved(FOUR[form].quantize(weight())), torch.ones(96)
    kernel = Int4Linear.prepare(solved, activation, bias)
    for tokens in TOKENS:
        agree(kernel, solved, activation, inputs(tokens), bias, cast=True)
        agree(kernel, solved, activation, inputs(tokens).bfloat16(), bias, cast=True)
    many = Int4Linear(solved, activation, bias, many=2)
    grouped = FOUR[form].group_size not in (-1, 0, 128)
    agree(many, solved, activation, inputs(17), bias, cast=True, weight16=grouped)
    assert kernel(inputs(6).reshape(2, 3, -1)).shape == (2, 3, 96)
    assert kernel(inputs(1)[:0]).shape == (0, 96)


@needs_int4
@pytest.mark.parametrize(("out", "width", "group"), [(33, 47, -1), (1, 32, 32), (200, 96, 32), (70, 512, 512)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_four_bit_weights_of_odd_widths(out, width, group, symmetric):
    W = torch.randn(out, width, generator=torch.Generator().manual_seed(3))
    solved = Solved(AffineGrid(4, symmetric, group).quantize(W))
    for many in (2, 1000):
        kernel = Int4Linear(solved, None, many=many)
        x = torch.randn(5, width, generator=torch.Generator().manual_seed(4))
        agree(kernel, solved, None, x, cast=True, weight16=many == 2 and group not in (-1, width))
    assert torch.equal(kernel.restore().codes, solved.weight.codes)


@pytest.mark.parametrize("form", [*ROWS, "group", "group asymmetric"])
@pytest.mark.parametrize("activation", [None, TokenDynamic(8)], ids=str)
def test_eight_bit_weights(form, activation):
    grids = {"group": AffineGrid(8, group_size=32), "group asymmetric": AffineGrid(6, False, 32)}
    solved, bias = Solved((ROWS | grids)[form].quantize(weight())), torch.ones(96)
    for many in (1000, 2):
        kernel = Int8WeightLinear(solved, activation, bias, many=many)
        for tokens in TOKENS:
            x = inputs(tokens)
            agree(kernel, solved, activation, x, bias, cast=True, weight16=form in grids)
    agree(kernel, solved, activation, inputs(3).bfloat16(), bias, cast=True, weight16=form in grids)
    odd = Solved(AffineGrid(8).quantize(weight(33, 47)))
    agree(Int8WeightLinear.prepare(odd, None), odd, None, inputs(5, 47), cast=True)
    assert kernel(inputs(1)[:0].reshape(0, 2, 128)).shape == (0, 2, 96)


def extras(out=96, width=128):
    g = torch.Generator().manual_seed(9)
    columns = torch.tensor([3, 5], dtype=torch.int32)
    some = torch.randperm(out * width, generator=g)[:50]
    return {
        "columns": {"sparse": SparseColumns(columns, torch.randn(out, 2, generator=g).bfloat16(), (out, width))},
        "entries": {
            "sparse": SparseEntries(
                (some // width).int(), (some % width).int(), torch.randn(50, generator=g).bfloat16(), (out, width)
            )
        },
        "low rank": {"low_rank": LowRank(torch.randn(out, 4, generator=g), torch.randn(4, width, generator=g))},
    }


@needs_int8
@needs_int4
@pytest.mark.parametrize("extra", ["columns", "entries", "low rank"])
def test_parts_beside_the_weight(extra):
    parts = extras()[extra]
    for kind, grid, activation in (
        (Int8Linear, AffineGrid(8, False), TokenDynamic(8, False)),
        (Int8Linear, AffineGrid(8), TokenDynamic(8)),
        (Int4Linear, AffineGrid(4, group_size=32), None),
        (Int8WeightLinear, AffineGrid(8), None),
    ):
        solved = Solved(grid.quantize(weight()), **parts)
        kernel = kind.prepare(solved, activation, torch.ones(96))
        for tokens in (1, 17):
            agree(
                kernel, solved, activation, inputs(tokens).bfloat16().float(), torch.ones(96), cast=activation is None
            )


@needs_int8
@needs_int4
@pytest.mark.parametrize("form", ROWS)
def test_the_packed_copy_gives_the_weight_back(form):
    stored = ROWS[form].quantize(weight(33, 48))
    kernels = [Int8Linear.prepare(Solved(stored), TokenDynamic(8)), Int8WeightLinear.prepare(Solved(stored), None)]
    if Int4Linear.matches(Solved(stored), None):
        kernels.append(Int4Linear.prepare(Solved(stored), None))
    for kernel in kernels:
        back = kernel.restore()
        assert type(back) is type(stored)
        assert all(torch.equal(a, b) for a, b in zip(back.tensors().values(), stored.tensors().values(), strict=True))


@needs_int8
@needs_int4
def test_memory_is_that_of_the_bits():
    W = torch.randn(256, 512, generator=torch.Generator().manual_seed(0))
    eight = Int8Linear.prepare(Solved(AffineGrid(8).quantize(W)), TokenDynamic(8))
    assert eight.nbytes <= W.numel() * 1.05
    solved = Solved(AffineGrid(4, group_size=128, scale_dtype="bfloat16").quantize(W))
    assert Int4Linear.prepare(solved, None).nbytes <= 1.05 * solved.nbytes


def test_what_does_not_fit_is_refused():
    grouped, log = Solved(AffineGrid(8, group_size=32).quantize(weight())), Solved(TwinLog().quantize(weight()))
    assert not Int8Linear.matches(grouped, TokenDynamic(8))
    assert not Int8Linear.matches(Solved(AffineGrid(8).quantize(weight())), TokenDynamic(16))
    assert not Int4Linear.matches(grouped, None)
    assert not Int4Linear.matches(Solved(AffineGrid(4, axis=0).quantize(weight())), None)
    assert not Int8WeightLinear.matches(Solved(MixedInt8("float").quantize(weight())), OutlierSplit())
    for kind in (Int8Linear, Int4Linear, Int8WeightLinear, MixedInt8Kernel):
        with pytest.raises(ModelError, match="does not fit"):
            kind.prepare(log, TokenDynamic(8))
    assert torch.allclose(Reference.prepare(log, None)(inputs(3)), inputs(3) @ log.dense().T, atol=1e-4)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("group_size", [-1, 32])
@pytest.mark.parametrize("symmetric", [True, False])
def test_many_tokens_in_either_float_type(kind, group_size, symmetric, monkeypatch):
    """Blocks are multiplied in what the processor does quickest; float32 adds no rounding of its own."""
    kernels = [(Int8WeightLinear, 8)] + ([(Int4Linear, 4)] if int4_products() else [])
    for kernel, bits in kernels:
        monkeypatch.setattr(f"{kernel.__module__}.product_dtype", lambda device="cpu": kind)
        solved = Solved(AffineGrid(bits, symmetric, group_size).quantize(weight()))
        half = kind == torch.bfloat16
        x = inputs(64)
        prepared = kernel(solved, None, many=4)
        if half:
            agree(prepared, solved, None, x, cast=True, weight16=True)
        else:
            exact = x.bfloat16().float() @ solved.dense().T
            torch.testing.assert_close(prepared(x), exact, atol=1e-4 * float(exact.abs().max()), rtol=1e-4)


def test_the_quickest_float_type_is_known():
    assert product_dtype() in (torch.bfloat16, torch.float32)
