"""The compressed-tensors layout: golden words, the library's own reading, and transformers loading a folder."""

import json

import pytest
import torch

pytest.importorskip("transformers")

from transformers import AutoModelForCausalLM, CompressedTensorsConfig, LlamaConfig, LlamaForCausalLM

from skerry.core.errors import ModelError
from skerry.quant.activation import TensorStatic, TokenDynamic
from skerry.quant.api import quantize
from skerry.quant.checkpoint import load, save
from skerry.quant.checkpoint_compressed import layer_tensors, pack_words, scheme_of, unpack_words
from skerry.quant.formats.float4 import Float4
from skerry.quant.formats.float8 import Float8, Float8Token
from skerry.quant.linear import QuantizedLinear
from skerry.quant.numerics import AffineGrid
from skerry.quant.parts import Solved
from skerry.quant.recipe import Recipe

SCHEMES = {
    "w4a16": (AffineGrid(4, group_size=32), None, "pack-quantized"),
    "w4a16 full": (
        AffineGrid(4, group_size=32, full_range=True, scale_dtype="bfloat16"),
        None,
        "pack-quantized",
    ),
    "w3a16": (AffineGrid(3, group_size=32), None, "pack-quantized"),
    "w8a16": (AffineGrid(8), None, "pack-quantized"),
    "w4a16 asymmetric": (AffineGrid(4, False, 32), None, "pack-quantized"),
    "w4a16 asymmetric row": (AffineGrid(4, False), None, "pack-quantized"),
    "w8a8": (AffineGrid(8), TokenDynamic(8), "int-quantized"),
    "w8a8 asymmetric": (AffineGrid(8, False), TokenDynamic(8), "int-quantized"),
    "w4a8": (AffineGrid(4), TokenDynamic(8), "pack-quantized"),
    "fp8": (Float8(), Float8Token(), "float-quantized"),
    "nvfp4": (Float4("nvfp4"), None, "nvfp4-pack-quantized"),
    "mxfp4": (Float4("mxfp4"), None, "mxfp4-pack-quantized"),
}


def words(codes, bits):
    return [int(w) & 0xFFFFFFFF for w in pack_words(torch.tensor([codes], dtype=torch.int8), bits)[0]]


def test_golden_words():
    assert words([-8, -7, -1, 0, 1, 2, 6, 7], 4) == [0xFEA98710]
    assert words([i % 8 - 4 for i in range(32)], 3) == [0x88FAC688, 0xC688FAC6, 0xFAC688FA]
    assert words([-128, -1, 0, 127], 8) == [0xFF807F00]


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("n", [1, 7, 32, 33])
def test_words_round_trip(bits, n):
    g = torch.Generator().manual_seed(n)
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (5, n), generator=g).to(torch.int8)
    assert torch.equal(unpack_words(pack_words(codes, bits), bits, n), codes)
    with pytest.raises(ModelError, match="do not hold"):
        unpack_words(pack_words(codes, bits), bits, n + 32)


def test_golden_grids():
    W = torch.tensor([[-1.0, 0.5, 0.0, 0.25]])
    assert float(AffineGrid(4, full_range=True).fit(W)[0]) == pytest.approx(1 / 7.5)
    assert float(AffineGrid(8, full_range=True).fit(W)[0]) == pytest.approx(1 / 127.5)
    scale, zero = AffineGrid(4, symmetric=False).fit(W)
    assert (float(scale), int(zero)) == (pytest.approx(0.1), 2)


def llama(dtype=torch.float32, tie=False):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tie,
    )
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def quantized(scheme, dtype=torch.float32, tie=False):
    weight, activation, _ = SCHEMES[scheme]
    return quantize(llama(dtype, tie), Recipe("test", weight, activation=activation))


