"""The small language models that quantization studies run on: trained here, kept in a cache folder, never in git.

A character model of the OPT class (LayerNorm before attention and MLP, biases, ReLU), trained on tinyshakespeare;
and its "planted" twin: three channels of every norm are multiplied by 25 and shifted by +-12 and all readers
corrected, so that the function is the same and the activations look like those of a model a thousand times larger.
"""

from __future__ import annotations

import copy
import gzip
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skerry.core.errors import DataError
from skerry.core.files import atomic_write, cache_folder

__all__ = ["CharModel", "loss_of", "plant_outliers", "trained_char_model"]


@dataclass(frozen=True)
class CharModel:
    """What is trained; the defaults take about 12 CPU minutes."""

    width: int = 128
    blocks: int = 4
    heads: int = 4
    context: int = 128
    steps: int = 2000
    batch: int = 24
    learning_rate: float = 1e-3
    seed: int = 0


def characters(data: Path) -> tuple[Tensor, Tensor, list[str]]:
    """Return training and held-out (last tenth) character codes, int64, and the alphabet."""
    path = data / "text" / "tinyshakespeare.txt.gz"
    if not path.is_file():
        raise DataError(f"no text at {path}: set SKERRY_DATA or --data to the folder of data sets")
    text = gzip.open(path, "rt", encoding="utf-8").read()
    alphabet = sorted(set(text))
    codes = np.searchsorted(np.array(alphabet), np.array(list(text)))
    cut = int(0.9 * len(codes))
    return torch.from_numpy(codes[:cut]), torch.from_numpy(codes[cut:]), alphabet


def windows(codes: Tensor, count: int, length: int, *, random_state: int = 0) -> Tensor:
    """Return ``count`` windows (count, length) of the text at random places."""
    generator = torch.Generator().manual_seed(random_state)
    starts = torch.randint(0, len(codes) - length, (count, 1), generator=generator)
    return codes[starts + torch.arange(length)]


def trained_char_model(
    data: Path, settings: CharModel = CharModel(), progress: Callable[[str], None] = lambda text: None
) -> nn.Module:
    """Return the trained model, from the cache if it is there.

    Determinism: the same settings and thread count give the same weights; the cache is keyed by the settings.
    """
    from safetensors.torch import load_file, save
    from transformers import OPTConfig, OPTForCausalLM

    train, _, alphabet = characters(data)
    config = OPTConfig(
        vocab_size=len(alphabet),
        hidden_size=settings.width,
        word_embed_proj_dim=settings.width,
        ffn_dim=4 * settings.width,
        num_hidden_layers=settings.blocks,
        num_attention_heads=settings.heads,
        max_position_embeddings=settings.context,
        dropout=0.0,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=False,
    )
    torch.manual_seed(settings.seed)
    model = OPTForCausalLM(config)
    key = hashlib.sha256(json.dumps(asdict(settings), sort_keys=True).encode()).hexdigest()[:16]
    path = cache_folder() / f"char-opt-{key}.safetensors"
    if path.is_file():
        model.load_state_dict(load_file(path))
        return model.eval()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
        lr=settings.learning_rate,
        betas=(0.9, 0.95),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1.0, (s + 1) / 100) * (0.1 + 0.45 * (1 + np.cos(np.pi * s / settings.steps)))
    )
    model.train()
    for step in range(settings.steps):
        batch = windows(train, settings.batch, settings.context + 1, random_state=settings.seed * 10**6 + step)
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            progress(f"training the character model: step {step} of {settings.steps}, loss {loss.item():.3f}")
    model.eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(save({k: v.contiguous() for k, v in model.state_dict().items()}))
    return model


@torch.no_grad()
def plant_outliers(model: nn.Module, *, channels: int = 3, gain: float = 25.0, shift: float = 12.0) -> nn.Module:
    """Return a copy with the same function and a few huge, shifted channels behind every norm of its blocks."""
    twin = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    for block in twin.get_submodule("model.decoder.layers"):
        attention = block.self_attn
        for norm, readers in (
            (block.self_attn_layer_norm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (block.final_layer_norm, (block.fc1,)),
        ):
            at = torch.randperm(len(norm.weight), generator=generator)[:channels]
            signs = torch.tensor([1.0, -1.0, 1.0]).repeat(channels)[:channels]
            norm.weight[at] *= gain
            norm.bias[at] = norm.bias[at] * gain + shift * signs
            for reader in readers:
                reader.weight[:, at] /= gain
                reader.bias -= reader.weight[:, at] @ (shift * signs)
    return twin


@torch.no_grad()
def loss_of(model: nn.Module, tokens: Tensor, *, batch: int = 32) -> float:
    """Return the mean next-character loss (nats) over windows (count, length)."""
    total = 0.0
    for part in tokens.split(batch):
        output: Any = model(input_ids=part[:, :-1], use_cache=False)
        total += float(nn.functional.cross_entropy(output.logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum"))
    return total / (len(tokens) * (tokens.shape[1] - 1))
