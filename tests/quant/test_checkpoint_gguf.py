"""GGUF: golden bytes, every code survives, transformers reads the file through the ``gguf`` package, damage is told."""

import json
import struct

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

import transformers

from skerry.core.errors import ModelError
from skerry.quant.api import quantize
from skerry.quant.checkpoint import save
from skerry.quant.gguf_file import GGUFTensor, decode, encode, packed_bytes, read_gguf, write_gguf
from skerry.quant.numerics import AffineGrid
from skerry.quant.recipe import Recipe

GRIDS = {
    "Q4_0": AffineGrid(4, group_size=32, full_range=True, scale_dtype="bfloat16"),
    "Q4_0 groups of 64": AffineGrid(4, group_size=64, scale_dtype="bfloat16"),
    "Q4_0 rows of 3 bits": AffineGrid(3, scale_dtype="bfloat16"),
    "Q4_1": AffineGrid(4, symmetric=False, group_size=32, scale_dtype="bfloat16"),
    "Q8_0": AffineGrid(8, scale_dtype="bfloat16"),
    "Q8_0 one scale": AffineGrid(6, group_size=0, scale_dtype="bfloat16"),
}


def model(family="llama", **settings):
    torch.manual_seed(0)
    common = {"vocab_size": 70, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    common |= {"intermediate_size": 96, "num_key_value_heads": 2, "max_position_embeddings": 64}
    if family == "gpt2":
        config = transformers.GPT2Config(vocab_size=70, n_embd=64, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
        return transformers.GPT2LMHeadModel(config).eval()
    if family == "qwen3":
        common |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    name = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}[family]
    config = getattr(transformers, f"{name}Config")(**common | settings)
    found = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    for parameter in found.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.rand_like(parameter)
    return found


def logits(found):
    x = torch.randint(0, 70, (2, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return found(x).logits


def test_golden_blocks():
    """Nibbles: entry j of a block in the low half of byte j, entry j + 16 in the high half; scales in front."""
    codes = np.arange(32)[None] % 16 - 8
    half = np.array([[0.5]], np.float16)
    assert encode(codes, half, "Q4_0").tobytes().hex() == "0038" + "".join(f"{i:x}{i:x}" for i in range(16))
    one, minus = np.array([[1.0]], np.float16), np.array([[-2.0]], np.float16)
    assert encode(codes + 8, one, "Q4_1", minus).tobytes().hex()[:12] == "003c00c00011"
    wide = np.array([[-128, -1, 0, 127] * 8])
    assert encode(wide, one, "Q8_0").tobytes().hex()[:12] == "003c80ff007f"
    assert [packed_bytes((3, 64), k) for k in ("Q4_0", "Q4_1", "Q8_0", "F16")] == [108, 120, 204, 384]


def test_golden_container(tmp_path):
    path = tmp_path / "x.gguf"
    with path.open("wb") as file:
        write_gguf(file, {"a.b": 7, "t": ["x"]}, [GGUFTensor("w", (1, 2), "F32", lambda: np.ones((1, 2), np.float32))])
    data = path.read_bytes()
    fields = struct.pack("<Q3sII", 3, b"a.b", 4, 7) + struct.pack("<Q1sIIQQ1s", 1, b"t", 9, 8, 1, 1, b"x")
    tensor = struct.pack("<Q1sIQQIQ", 1, b"w", 2, 2, 1, 0, 0)  # innermost dimension first
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 2) + fields + tensor
    assert data[: len(head)] == head
    assert len(data) % 32 == 0 and data[-32:-24] == np.ones(2, "<f4").tobytes()
    assert read_gguf(path)[0] == {"a.b": 7, "t": ["x"]}


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
@pytest.mark.parametrize("seed", range(5))
def test_codes_and_scales_survive(kind, seed):
    rng = np.random.default_rng(seed)
    rows, n = rng.integers(1, 5, 2)
    low, high = {"Q4_0": (-8, 8), "Q4_1": (0, 16), "Q8_0": (-128, 128)}[kind]
    codes = rng.integers(low, high, (rows, 32 * n))
    scale, least = rng.normal(size=(2, rows, n)).astype(np.float16)
    found = decode(encode(codes, scale, kind, least), codes.shape, kind)
    for a, b in zip(found, (codes, scale, least), strict=False):
        np.testing.assert_array_equal(a, b)


def values(raw, shape, kind):
    """What a program that reads the file computes with, block by block, as plainly as can be."""
    parts = decode(raw, shape, kind)
    codes, scale = parts[0].reshape(shape[0], -1, 32), parts[1].astype(np.float32)[..., None]
    low = parts[2].astype(np.float32)[..., None] if kind == "Q4_1" else 0.0
    return (codes * scale + low).reshape(shape)


@pytest.mark.parametrize("name", GRIDS)
def test_the_file_holds_the_weights(name, tmp_path):
    small = quantize(model(), Recipe("x", GRIDS[name]))
    told = save(small, tmp_path / "out", layout="gguf")
    fields, tensors = read_gguf(tmp_path / "out" / "model.gguf")
    assert fields["general.architecture"] == "llama" and fields["llama.attention.head_count_kv"] == 2
    assert fields["tokenizer.ggml.model"] == "no_vocab"
    assert told["bytes"] == sum(raw.nbytes for *_, raw in tensors.values())
    shape, kind, raw = tensors["blk.1.ffn_down.weight"]
    assert kind == name.split()[0] and shape == (64, 96)
    exact = small.model.layers[1].mlp.down_proj.solved.dense().numpy()
    slack = 2.0**-10 * np.abs(exact).max() if kind == "Q4_1" else 0.0  # its least value becomes 16 bits too
    np.testing.assert_allclose(values(raw, shape, kind), exact, rtol=0, atol=slack)
    shape, kind, raw = tensors["blk.0.attn_k.weight"]  # 2 heads of 16: halves of a head alternate
    exact = small.model.layers[0].self_attn.k_proj.solved.dense().numpy()
    order = [head * 16 + half * 8 + i for head in range(2) for i in range(8) for half in range(2)]
    np.testing.assert_allclose(values(raw, shape, kind), exact[order], rtol=0, atol=slack or 1e-9)
    assert tensors["output_norm.weight"][1] == "F32"


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gpt2"])
def test_transformers_reads_it(family, tmp_path):
    pytest.importorskip("gguf", reason="the package gguf is not installed")
    small = quantize(model(family), Recipe("x", GRIDS["Q4_0"]))
    # of GPT-2 it takes the number of words from the tokenizer
    save(small, tmp_path / "out", layout="gguf", source=tokenizer(tmp_path / "source"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file="model.gguf")
    torch.testing.assert_close(logits(theirs), logits(small), atol=1e-5, rtol=1e-4)


def test_the_library_reads_what_is_inside(tmp_path):
    gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
    for name in ("Q4_0", "Q4_1", "Q8_0"):
        small = quantize(model(), Recipe("x", GRIDS[name]))
        save(small, tmp_path / name, layout="gguf")
        tensors = {t.name: t for t in gguf.GGUFReader(tmp_path / name / "model.gguf").tensors}
        found = tensors["blk.0.ffn_up.weight"]
        exact = small.model.layers[0].mlp.up_proj.solved.dense().numpy()
        assert found.tensor_type.name == name
        np.testing.assert_allclose(gguf.dequantize(found.data, found.tensor_type), exact, atol=2.0**-10, rtol=0)


def tokenizer(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    words.pre_tokenizer = pre_tokenizers.ByteLevel()
    words.add_special_tokens(["<s>"])
    folder.mkdir()
    words.save(str(folder / "tokenizer.json"))
    return folder


def test_a_tokenizer_goes_along(tmp_path):
    source = tokenizer(tmp_path / "source")
    small = quantize(model(bos_token_id=0), Recipe("x", GRIDS["Q4_0"]))
    save(small, tmp_path / "out", layout="gguf", source=source)
    fields, _ = read_gguf(tmp_path / "out" / "model.gguf")
    tokens = fields["tokenizer.ggml.tokens"]
    assert tokens[:5] == ["a", "b", "ab", "<s>", "[PAD4]"] and len(tokens) == 70
    assert fields["tokenizer.ggml.token_type"][:6] == [1, 1, 1, 3, 5, 5]
    assert fields["tokenizer.ggml.merges"] == ["a b"] and fields["tokenizer.ggml.bos_token_id"] == 0
    data = json.loads((source / "tokenizer.json").read_text())
    data["model"]["vocab"]["far"] = 1000
    (source / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(ModelError, match="no tokenizer that fits"):
        save(small, tmp_path / "other", layout="gguf", source=source)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("weight", "activation", "reason"),
    [
        (AffineGrid(8, symmetric=False), None, "asymmetric weights of 8 bits"),
        (AffineGrid(4, axis=0), None, "along the outputs"),
        (AffineGrid(4, group_size=16), None, "no multiple of 32"),
        (AffineGrid(8), "token", "inputs are rounded"),
    ],
)
def test_what_it_cannot_hold_is_said(weight, activation, reason, tmp_path):
    from skerry.quant.activation import TokenDynamic

    small = quantize(model(), Recipe("x", weight, activation=TokenDynamic(8) if activation else None))
    with pytest.raises(ModelError, match=rf"layers\.0\.self_attn\.q_proj: .*{reason}"):
        save(small, tmp_path / "out", layout="gguf")
    assert not list(tmp_path.iterdir())


def test_models_it_has_no_names_for(tmp_path, tiny):
    small = quantize(tiny("bert"), "rtn", "w4a16g32")
    with pytest.raises(ModelError, match="not of BertModel"):
        save(small, tmp_path / "out", layout="gguf")
    scaled = model(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0})
    with pytest.raises(ModelError, match="positions scaled by 'linear'"):
        save(quantize(scaled, "rtn", "w4a16g32"), tmp_path / "out", layout="gguf")


def test_a_dead_row_and_a_tiny_weight(tmp_path):
    big = model()
    big.model.layers[0].mlp.up_proj.weight.data[3] = 0.0
    save(quantize(big, "rtn", "w4a16g32"), tmp_path / "out", layout="gguf")
    shape, kind, raw = read_gguf(tmp_path / "out" / "model.gguf")[1]["blk.0.ffn_up.weight"]
    assert not values(raw, shape, kind)[3].any() and np.isfinite(values(raw, shape, kind)).all()
    big.model.layers[0].mlp.up_proj.weight.data[4] *= 1e-7
    with pytest.raises(ModelError, match="too small or too large"):
        save(quantize(big, "rtn", "w4a16g32"), tmp_path / "new", layout="gguf")


def test_damaged_files_are_told(tmp_path):
    save(quantize(model(), "rtn", "w4a16g32"), tmp_path / "out", layout="gguf")
    whole = (tmp_path / "out" / "model.gguf").read_bytes()
    path = tmp_path / "damaged.gguf"
    many = whole[:8] + struct.pack("<Q", 2**60) + whole[16:]
    for damaged in (whole[:3], whole[:200], whole[:-4000], b"GGML" + whole[4:], whole[:4] + b"\x09" + whole[5:], many):
        path.write_bytes(damaged)
        with pytest.raises(ModelError, match=r"damaged\.gguf: is truncated or no GGUF file"):
            read_gguf(path)
