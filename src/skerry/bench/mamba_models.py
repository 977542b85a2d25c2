"""The small Mamba language model that quantization is tried on: trained here, kept in a cache folder, never in git.

A character model of the class of transformers, trained on tinyshakespeare; and its "planted" twin, which computes the
same and has what MambaQuant (arXiv 2501.13484) finds in large ones: 2 % of the gates are 20 times as large, with an
activation that takes this back, and four channels of the time step's low-rank path 30 times.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from skerry.bench.quant_models import characters, loss_of, windows
from skerry.bench.quant_rows import Lab
from skerry.core.files import atomic_write, cache_folder
from skerry.quant.architectures.base import architecture_of
from skerry.quant.architectures.mamba import ARCHITECTURE
from skerry.quant.architectures.mamba_block import GatedOutput

__all__ = ["MambaChar", "make_mamba_lab", "new_mamba", "plant_gates", "trained_mamba"]


@dataclass(frozen=True)
class MambaChar:
    """What is trained; the defaults take about 4 CPU minutes on one thread. Widths are powers of two."""

    width: int = 64
    blocks: int = 4
    states: int = 16
    rank: int = 8
    context: int = 64
    steps: int = 1200
    batch: int = 16
    learning_rate: float = 3e-3
    seed: int = 0


QUICK = MambaChar(width=32, blocks=2, steps=100)


def new_mamba(settings: MambaChar, vocabulary: int) -> nn.Module:
    """Return an untrained ``MambaForCausalLM``."""
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(
        vocab_size=vocabulary,
        hidden_size=settings.width,
        num_hidden_layers=settings.blocks,
        state_size=settings.states,
        time_step_rank=settings.rank,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=False,
    )
    torch.manual_seed(settings.seed)
    return MambaForCausalLM(config)


def trained_mamba(
    data: Path, settings: MambaChar = MambaChar(), progress: Callable[[str], None] = lambda text: None
) -> nn.Module:
    """Return the trained model, from the cache if it is there; the cache is keyed by the settings."""
    from safetensors.torch import load_file, save

    train, _, alphabet = characters(data)
    model = new_mamba(settings, len(alphabet))
    key = hashlib.sha256(json.dumps(asdict(settings), sort_keys=True).encode()).hexdigest()[:16]
    path = cache_folder() / f"char-mamba-{key}.safetensors"
    if path.is_file():
        model.load_state_dict(load_file(path))
        return model.eval()
    split = copy.deepcopy(model)  # its scan has a gradient of its own, several times as fast
    ARCHITECTURE.prepare(split)  # type: ignore[misc]
    split.train().requires_grad_(True)
    decayed = [p for p in split.parameters() if p.ndim > 1]
    plain = [p for p in split.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
        lr=settings.learning_rate,
        betas=(0.9, 0.95),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1.0, (s + 1) / 100) * (0.1 + 0.45 * (1 + np.cos(np.pi * s / settings.steps)))
    )
    for step in range(settings.steps):
        batch = windows(train, settings.batch, settings.context + 1, random_state=settings.seed * 10**6 + step)
        logits = split(input_ids=batch[:, :-1], use_cache=False).logits
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(split.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            progress(f"training the Mamba model: step {step} of {settings.steps}, loss {loss.item():.3f}")
    whole = ARCHITECTURE.restore(split)  # type: ignore[misc]
    model.load_state_dict(whole.state_dict())
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(save({k: v.contiguous() for k, v in model.state_dict().items()}))
    return model.eval()


@torch.no_grad()
def plant_gates(model: nn.Module, *, share: float = 0.02, gain: float = 20.0, steps: int = 4, step_gain: float = 30.0):
    """Return a copy with the same function, a few huge gates and a few huge channels of the time step's path.

    Parameters
    ----------
    model : Module
        ``MambaForCausalLM`` or :class:`~skerry.deep.vision_mamba.VisionMamba`; the copy's blocks are split.
    share : float, default 0.02
        Of the gates of every block that are ``gain`` times as large.
    gain : float, default 20.0
    steps : int, default 4
        Channels between the two layers that make a time step which are ``step_gain`` times as large.
    step_gain : float, default 30.0
    """
    twin = copy.deepcopy(model)
    architecture_of(twin).prepare(twin)  # type: ignore[misc]
    generator = torch.Generator().manual_seed(1)
    for mixer in [m for m in twin.modules() if isinstance(m, GatedOutput)]:
        D = mixer.gate_proj.out_features
        scale = torch.ones(D)
        scale[torch.randperm(D, generator=generator)[: max(1, round(share * D))]] = 1.0 / gain
        mixer.set_gate_scale(scale)  # gates / scale: outputs of the gate are larger by 1 / scale
        mixer.out_proj.weight *= scale
        for scan in mixer.scans:
            at = torch.randperm(scan.step_proj.out_features, generator=generator)[:steps]
            scan.step_proj.weight[at] *= step_gain
            scan.dt_proj.weight[:, at] /= step_gain
    return twin


def make_mamba_lab(data: Path, *, quick: bool, progress: Callable[[str], None]) -> Lab:
    """Return the :class:`~skerry.bench.quant_rows.Lab` of the two models; trains if the cache has none."""
    settings = QUICK if quick else MambaChar()
    model = trained_mamba(data, settings, progress)
    train, held, _ = characters(data)
    tokens = windows(held, 32 if quick else 96, settings.context + 1, random_state=7)
    calibration = list(windows(train, 32, settings.context, random_state=11).split(16))
    models = {"natural": model, "planted": plant_gates(model)}
    return Lab(models, calibration, tokens, {name: loss_of(m, tokens) for name, m in models.items()})