def logits(model):
    x = torch.randint(0, 64, (2, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(x).logits.float()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_library_reads_every_layer(scheme):
    library = pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    from compressed_tensors.quantization import QuantizationScheme

    weight, activation, form = SCHEMES[scheme]
    W = torch.randn(48, 64, generator=torch.Generator().manual_seed(0))
    W[3] = 0.0
    solved = Solved(weight.quantize(W))
    described = scheme_of(solved, activation)
    assert described["format"] == form
    found = QuantizationScheme(targets=["Linear"], **described)
    compressor = library.compressors.base.BaseCompressor.get_value_from_registry(form)
    back = compressor.decompress(layer_tensors(solved.weight, form), found)["weight"]
    tolerance = 2.0**-8 if "fp4" in scheme or solved.weight.tensors()["scale"].dtype == torch.bfloat16 else 1e-6
    assert torch.allclose(back.float(), solved.dense(), rtol=tolerance, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_transformers_loads_what_we_wrote(scheme, dtype, tmp_path):
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    model = quantized(scheme, dtype)
    facts = save(model, tmp_path / "out")
    assert facts["layout"] == "compressed-tensors"
    assert not list(tmp_path.glob(".*"))
    ours = load(tmp_path / "out")
    assert torch.equal(logits(ours), logits(model))
    if "fp4" in scheme and dtype == torch.float32:
        pytest.skip("this transformers makes bfloat16 weights of FP4 in a float32 model, which then cannot run")
    how = {}
    if "asymmetric" in scheme:  # this transformers loads packed zero points, its own files' too, only in this way
        how["quantization_config"] = CompressedTensorsConfig(dequantize=True)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", **how)
    exact = SCHEMES[scheme][1] is None and dtype == torch.float32
    slack = 1e-3 if exact else 0.05
    assert float((logits(theirs) - logits(model)).abs().max()) <= slack * float(logits(model).abs().max())


def test_several_schemes_name_their_layers(tmp_path):
    eight = {"weight": AffineGrid(8), "activation": TokenDynamic(8)}
    recipe = Recipe("mixed", AffineGrid(4, group_size=32), overrides=(("*down_proj", eight),))
    model = quantize(llama(), recipe)
    save(model, tmp_path / "out", shard_bytes=20_000)
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["format"] == "mixed-precision"
    assert sorted(len(g["targets"]) for g in config["config_groups"].values()) == [2, 12]
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    assert torch.equal(logits(load(tmp_path / "out")), logits(model))
    if pytest.importorskip("compressed_tensors"):
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        assert float((logits(theirs) - logits(model)).abs().max()) <= 0.05 * float(logits(model).abs().max())


@pytest.mark.parametrize("tie", [True, False])
def test_tied_embeddings_are_written_once_and_other_shared_tensors_each(tie, tmp_path):
    from safetensors import safe_open

    model = quantized("w8a8", tie=tie)
    for layer in model.model.layers:
        layer.input_layernorm.weight = model.model.norm.weight  # shared by chance, not by the architecture
    save(model, tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert ("lm_head.weight" in names) != tie
    assert "model.layers.1.input_layernorm.weight" in names
    assert torch.equal(logits(load(tmp_path / "out")), logits(model))


def test_bytes_are_those_of_the_bits(tmp_path):
    model = quantized("w4a16 full")
    facts = save(model, tmp_path / "out")
    layers = [m for m in model.modules() if isinstance(m, QuantizedLinear)]
    shapes = 16 * len(layers)  # weight_shape
    floats = sum(t.numel() * 4 for k, t in model.state_dict().items())
    assert facts["bytes"] == sum(m.nbytes for m in layers) + shapes + floats
    assert (
        facts["bytes"]
        <= sum(f.stat().st_size for f in (tmp_path / "out").glob("*.safetensors"))
        <= facts["bytes"] + 10_000
    )


def test_what_the_layout_cannot_hold_is_said(tmp_path):
    from skerry.quant.formats.twin_log import TwinLog

    for weight, activation, reason in (
        (TwinLog(3), None, "twin_log"),
        (AffineGrid(8, axis=0), None, "along the outputs"),
        (AffineGrid(8, group_size=0), None, "whole tensor"),
        (AffineGrid(8), TensorStatic(8, low=-1.0, high=1.0), "TensorStatic"),
    ):
        model = quantize(llama(), Recipe("x", weight))
        for layer in model.modules():
            if isinstance(layer, QuantizedLinear):
                layer.activation = activation
        with pytest.raises(ModelError, match=reason):
            save(model, tmp_path / "out", layout="compressed-tensors")
        assert not list(tmp_path.iterdir())
        assert reason in save(model, tmp_path / "auto" / reason)["reason"]
        assert torch.equal(logits(load(tmp_path / "auto" / reason)), logits(model))
        import shutil

        shutil.rmtree(tmp_path / "auto")


def test_dense_loads_anywhere(tmp_path):
    model = quantized("w4a16")
    save(model, tmp_path / "out", layout="dense")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.allclose(logits(theirs), logits(model), atol=1e-4)


@pytest.mark.parametrize("tie", [False, True])
def test_rotated_models_keep_their_unit_norms(tie, tmp_path):
    batches = [torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(i)) for i in range(2)]
    model = quantize(llama(tie=tie), "quarot", "w8a8", calibration=batches)
    save(model, tmp_path / "out")
    assert torch.equal(logits(load(tmp_path / "out")), logits(model))
