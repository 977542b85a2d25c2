"""Conversion of transformers models built from tiny configurations: equal, causal, cached, trained, fused, exported."""

import copy

import pytest

pytest.importorskip("torch", reason="needs the extra 'deep'")
pytest.importorskip("transformers", reason="needs the extra 'deep' (transformers)")

import torch
import transformers
from torch import nn

from skerry.core.errors import ModelError, ParameterError
from skerry.train.nn import (
    ClippedSoftmax,
    EmbeddingProjection,
    FixedScale,
    HeadGate,
    UnifiedNorm,
    absorb_embedding_projection,
    convert_transformers,
    expand_single_scale,
    fuse_unified_norm,
)
from skerry.train.nn.transformers_models import NORMS

D, H, LAYERS, V, T = 16, 4, 2, 31, 7
COMMON = {
    "hidden_size": D,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": H,
    "initializer_range": 0.3,
    "init_std": 0.3,
}
UNTIED = {"tie_word_embeddings": False}
BOTH = {"vocab_size": V, "max_position_embeddings": 32, "pad_token_id": 1, **COMMON}
BERT = {"intermediate_size": 24, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, **BOTH}


def build(name, seed=0, **config):
    torch.manual_seed(seed)
    if name == "llama":
        made = transformers.LlamaConfig(intermediate_size=24, num_key_value_heads=2, **{**BOTH, **config})
        return transformers.LlamaForCausalLM(made)
    if name == "opt":
        made = transformers.OPTConfig(ffn_dim=24, word_embed_proj_dim=D, dropout=0.0, **{**BOTH, **config})
        return transformers.OPTForCausalLM(made)
    if name == "bert":
        return transformers.BertForMaskedLM(transformers.BertConfig(**{**BERT, **config}))
    made = transformers.ViTConfig(image_size=8, patch_size=4, intermediate_size=24, hidden_dropout_prob=0.0, **COMMON)
    return transformers.ViTForImageClassification(made)


MODELS = ("llama", "opt", "bert", "vit")
CAUSAL = ("llama", "opt")


