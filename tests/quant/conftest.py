"""Tiny models of the real classes, with random weights that are not all alike."""

import pytest
import torch
from torch import nn


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny models lose time, not win it, with more threads."""
    kept = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(kept)


@pytest.fixture(scope="session")
def tiny():
    """``tiny(family)``: llama, opt, gpt2, bert, vit or plain."""
    return _tiny


@pytest.fixture(scope="session")
def inputs():
    """``inputs(family)``: a list of batches for the tiny model."""
    return _inputs


def _tiny(family: str, *, blocks: int = 2, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    if family == "plain":
        model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    else:
        model = _transformer(family, blocks)
    for parameter in model.parameters():  # norms that do something, biases that are not zero
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.rand_like(parameter)
        else:
            parameter.data *= 3.0
    return model.eval()


def _transformer(family: str, blocks: int) -> nn.Module:
    import transformers as t

    if family == "llama":
        return t.LlamaForCausalLM(
            t.LlamaConfig(
                vocab_size=64,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=blocks,
                num_attention_heads=4,
                num_key_value_heads=2,
            )
        )
    if family == "opt":
        return t.OPTForCausalLM(
            t.OPTConfig(
                vocab_size=64,
                hidden_size=32,
                word_embed_proj_dim=32,
                num_hidden_layers=blocks,
                num_attention_heads=2,
                ffn_dim=64,
                max_position_embeddings=64,
                dropout=0.0,
            )
        )
    if family == "gpt2":
        return t.GPT2LMHeadModel(
            t.GPT2Config(vocab_size=64, n_embd=32, n_layer=blocks, n_head=2, bos_token_id=0, eos_token_id=0)
        )
    if family == "bert":
        return t.BertModel(
            t.BertConfig(
                vocab_size=64,
                hidden_size=32,
                num_hidden_layers=blocks,
                num_attention_heads=2,
                intermediate_size=64,
            )
        )
    return t.ViTForImageClassification(
        t.ViTConfig(
            hidden_size=32,
            num_hidden_layers=blocks,
            num_attention_heads=2,
            intermediate_size=64,
            image_size=16,
            patch_size=8,
        )
    )


def _inputs(family: str, count: int = 3, *, seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    if family == "plain":
        return [torch.randn(8, 16, generator=generator) for _ in range(count)]
    if family == "vit":
        return [torch.randn(2, 3, 16, 16, generator=generator) for _ in range(count)]
    return [torch.randint(0, 64, (2, 12), generator=generator) for _ in range(count)]
