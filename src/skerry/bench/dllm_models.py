"""The models of the study of diffusion language models: trained here, kept in the cache folder, never in git.

"base" learns text and tasks with every character masked alike; "instruct" goes on from it with questions always in
sight; "causal" is the autoregressive twin of the same size on the same rows; "massive" is the base with values planted
at the input of every MLP's second layer that are huge on line ends and cancel in its output.
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
from torch import Tensor, nn

from skerry.bench.dllm_tasks import LENGTH, MASK, PREFIX, practice, shakespeare
from skerry.bench.quant_models import windows
from skerry.core.files import atomic_write, cache_folder
from skerry.deep.masked_diffusion import MaskedDiffusionLM, diffusion_loss, next_token_loss

__all__ = ["Settings", "plant_massive", "text_windows", "train_model"]

TEXT_SHARE = 0.4
LINE_END = MASK - 1


@dataclass(frozen=True)
class Settings:
    """What is trained; the defaults take about five CPU minutes a model, the fine-tuning one."""

    width: int = 128
    blocks: int = 3
    heads: int = 4
    steps: int = 2400
    tuning_steps: int = 300
    twin_steps: int = 300
    batch: int = 24
    learning_rate: float = 2e-3
    seed: int = 0


def rows_of_step(train: Tensor, settings: Settings, step: int, *, tuning: bool) -> tuple[Tensor, Tensor]:
    """Return the rows (batch, 64) of one training step and where an answer stands (everywhere before the tuning)."""
    seed = settings.seed * 10**7 + (10**6 if tuning else 0) + step
    random = np.random.default_rng(seed)
    text_rows = round(TEXT_SHARE * settings.batch)
    text = windows(train, text_rows, LENGTH, random_state=seed)
    parts, places = [text], [(torch.arange(LENGTH) >= PREFIX).expand(text.shape)]
    tasks = ("addition", "addition", "brackets", "copy")  # sums are the hardest to learn
    for task, share in zip(tasks, np.array_split(np.arange(settings.batch - text_rows), len(tasks)), strict=True):
        found, where = practice(task, len(share), random)
        parts.append(found)
        places.append(where)
    return torch.cat(parts), torch.cat(places)


def train_model(
    data: Path, kind: str, settings: Settings = Settings(), progress: Callable[[str], None] = lambda text: None
) -> MaskedDiffusionLM:
    """Return the model "base", "instruct" or "causal", from the cache if it is there.

    Determinism: the same settings and thread count give the same weights; the cache is keyed by the settings.
    """
    from safetensors.torch import load_file, save

    torch.manual_seed(settings.seed)
    model = MaskedDiffusionLM(MASK + 1, settings.width, settings.blocks, settings.heads, causal=kind == "causal")
    path = cache_folder() / f"char-dllm-{kind}-{_key(kind, settings)}.safetensors"
    if path.is_file():
        model.load_state_dict(load_file(path))
        return model.eval()
    tuning = kind == "instruct"
    if tuning:
        model.load_state_dict(train_model(data, "base", settings, progress).state_dict())
    _fit(model, shakespeare(data)[0], settings, tuning, lambda text: progress(f"training the {kind} model: {text}"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(save({k: v.contiguous() for k, v in model.state_dict().items()}))
    return model


def _key(kind: str, settings: Settings) -> str:
    """Return a name for what the weights depend on: the base does not know how long others are tuned."""
    others = {"base": {"tuning_steps", "twin_steps"}, "instruct": {"twin_steps"}, "causal": {"steps", "tuning_steps"}}
    told = {k: v for k, v in asdict(settings).items() if k not in others[kind]}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def _fit(
    model: MaskedDiffusionLM, train: Tensor, settings: Settings, tuning: bool, progress: Callable[[str], None]
) -> None:
    steps = settings.tuning_steps if tuning else settings.twin_steps if model.config.causal else settings.steps
    rate = settings.learning_rate * (0.3 if tuning else 1.0)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1.0, (s + 1) / 100) * (0.05 + 0.475 * (1 + np.cos(np.pi * s / steps)))
    )
    model.train()
    for step in range(steps):
        x, answer = rows_of_step(train, settings, step, tuning=tuning)
        generator = torch.Generator().manual_seed(settings.seed * 10**7 + step)
        if model.config.causal:
            loss = next_token_loss(model, x)
        else:
            # t of the batch is stratified: the loss's weight 1/t makes independent draws noisy
            t = (torch.randperm(len(x), generator=generator) + torch.rand(len(x), generator=generator)) / len(x)
            loss = diffusion_loss(model, x, t, answer=answer if tuning else None, generator=generator)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            progress(f"step {step} of {steps}, loss {loss.item():.3f}")
    model.eval()


def text_windows(codes: Tensor, count: int, random_state: int) -> Tensor:
    """Return ``count`` windows (count, 64) of a text."""
    return windows(codes, count, LENGTH, random_state=random_state)


@torch.no_grad()
def plant_massive(model: MaskedDiffusionLM, tokens: Tensor, *, size: float = 300.0) -> MaskedDiffusionLM:
    """Return a copy whose MLPs hold massive values on line ends, which do not matter.

    In every block the two quietest hidden channels get one gate and one input row, fitted to answer to line ends alone
    and scaled so that the largest value is ``size`` times the median token's largest. Their columns in the second
    layer are of ordinary size and cancel: only the loss of two quiet channels changes the function. Rounding does not
    know that they cancel, and smoothing cannot make their inputs small without making their weights large.

    Parameters
    ----------
    model : MaskedDiffusionLM
    tokens : int64 Tensor of shape (B, L)
        Text with line ends.
    size : float, default 300
    """
    twin = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    ends = (tokens == LINE_END).flatten()
    for layer in twin.layers:
        seen: dict[str, Tensor] = {}
        mlp = layer.mlp
        handles = [
            linear.register_forward_pre_hook(lambda module, given, seen=seen, at=at: seen.update({at: given[0]}))
            for at, linear in (("in", mlp.gate_proj), ("hidden", mlp.down_proj))
        ]
        twin(tokens)
        for handle in handles:
            handle.remove()
        X, hidden = seen["in"].flatten(0, 1), seen["hidden"].flatten(0, 1).abs()
        gram = X.T @ X
        ridge = 1e-3 * gram.diagonal().mean() * torch.eye(len(gram))
        row = torch.linalg.solve(gram + ridge, X.T @ ends.to(X.dtype))
        answer = X @ row
        peak = (nn.functional.silu(answer / answer.max() * 20.0) * answer).abs().max()
        row_in = row * size * hidden.amax(1).median() / peak
        quiet = (hidden.square().mean(0) * mlp.down_proj.weight.square().sum(0)).topk(2, largest=False).indices
        common = torch.randn(len(mlp.down_proj.weight), generator=generator) * mlp.down_proj.weight.std()
        mlp.gate_proj.weight[quiet] = row / answer.max() * 20.0
        mlp.up_proj.weight[quiet] = row_in
        mlp.down_proj.weight[:, quiet] = torch.stack((common, -common), dim=1)
    return twin