def inputs(name, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if name == "vit":
        return {"pixel_values": torch.randn(batch, 3, 8, 8, generator=generator)}
    return {"input_ids": torch.randint(2, V, (batch, T), generator=generator)}


def logits(model, example):
    return model(**example).logits


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("gate", ["linear", "mlp", "all-heads", "element", "unconditional"])
def test_gates_for_fine_tuning_change_nothing_at_first_and_then_matter(name, gate):
    model, example = build(name).eval(), inputs(name)
    before = logits(model, example)
    assert convert_transformers(model, gate=gate, gate_init=0.25, finetune=True) is model
    torch.testing.assert_close(logits(model, example), before, atol=1e-5, rtol=1e-5)
    gates = [m for m in model.modules() if isinstance(m, HeadGate)]
    assert len(gates) == LAYERS
    logits(model, example).square().sum().backward()
    for g in gates:
        assert (g.bias.grad != 0).any()
        nn.init.constant_(g.bias, -30.0)
    assert not torch.allclose(logits(model, example), before, atol=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_the_explicit_path_without_a_clip_is_the_model_itself(name):
    model, example = build(name).eval(), inputs(name)
    if name != "vit":
        example["attention_mask"] = torch.ones(2, T, dtype=torch.long)
        example["attention_mask"][0, -3:] = 0
    before = logits(model, example)
    after = logits(convert_transformers(model, softmax=ClippedSoftmax(gamma=0.0)), example)
    real = slice(None) if name == "vit" else example["attention_mask"].bool()
    torch.testing.assert_close(after[real], before[real], atol=1e-5, rtol=1e-4)
    without = {k: v for k, v in example.items() if k != "attention_mask"}
    torch.testing.assert_close(logits(model, without), logits(build(name).eval(), without), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_the_clip_is_at_work(name):
    model, example = build(name).eval(), inputs(name)
    before = logits(model, example)
    convert_transformers(model, softmax=ClippedSoftmax(alpha=100, seq_len=T))  # cuts everything
    seen = []
    for module in model.modules():
        if isinstance(module, ClippedSoftmax):
            module.register_forward_hook(lambda m, i, o: seen.append(o))
            break
    assert not torch.allclose(logits(model, example), before, atol=1e-4)
    assert len(seen) == LAYERS and all((p == 0).float().mean() > 0.7 for p in seen)


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize(
    "arguments",
    [
        {"gate": "linear", "gate_init": 0.25},
        {"gate": "element"},
        {"softmax": ClippedSoftmax(alpha=0.5, seq_len=T)},
        {"gate": "mlp", "softmax": ClippedSoftmax(alpha=0.5, seq_len=T), "norm": "gated"},
        {"norm": "single-scale", "gate": "all-heads"},
    ],
    ids=str,
)
def test_converted_language_models_are_causal_and_generate_with_a_cache(name, arguments):
    model, example = build(name, **UNTIED).eval(), inputs(name)
    convert_transformers(model, **arguments)
    before = logits(model, example)
    changed = example["input_ids"].clone()
    changed[:, 4:] = (changed[:, 4:] + 5) % (V - 2) + 2
    torch.testing.assert_close(logits(model, {"input_ids": changed})[:, :4], before[:, :4])
    assert not torch.allclose(logits(model, {"input_ids": changed})[:, 4:], before[:, 4:])
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    with torch.no_grad():
        cached = model.generate(**example, use_cache=True, **settings)
        plain = model.generate(**example, use_cache=False, **settings)
    assert torch.equal(cached, plain) and cached.shape == (2, T + 5)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("norm", sorted(NORMS))
def test_every_norm_of_the_residual_stream_is_replaced_and_learns(name, norm):
    model, example = build(name), inputs(name)
    convert_transformers(model, norm=norm)
    assert not any(isinstance(m, nn.LayerNorm) or "LlamaRMSNorm" in type(m).__name__ for m in model.modules())
    count = sum(type(m) is NORMS[norm] for m in model.modules())
    assert (
        count == {"llama": 2 * LAYERS + 1, "opt": 2 * LAYERS + 1, "bert": 2 * LAYERS + 2, "vit": 2 * LAYERS + 1}[name]
    )
    logits(model.train(), example).square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert torch.isfinite(logits(model.eval(), example)).all()


@pytest.mark.parametrize(("name", "norm"), [(n, "gated") for n in MODELS] + [("llama", "pre-affine")])
def test_norms_for_fine_tuning_that_start_as_the_model(name, norm):
    model, example = build(name).eval(), inputs(name)
    for p in model.parameters():
        if p.dim() == 1:
            nn.init.normal_(p, 1.0, 0.2)
    before = logits(model, example)
    convert_transformers(model, norm=norm, finetune=True)
    torch.testing.assert_close(logits(model, example), before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "fused"), [("llama", 2 * LAYERS + 1), ("opt", 2 * LAYERS + 1), ("vit", 2 * LAYERS + 1), ("bert", 2)]
)
@pytest.mark.parametrize("gate", [None, "linear"])
def test_unified_norms_fuse_into_their_readers(name, fused, gate):
    model, example = build(name), inputs(name, batch=8)
    convert_transformers(model, norm=lambda width: UnifiedNorm(width, 2, 4), gate=gate)
    for m in model.modules():
        if isinstance(m, UnifiedNorm):
            nn.init.normal_(m.weight, 1.0, 0.3)
            nn.init.normal_(m.bias, 0.0, 0.3)
    for step in range(6):
        logits(model.train(), inputs(name, batch=8, seed=step))
    model.eval()
    before = logits(model, example)
    report = fuse_unified_norm(model, example)
    torch.testing.assert_close(logits(model, example), before, atol=2e-5, rtol=1e-5)
    assert report.error < 1e-5
    assert len(report.fused) == fused and sum(isinstance(m, FixedScale) for m in model.modules()) == len(report.kept)
    assert not any(isinstance(m, UnifiedNorm) for m in model.modules())
    if gate and name != "bert":
        assert sum("head_gate" in reader for readers in report.fused.values() for reader in readers) == LAYERS


@pytest.mark.parametrize("name", ["llama", "opt", "bert"])
def test_unified_norms_leave_padding_out_of_their_statistics(name):
    long, short = build(name).train(), build(name).train()
    for model in (long, short):
        convert_transformers(model, norm="unified")
    tokens = inputs(name)["input_ids"]
    padded = torch.cat([tokens, torch.full((2, 4), 1)], 1)
    mask = torch.cat([torch.ones_like(tokens), torch.zeros(2, 4, dtype=torch.long)], 1)
    long(input_ids=padded, attention_mask=mask)
    short(input_ids=tokens, attention_mask=torch.ones_like(tokens))
    for (key, a), b in zip(long.state_dict().items(), short.state_dict().values(), strict=True):
        if key.endswith("running_var"):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
    assert all(m.pad_mask is None for m in long.modules() if isinstance(m, UnifiedNorm))


def test_outlier_safe_llama_is_exported_as_a_plain_one(tmp_path):
    model, example = build("llama").eval(), inputs("llama")
    convert_transformers(model, norm="single-scale", embedding_projection=True)
    projections = [m for m in model.modules() if isinstance(m, EmbeddingProjection)]
    assert len(projections) == 2
    for p in projections:
        nn.init.normal_(p.weight, std=0.3)
    for m in model.modules():
        if type(m) is NORMS["single-scale"]:
            nn.init.constant_(m.scale, 1.7)
    before = logits(model, example)
    expand_single_scale(absorb_embedding_projection(model))
    torch.testing.assert_close(logits(model, example), before, atol=1e-4, rtol=1e-4)
    model.save_pretrained(tmp_path)
    plain = transformers.LlamaForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(plain, example), before, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "opt", "bert"])
