"""Convolutions as unfolded linear layers: the patches are those of the layer, and solvers keep their promises."""

import pytest
import torch
from torch import nn

from skerry.core.errors import DataError, ModelError
from skerry.quant.numerics import AffineGrid
from skerry.quant.solvers import GPTQ, RTN, QuantEase
from skerry.quant.solvers.convolution import patches_of, solve_convolution

LAYERS = [
    (nn.Conv2d(3, 8, 3, stride=2, padding=1), (4, 3, 9, 8)),
    (nn.Conv2d(4, 8, (3, 1), padding=(1, 0), groups=2, bias=False), (3, 4, 7, 6)),
    (nn.Conv2d(6, 6, 3, groups=6, padding="same", dilation=2), (2, 6, 8, 8)),
    (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (2, 3, 6, 6)),
    (nn.Conv1d(4, 6, 5, stride=2, padding=2), (5, 4, 21)),
    (nn.Conv1d(4, 8, 3, padding=1, groups=4, padding_mode="circular"), (3, 4, 12)),
]


def inputs(shape, seed=0):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return x.cumsum(-1) / shape[-1] ** 0.5  # neighbours alike, as in images


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_patches_times_kernels_are_the_layer(layer, shape):
    x, patches = inputs(shape), patches_of(layer, inputs(shape))
    exact = layer(x)
    kernels = layer.weight.flatten(1).chunk(layer.groups)
    product = torch.cat([p @ W.T for p, W in zip(patches, kernels, strict=True)], -1).mT.reshape(exact.shape)
    if layer.bias is not None:
        product = product + layer.bias.reshape(-1, *[1] * (exact.ndim - 2))
    torch.testing.assert_close(product, exact, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_the_error_is_that_of_the_output_and_never_rises(layer, shape):
    batches = [inputs(shape, seed) for seed in range(3)]
    grid = AffineGrid(3, symmetric=False)
    errors = {}
    for label, solver in (("rtn", RTN()), ("gptq", GPTQ()), ("quantease", QuantEase())):
        found, solved = solve_convolution(layer, batches, solver, grid, name="stem")
        with torch.no_grad():
            errors[label] = sum(float((found(x) - layer(x)).square().sum()) for x in batches)
        if label != "rtn":
            assert errors[label] == pytest.approx(sum(s.objective for s in solved), rel=1e-3)
        assert len(solved) == layer.groups
        assert all(len(row.unique()) <= 8 for row in found.weight.flatten(1))
        assert layer.weight is not found.weight
    assert errors["quantease"] <= errors["gptq"] * (1 + 1e-6)
    assert errors["gptq"] < errors["rtn"] * 1.02


def test_outliers_are_kept_beside_the_kernel():
    torch.manual_seed(0)
    layer, x = nn.Conv2d(4, 8, 3), inputs((4, 4, 8, 8))
    layer.weight.data.view(-1)[::60] *= 15.0
    plain, apart = (
        solve_convolution(layer, [x], QuantEase(outliers=share), AffineGrid(3, symmetric=False))
        for share in (0.0, 0.03)
    )
    assert len(apart[1][0].sparse.values) <= round(0.03 * layer.weight.numel())
    with torch.no_grad():
        a, b = (float((m(x) - layer(x)).norm()) for m, _ in (apart, plain))
    assert a < b


def test_what_is_no_convolution_or_no_data():
    grid, layer = AffineGrid(4), nn.Conv2d(3, 4, 3)
    with pytest.raises(ModelError, match=r"up.*ConvTranspose2d"):
        solve_convolution(nn.ConvTranspose2d(3, 4, 3), [inputs((1, 3, 5, 5))], RTN(), grid, name="up")
    with pytest.raises(DataError, match="no input"):
        solve_convolution(layer, [], GPTQ(), grid)
    with pytest.raises(DataError, match="do not fit 3 channels"):
        solve_convolution(layer, [inputs((1, 4, 5, 5))], GPTQ(), grid)
    with pytest.raises(ModelError, match=r"stem.*NaN"):
        solve_convolution(layer, [inputs((1, 3, 5, 5)) * float("nan")], GPTQ(), grid, name="stem")
