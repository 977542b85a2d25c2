"""Chronos encoders from folders that are written on the spot, with random weights."""

import json
import shutil
import socket

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'deep'")
transformers = pytest.importorskip("transformers", reason="needs the extra 'deep'")
safetensors = pytest.importorskip("safetensors.torch", reason="needs the extra 'deep'")

from skerry.core.errors import ModelError  # noqa: E402
from skerry.deep.chronos import ChronosEncoder, MeanScaleTokenizer  # noqa: E402


@pytest.fixture(scope="module", params=["t5", "bolt"])
def folder(request, chronos_folder):
    return chronos_folder(request.param)


def test_tokens_of_hand_made_cases():
    tokens, mask = MeanScaleTokenizer()(np.array([[0.0, 0.0, 100.0, -100.0] + [0.0] * 96, [np.nan] * 100, [5.0] * 100]))
    assert tokens.shape == mask.shape == (3, 101)
    assert tokens[0, 0] == 2 + 1 + 4092 // 2  # the middle bin
    assert tokens[0, 2] == 4095
    assert tokens[0, 3] == 3  # the first bin
    assert (tokens[1, :-1] == 0).all()
    assert not mask[1, :-1].any()
    assert (tokens[:, -1] == 1).all()
    assert mask[:, -1].all()
    centres = np.linspace(-15, 15, 4093)
    assert (tokens[2, :-1] == 3 + np.abs(centres - 1.0).argmin()).all()


def test_one_vector_a_step_frozen_and_free_of_scale(folder):
    encoder = ChronosEncoder(folder, device="cpu")
    assert not any(p.requires_grad for p in encoder.model.parameters())
    before = {k: v.clone() for k, v in encoder.model.state_dict().items()}
    x = np.sin(np.arange(100) / 4)[None] + np.array([[0.0], [1.0], [-1.0]])
    x[1, 10:14] = np.nan
    found = encoder.embed(x)
    assert found.shape == (3, 100, 32)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(encoder.embed(8.0 * x), found, atol=1e-5)
    np.testing.assert_allclose(encoder.embed(x[1:2]), found[1:2], atol=1e-5)
    assert all(torch.equal(v, before[k]) for k, v in encoder.model.state_dict().items())


def test_patches_share_a_vector_and_the_register_is_dropped(chronos_folder):
    encoder = ChronosEncoder(chronos_folder("bolt"), device="cpu")
    found = encoder.embed(np.random.default_rng(0).normal(size=(1, 40)))[0]
    starts = np.flatnonzero(np.abs(np.diff(found, axis=0)).max(axis=1) > 1e-7) + 1
    assert starts.tolist() == [8, 24]  # 8 missing steps were put in front of 40


def test_nothing_is_fetched(folder, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a network call")

    monkeypatch.setattr(socket, "socket", refuse)
    ChronosEncoder(folder, device="cpu")


@pytest.mark.parametrize("key", ["chronos_config", "d_model"])
def test_a_config_without_a_key_is_told(folder, tmp_path, key):
    config = json.loads((folder / "config.json").read_text())
    del config[key]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=key):
        ChronosEncoder(tmp_path)


def test_broken_folders_are_told(folder, tmp_path):
    with pytest.raises(ModelError, match="is not a folder"):
        ChronosEncoder(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"config\.json: cannot be read"):
        ChronosEncoder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not valid JSON"):
        ChronosEncoder(tmp_path)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ModelError, match="no .safetensors"):
        ChronosEncoder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:500])
    with pytest.raises(ModelError, match="cannot be read as safetensors.*cut off"):
        ChronosEncoder(tmp_path)
    weights = safetensors.load_file(folder / "model.safetensors")
    weights.pop("encoder.final_layer_norm.weight")
    safetensors.save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"lack 'encoder\.final_layer_norm\.weight'"):
        ChronosEncoder(tmp_path)


@pytest.fixture
def copied(folder, tmp_path):
    """Return a copy of the folder that a test may spoil."""
    return shutil.copytree(folder, tmp_path / "copy")


def test_pickles_are_not_opened(copied):
    (copied / "model.safetensors").unlink()
    evil = copied / "opened"
    (copied / "pytorch_model.bin").write_bytes(b"cbuiltins\nopen\n(V" + str(evil).encode() + b"\nVw\ntR.")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin is a pickle.*safetensors"):
        ChronosEncoder(copied)
    (copied / "pytorch_model.bin").rename(copied / "model.safetensors")
    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        ChronosEncoder(copied)
    assert not evil.exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_truncated_weights_are_told(copied, share):
    file = copied / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ModelError, match=r"model\.safetensors: cannot be read as safetensors"):
        ChronosEncoder(copied)


@pytest.mark.parametrize("name", ["encoder.block.0.layer.0.SelfAttention.q.weight", "shared.weight"])
def test_a_weight_of_the_wrong_shape_is_named(copied, name):
    weights = safetensors.load_file(copied / "model.safetensors")
    weights[name] = weights[name][:, :5].contiguous()
    weights.pop("encoder.embed_tokens.weight", None)
    safetensors.save_file(weights, copied / "model.safetensors")
    with pytest.raises(ModelError, match=r"has shape \(\d+, 5\).*asks for numbers of shape"):
        ChronosEncoder(copied)


def test_patch_weights_of_the_wrong_shape_are_named(chronos_folder, tmp_path):
    copied = shutil.copytree(chronos_folder("bolt"), tmp_path / "copy")
    weights = safetensors.load_file(copied / "model.safetensors")
    weights["input_patch_embedding.output_layer.bias"] = torch.zeros(7)
    safetensors.save_file(weights, copied / "model.safetensors")
    with pytest.raises(ModelError, match=r"output_layer\.bias' has shape \(7,\)"):
        ChronosEncoder(copied)


@pytest.mark.parametrize(
    ("key", "value"),
    [("d_model", "wide"), ("num_heads", 0), ("num_layers", 10**9), ("d_ff", True), ("d_model", 10**6)],
)
def test_sizes_that_make_no_model_are_told_before_memory_is_taken(copied, key, value):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(ModelError, match=f"{key}|asks for numbers of shape"):
        ChronosEncoder(copied)


@pytest.mark.parametrize("text", ["[]", '"chronos"', '{"chronos_config": []}'])
def test_a_config_that_is_no_table_is_told(copied, text):
    (copied / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        ChronosEncoder(copied)


def test_a_vocabulary_too_small_for_the_tokens_is_told(chronos_folder, tmp_path):
    copied = shutil.copytree(chronos_folder("t5"), tmp_path / "copy")
    config = json.loads((copied / "config.json").read_text())
    config["chronos_config"]["n_tokens"] = 5_000
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="4096 rows, config.json asks for 5000 tokens"):
        ChronosEncoder(copied)
    config["chronos_config"] |= {"n_tokens": 4_096, "tokenizer_kwargs": {"low_limit": 3.0, "high_limit": "x"}}
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="low_limit below high_limit"):
        ChronosEncoder(copied)
