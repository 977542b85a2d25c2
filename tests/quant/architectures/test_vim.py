"""Vision Mamba in the engine: split blocks and every transform keep its function; it is saved, loaded, put together."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import skerry.quant as quant
from skerry.bench.mamba_models import plant_gates
from skerry.core.errors import ModelError
from skerry.deep.vision_mamba import VisionMamba
from skerry.quant.architectures.base import architecture_of
from skerry.quant.architectures.vim_block import SplitVimBlock
from skerry.quant.engine import quantize_model
from skerry.quant.recipe import Recipe
from skerry.quant.recipes import make_recipe
from skerry.quant.transforms.klt_rotation import KLTResidual, KLTSteps
from skerry.quant.transforms.smooth_fused import PLACES, SmoothFused, StateHadamard

ROTATE = ("residual", "dt", "out", "state", "input")


def tiny(width=16, states=4, rank=4, seed=0):
    torch.manual_seed(seed)
    model = VisionMamba(image_size=12, width=width, blocks=2, states=states, rank=rank).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():  # norms that do something, both directions unlike
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.rand(parameter.shape, generator=generator)
        else:
            parameter.data *= 1.0 + torch.rand(parameter.shape, generator=generator)
    return model


def images(count=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 1, 12, 12, generator=generator) for _ in range(count)]


@torch.no_grad()
def difference(a, b, x):
    u, v = a(x), b(x)
    return float((u - v).norm() / v.norm())


def test_split_and_planted_blocks_compute_the_same():
    model, x = tiny(), images()[0]
    split = copy.deepcopy(model)
    architecture_of(split).prepare(split)
    assert isinstance(split.layers[0], SplitVimBlock)
    assert difference(split, model, x) < 1e-6
    planted = plant_gates(model, steps=2)
    assert difference(planted, model, x) < 1e-5
    scans = planted.layers[0].mixer.scans
    pairs = zip(scans, split.layers[0].mixer.scans, strict=True)
    ratios = [new.step_proj.weight / old.step_proj.weight for new, old in pairs]
    assert [int((r.mean(1) > 20).sum()) for r in ratios] == [2, 2] and not torch.equal(*ratios)


@settings(max_examples=8, deadline=None)
@given(
    st.integers(0, 100),
    st.sampled_from([(16, 4, 4), (10, 6, 3)]),  # with Hadamard matrices, and without
    st.lists(st.sampled_from(PLACES), unique=True),
    st.lists(st.sampled_from(ROTATE), unique=True),
    st.booleans(),
    st.booleans(),
)
def test_every_transform_keeps_the_function(seed, sizes, smooth, rotate, klt, centre):
    model, batches = plant_gates(tiny(*sizes, seed=seed), steps=2), images(2, seed)
    steps = KLTSteps(klt=klt, centre=centre, rotate="dt" in rotate, random_state=seed)
    online = StateHadamard("out" in rotate, "state" in rotate, "input" in rotate, seed)
    residual = (KLTResidual(klt=klt, random_state=seed),) if "residual" in rotate else ()
    recipe = Recipe("x", transforms=(*residual, SmoothFused(tuple(smooth)), online, steps))
    found, _ = quantize_model(model, recipe, calibration=batches)
    assert all(difference(found, model, x) < 2e-5 for x in batches)


def test_both_directions_are_transformed_and_rounded():
    model, batches = plant_gates(tiny(), steps=2), images()
    recipe = make_recipe("mambaquant", "w8a8", smooth=PLACES, centre=True)
    found, report = quantize_model(model, recipe, calibration=batches)
    assert report.architecture == "Vision Mamba" and len(report.layers) == 2 * (3 + 2 * 4)
    for block in found.layers:
        assert block.mixer.gate_scale is not None
        for scan in block.mixer.scans:
            assert scan.channel_scale is not None and scan.state_rotation is not None
            assert scan.state.bits == scan.readout.bits == scan.conv_input.bits == 8
        kernels = [scan.conv1d.weight for scan in block.mixer.scans]
        assert all(len(row.unique()) <= 4 for kernel in kernels for row in kernel)
    assert difference(found, model, batches[0]) < 0.1
    aligned = [t["variance_ratio"] for t in report.transforms if "variance_ratio" in t]
    assert len(aligned) == 1 + 2 * 2 and max(aligned) - 1 < 1e-6  # the stream, each direction's time step


@pytest.mark.parametrize("recipe", ["rtn", "smoothquant", "quarot", "gptq"])
def test_recipes_of_others_work(recipe):
    found, report = quantize_model(tiny(), make_recipe(recipe, "w8a8"), calibration=images())
    assert len(report.layers) == 22 and difference(found, tiny(), images()[0]) < 0.2


@pytest.mark.parametrize("sizes", [(16, 4, 4), (10, 6, 3)])
def test_saved_and_loaded_it_computes_the_same(tmp_path, sizes):
    model, batches = plant_gates(tiny(*sizes), steps=2), images()
    recipe = make_recipe("mambaquant", "w8a8", smooth=PLACES, centre=True)
    found, _ = quantize_model(model, recipe, calibration=batches)
    assert quant.save(found, tmp_path / "out")["layout"] == "skerry-v1"
    back = quant.load(tmp_path / "out", tiny(*sizes, seed=5))
    with torch.no_grad():
        assert torch.equal(back(batches[0]), found(batches[0]))


def test_dense_weights_fit_the_plain_model(tmp_path):
    from safetensors.torch import load_file

    model, batches = tiny(), images()
    found, _ = quantize_model(model, make_recipe("mambaquant", "w4a16", smooth=("bc", "dt", "conv"), rotate=("dt",)),
                              calibration=batches)  # fmt: skip
    quant.save(found, tmp_path / "out", layout="dense")
    plain = tiny(seed=5)
    plain.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"))
    assert difference(plain, found, batches[0]) < 1e-5
    planted, _ = quantize_model(plant_gates(model), make_recipe("rtn", "w8a16"))
    with pytest.raises(ModelError, match="gate scale, which is not part of Vision Mamba"):
        quant.save(planted, tmp_path / "other", layout="dense")