def test_embeddings_are_projected_unless_tied(name):
    model, example = build(name, **UNTIED).eval(), inputs(name)
    convert_transformers(model, embedding_projection=True)
    before = logits(model, example)
    absorb_embedding_projection(model)
    torch.testing.assert_close(logits(model, example), before, atol=1e-4, rtol=1e-4)
    convert_transformers(model, embedding_projection=True, finetune=True)
    torch.testing.assert_close(logits(model, example), before, atol=1e-4, rtol=1e-4)
    with pytest.raises(ModelError, match="tie_word_embeddings=False"):
        convert_transformers(build(name, tie_word_embeddings=True), embedding_projection=True)


@pytest.mark.parametrize("name", MODELS)
def test_a_converted_model_loads_its_weights_again(name):
    arguments = {"norm": "gated", "gate": "linear", "softmax": ClippedSoftmax(alpha=1, seq_len=T)}
    model, again, example = build(name), build(name, seed=1), inputs(name)
    convert_transformers(model, **arguments)
    convert_transformers(again, **arguments)
    again.load_state_dict(model.state_dict())
    assert torch.equal(logits(again.eval(), example), logits(model.eval(), example))
    assert torch.equal(logits(copy.deepcopy(model), example), logits(model, example))


@pytest.mark.parametrize("name", ["llama", "vit"])
def test_it_compiles_and_runs_under_autocast(name):
    model, example = build(name), inputs(name)
    convert_transformers(model, gate="linear", norm="gated")
    expected = logits(model, example)
    torch.testing.assert_close(torch.compile(model, backend="eager")(**example).logits, expected, atol=1e-5, rtol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(logits(model, example).float(), expected, atol=5e-2, rtol=5e-2)


def test_gradient_checkpointing_gives_the_same_gradients():
    model, example = build("llama"), inputs("llama")
    convert_transformers(model, gate="linear")
    logits(model.train(), example).square().mean().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()
    logits(model, example).square().mean().backward()
    for p, grad in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, grad)


def test_a_gate_of_your_own_and_mistakes():
    model = build("bert")
    convert_transformers(model, gate=lambda d, h, c: HeadGate("linear", d, h, pooled=True))
    assert torch.isfinite(logits(model, inputs("bert"))).all()
    with pytest.raises(ParameterError, match="tokens to come"):
        convert_transformers(build("llama"), gate=lambda d, h, c: HeadGate("linear", d, h, pooled=True))
    with pytest.raises(ParameterError, match="nothing to convert"):
        convert_transformers(build("llama"))
    with pytest.raises(ParameterError, match="did you mean 'unified'"):
        convert_transformers(build("llama"), norm="unifed")
    with pytest.raises(ParameterError, match="gate_init"):
        convert_transformers(build("llama"), norm="gated", gate_init=0.5)
    with pytest.raises(ModelError, match="no model of transformers"):
        convert_transformers(nn.Linear(2, 2), norm="gated")
    with pytest.raises(ModelError, match="no plain embedding"):
        convert_transformers(build("vit"), embedding_projection=True)
    model = build("llama", tie_word_embeddings=True)
    names = set(model.state_dict())
    for wrong in (
        {"embedding_projection": True},
        {"norm": "gated", "gate": "lineer"},
        {"gate": "linear", "gate_init": 2},
    ):
        with pytest.raises((ModelError, ParameterError)):
            convert_transformers(model, **wrong)
    assert set(model.state_dict()) == names and model.config._attn_implementation != "skerry"
    convert_transformers(model, gate="linear")
    with pytest.raises(ModelError, match="convert a model once"):
        convert_transformers(model, gate="linear")
    gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=V))
    with pytest.raises(ModelError, match="separate query, key and value"):
        convert_transformers(gpt2, gate="linear")
