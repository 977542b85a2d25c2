"""Where the parts lie: layers that move, and the products of GPUs, whose arithmetic a CPU can check too."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from skerry.quant import quantize, use_kernels
from skerry.quant.activation import RoundClamp, TensorDynamic, TensorStatic, TokenDynamic
from skerry.quant.formats.float4 import Float4
from skerry.quant.formats.float8 import Float8
from skerry.quant.formats.mixed_decomposition import MixedInt8, OutlierSplit
from skerry.quant.formats.outlier_victim import OutlierVictim
from skerry.quant.formats.split import SplitGrid
from skerry.quant.formats.twin_log import TwinLog
from skerry.quant.linear import BlockRotation, InputAffine, QuantizedLinear
from skerry.quant.numerics import AffineGrid
from skerry.quant.parts import LowRank, Solved, SparseColumns, SparseEntries, device_of, on_device
from skerry.quant.runtime import capability, int8_rows, mixed_int8, w8a8
from skerry.quant.runtime.mixed_int8 import MixedInt8Kernel
from skerry.quant.runtime.packing import PackedInt4, PlainInt8
from skerry.quant.runtime.reference import Reference
from skerry.quant.runtime.w4a16 import Int4Linear
from skerry.quant.runtime.w8a8 import Int8Linear
from skerry.quant.runtime.w8a16 import Int8WeightLinear
from skerry.quant.statistics import LayerStatistics

META = torch.device("meta")
FORMATS = {
    "int8": AffineGrid(8),
    "int4 groups": AffineGrid(4, symmetric=False, group_size=32),
    "mixed": MixedInt8("float"),
    "float8": Float8(),
    "float4": Float4(),
    "victims": OutlierVictim(),
    "split": SplitGrid(),
    "twin-log": TwinLog(),
}


def weight(out=96, width=128, seed=0):
    return torch.randn(out, width, generator=torch.Generator().manual_seed(seed)) * 0.1 + 0.03


def inputs(tokens, width=128):
    x = torch.randn(tokens, width, generator=torch.Generator().manual_seed(1))
    x[:, 5] *= 30.0
    return x


@pytest.fixture
def gpu_products(monkeypatch):
    """Let the 8-bit kernels use the product of GPUs, which torch has for CPUs as well."""
    monkeypatch.setattr(int8_rows, "packed_int8", PlainInt8)
    for module in (w8a8, mixed_int8):
        monkeypatch.setattr(module, "int8_products", lambda device: True)


@given(tokens=st.integers(0, 40), width=st.integers(1, 70), out=st.integers(1, 40), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_the_plain_product_is_the_product_of_integers(tokens, width, out, seed):
    g = torch.Generator().manual_seed(seed)
    codes = torch.randint(-128, 128, (out, width), dtype=torch.int8, generator=g)
    x = torch.randint(0, 256, (tokens, width), dtype=torch.uint8, generator=g)
    packed, scale = PlainInt8(codes), torch.rand(out, generator=g)
    exact = (x.long() - 128) @ codes.long().T
    assert torch.equal(packed.product(x), exact.float())
    assert torch.equal(packed.product(x, scale), exact.float() * scale)
    assert torch.equal(packed.codes(), codes)
    columns = torch.arange(width)[::3]
    assert torch.equal(packed.rows(columns), codes[:, columns].T.float())


ROWS = {k: FORMATS[k] for k in ("int8", "mixed")} | {"asymmetric": AffineGrid(8, symmetric=False)}
INPUTS = {
    "token": TokenDynamic(8),
    "token asymmetric": TokenDynamic(8, symmetric=False),
    "tensor": TensorDynamic(8),
    "static asymmetric": TensorStatic(8, False).calibrated(LayerStatistics.of(inputs(20), {"range"})),
    "integers": RoundClamp(8),
}


@pytest.mark.parametrize("form", ROWS)
@pytest.mark.parametrize("activation", INPUTS)
@pytest.mark.parametrize("tokens", [0, 1, 17, 64])
def test_eight_bits_on_the_product_of_gpus(form, activation, tokens, gpu_products):
    stored, rounding, bias = ROWS[form].quantize(weight(33, 47)), INPUTS[activation], torch.arange(33) * 0.1
    extra = SparseColumns(torch.tensor([3, 5], dtype=torch.int32), torch.ones(33, 2), (33, 47))
    branch = LowRank(torch.full((33, 2), 0.1), torch.full((2, 47), 0.1))
    solved = Solved(stored, sparse=extra, low_rank=branch)
    kernel, x = Int8Linear.prepare(solved, rounding, bias), inputs(tokens, 47)
    expected = Reference(solved, rounding, bias)(x)
    total = x.abs() @ solved.dense().abs().T + bias
    assert ((kernel(x) - expected).abs() <= 1e-4 * total + 1e-5).all()
    restored = kernel.restore()
    assert torch.equal(restored.codes, stored.codes)


@pytest.mark.parametrize("split", [OutlierSplit(), OutlierSplit(symmetric=False), OutlierSplit(1e9)])
def test_decomposition_on_the_product_of_gpus(split, gpu_products):
    solved, x = Solved(MixedInt8().quantize(weight(33, 47))), inputs(18, 47)
    expected = Reference(solved, split)(x)
    assert torch.allclose(MixedInt8Kernel.prepare(solved, split)(x), expected, atol=1e-3)


@pytest.mark.parametrize("kind", ["w8a8", "mixed", "w4a16", "w4a16 rows", "w8a16", "w8a16 groups"])
def test_kernels_make_nothing_on_another_device(kind, gpu_products):
    """Tensors made without a device would land on the default one, here a device that cannot be mixed with the CPU."""
    if kind.startswith("w4a16") and not capability.int4_products():
        pytest.skip("this build of torch has no int4 product")
    grid = {
        "w4a16": AffineGrid(4, symmetric=False, group_size=32),
        "w4a16 rows": AffineGrid(4),
        "w8a16 groups": AffineGrid(8, group_size=32),
        "mixed": MixedInt8(),
    }.get(kind, AffineGrid(8, symmetric=False))
    kernel_class = {"w8": Int8Linear, "mi": MixedInt8Kernel, "w4": Int4Linear}[kind[:2]]
    kernel_class = Int8WeightLinear if kind.startswith("w8a16") else kernel_class
    activation = {"w8a8": TokenDynamic(8, symmetric=False), "mixed": OutlierSplit()}.get(kind)
    solved, bias = Solved(grid.quantize(weight())), torch.ones(96)
    sent = [inputs(2)[:0], inputs(1), inputs(64)]
    here = kernel_class.prepare(solved, activation, bias)
    expected = [here(x) for x in sent]
    with META:
        kernel = kernel_class.prepare(solved, activation, bias)
        found = [kernel(x) for x in sent]
        restored = kernel.restore()
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))
    assert torch.equal(restored.codes, solved.weight.codes)


@pytest.mark.parametrize("form", FORMATS)
def test_formats_make_nothing_on_another_device(form):
    W = weight()
    stored = FORMATS[form].quantize(W)
    expected = stored.tensors() | {"dense": stored.dequantize()}
    with META:
        again = FORMATS[form].quantize(W)
        found = again.tensors() | {"dense": again.dequantize()}
        read = type(again).from_tensors(again.meta(), again.tensors()).dequantize()
    assert all(torch.equal(found[k].float(), expected[k].float()) for k in expected)
    assert torch.equal(read, expected["dense"])


@pytest.mark.parametrize("form", FORMATS)
def test_a_layer_moves_with_all_that_it_holds(form):
    W = weight()
    solved = Solved(
        FORMATS[form].quantize(W),
        sparse=SparseEntries(torch.tensor([1]), torch.tensor([2]), torch.ones(1), (96, 128)),
        low_rank=LowRank(torch.ones(96, 1), torch.ones(1, 128)),
    )
    before = (InputAffine(torch.ones(128), torch.zeros(128)), BlockRotation(128, torch.eye(128), torch.arange(128)))
    layer = QuantizedLinear(solved, TokenDynamic(8), torch.ones(96), before)
    here = layer.solved.dense()
    moved = copy.deepcopy(layer).to(META)
    held = [*moved.solved.weight.tensors().values(), *(t for b in moved.before for t in b.tensors().values())]
    held += [moved.solved.sparse.values, moved.solved.low_rank.up, moved.bias, moved.solved.dense()]
    assert all(t.device == META for t in held)
    assert torch.equal(layer.solved.dense(), here)  # the one it was copied from stays
    narrow = layer.half()
    assert narrow.bias.dtype == torch.float16 and torch.equal(narrow.solved.dense(), here)


def test_a_layer_gets_a_kernel_where_it_goes():
    model = quantize(nn.Sequential(nn.Linear(64, 64)), "rtn", "w8a8")
    use_kernels(model)
    codes = model[0].solved.weight.codes.clone()
    model.to("cpu")
    assert model[0].kernel is not None
    kernel = model[0].kernel
    model.to(torch.float64)  # no other device: the kernel stays
    assert model[0].kernel is kernel and torch.equal(model[0].solved.weight.codes, codes)
    model.to(META)
    assert model[0].kernel is not kernel and device_of(model[0].solved.weight) == META


def test_parts_on_a_device_keep_everything_else():
    solved = Solved(AffineGrid(4).quantize(weight()), objective=1.5, info={"axis": 1})
    there = on_device(solved, META)
    assert there.weight.codes.device == META and there.weight.grid == solved.weight.grid
    assert (there.objective, there.info, there.sparse) == (1.5, {"axis": 1}, None)
    assert on_device("text", META) == "text"


def test_products_that_a_device_lacks_are_found_missing():
    assert not capability.int8_products("meta")
    assert not capability.int4_products("meta")
    assert capability.product_dtype("meta") == torch.bfloat16


@pytest.mark.parametrize(("tokens", "out", "width"), [(0, 33, 47), (1, 33, 47), (17, 64, 64), (40, 128, 256)])
def test_shapes_that_the_products_of_gpus_take(tokens, out, width):
    codes = torch.zeros(out, width, dtype=torch.int8, device=META)
    product = PlainInt8(codes).product(torch.zeros(tokens, width, dtype=torch.uint8, device=META))
    assert product.shape == (tokens, out) and product.dtype == torch.float32
    packed = PackedInt4(codes)  # torch checks the tiles, here too
    assert packed.lanes == 0 and packed.nbytes == packed.rows * packed.columns // 2
