"""Parts of the study of Unified Normalization: short trainings with one norm or another, and seconds of inference.

Yang et al., ACM MM 2022 (arXiv 2208.01313). Every run differs in its norms alone: same start, batches and schedule.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skerry.bench.train_runs import load_task
from skerry.train.lab_model import SmallGPT, SmallViT
from skerry.train.nn import UnifiedNorm, fuse_unified_norm, replace_norms

__all__ = ["NORMS", "TokenBatchNorm", "bad_steps", "inference", "pair_seconds", "peak_bytes", "train"]

BAD = 30.0  # a bad batch: its inputs are this many times too large
TASKS = {
    "images": {"task": (("seq_len", 65), ("task", "images")), "batch": 64, "lr": 1e-3, "decay": 0.05},
    "text": {"task": (("seq_len", 64), ("task", "masked")), "batch": 8, "lr": 3e-3, "decay": 0.1},
    "causal": {"task": (("seq_len", 64), ("task", "bytes")), "batch": 8, "lr": 3e-3, "decay": 0.1},
}


class TokenBatchNorm(nn.BatchNorm1d):
    """Batch norm over all tokens of (..., channels)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised tokens."""
        return super().forward(x.reshape(-1, x.shape[-1])).reshape(x.shape)


def _unified(**changes: Any) -> Callable[[int, int], nn.Module]:
    return lambda d, w: UnifiedNorm(
        d, **{"window": 4, "warmup": w, "ratio_warmup": w, "outlier_filtration": True, **changes}
    )


# From a width and the steps of warm-up to a norm.
NORMS: dict[str, Callable[[int, int], nn.Module]] = {
    "LayerNorm": lambda d, w: nn.LayerNorm(d),
    "RMSNorm": lambda d, w: nn.RMSNorm(d, eps=1e-6),
    "BatchNorm": lambda d, w: TokenBatchNorm(d),
    "UnifiedNorm": _unified(),
    "UnifiedNorm, no filter": _unified(outlier_filtration=False),
    "UnifiedNorm, no smoothing": _unified(window=1),
    "UnifiedNorm, bound per channel": _unified(threshold="channel"),
    "UnifiedNorm, running kept": _unified(protect_running=True),
}


def bad_steps(steps: int, seed: int) -> list[int]:
    """Return two steps whose batches are spoilt, both after the warm-up."""
    draw = torch.Generator().manual_seed(seed + 77)
    return [int(steps * at) + int(torch.randint(max(1, steps // 20), (), generator=draw)) for at in (0.45, 0.85)]


def train(
    setting: str,
    name: str,
    seed: int,
    planted: bool,
    data: Path,
    *,
    steps: int,
    dim: int = 64,
    n_layers: int = 3,
    trace: bool = False,
) -> dict[str, Any]:
    """Train one network and return what became of it.

    Parameters
    ----------
    setting : {"images", "text", "causal"}
        CIFAR-10 with a ViT of 8 x 8 patches, masked bytes, bytes.
    name : str
        A key of ``NORMS``.
    seed : int
        Of weights, batches and the places of bad batches.
    planted : bool
        Multiply the inputs of the batches of :func:`bad_steps` by 30 (images only).
    data : Path
    steps : int
    dim, n_layers : int
    trace : bool, default False
        Also return the second moments of the first and the last norm, step by step.

    Returns
    -------
    dict
        Held-out ``loss`` and ``accuracy`` in ``eval()``; ``train mode loss`` on the same batches by their own
        statistics; ``just after`` and ``20 after``, the lowest accuracy 1 and 20 steps after a bad batch; ``shock``,
        the mean rise of the training loss in the four steps after one; ``CPU ms`` of a step; of a UnifiedNorm,
        ``skips`` by norm and the largest relative change of the logits by ``fused`` (float32, float64).
    """
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    how = TASKS[setting]
    task = load_task(data, how["task"])
    held = task.validation(8, how["batch"])
    if setting == "images":
        model: nn.Module = SmallViT(10, patch_size=8, dim=dim, n_layers=n_layers, norm="layer")
    else:
        model = SmallGPT(task.vocabulary, dim, n_layers, seq_len=task.seq_len, norm="layer", causal=setting == "causal")
    warmup = max(20, steps // 10)
    replace_norms(model, lambda d: NORMS[name](d, warmup))
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": how["decay"]}, {"params": vectors, "weight_decay": 0.0}],
        lr=how["lr"], betas=(0.9, 0.95),
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda k: min(1.0, (k + 1) / warmup) * (0.1 + 0.45 * (1 + math.cos(math.pi * k / steps)))
    )
    moments: dict[str, list[list[float]]] = {}
    handles = _watch(model, moments) if trace else []
    bad = bad_steps(steps, seed) if planted else []
    just, later, losses, cpu = [], [], [], 0.0
    for k in range(steps):
        x, y = task.batch(k, how["batch"], seed)
        began = time.process_time()
        loss = _loss(model(BAD * x if k in bad else x), y)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        cpu += time.process_time() - began
        losses.append(loss.item())
        for after, found in ((1, just), (20, later)):
            if k - after in bad:
                found.append(_held(model, held)[1])
    for handle in handles:
        handle.remove()
    loss, accuracy = _held(model, held)
    result = {
        "loss": loss,
        "accuracy": accuracy,
        "train mode loss": _held(copy.deepcopy(model), held, own_statistics=True)[0],
        "just after": min(just, default=None),
        "20 after": min(later, default=None),
        "shock": _mean([_mean(losses[b + 1 : b + 5]) - _mean(losses[b - 10 : b]) for b in bad]),
        "CPU ms": 1e3 * cpu / steps,
    }
    norms = {n: m for n, m in model.named_modules() if isinstance(m, UnifiedNorm)}
    if norms:
        result["skips"] = {n: int(m.skip_counter) for n, m in norms.items()}
        result["fused"] = [_fused_change(model, held, dtype) for dtype in (torch.float32, torch.float64)]
    if trace:
        result["moments"] = moments
    return result


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _loss(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, -2), y.flatten())


@torch.no_grad()
def _held(model: nn.Module, held: list[tuple[Tensor, Tensor]], own_statistics: bool = False) -> tuple[float, float]:
    """Return loss and accuracy; with the statistics of each batch where the norm has such."""
    mode = model.training
    model.train(own_statistics)
    losses, right, n = 0.0, 0, 0
    for x, y in held:
        logits, y = model(x).flatten(0, -2), y.flatten()
        logits, y = logits[y >= 0], y[y >= 0]
        losses += F.cross_entropy(logits, y, reduction="sum").item()
        right += int((logits.argmax(-1) == y).sum())
        n += len(y)
    model.train(mode)
    return losses / n, right / n


def _watch(model: nn.Module, moments: dict[str, list[list[float]]]) -> list[Any]:
    """Record the least, the median and the largest second moment of the channels that two norms read."""
    norms = [(n, m) for n, m in model.named_modules() if n.endswith(("norm", "norm_1", "norm_2"))]

    def hook(name: str) -> Callable:
        def note(module: nn.Module, inputs: tuple) -> None:
            if module.training:
                x2 = inputs[0].detach().flatten(0, -2).square().mean(0)
                moments.setdefault(name, []).append([float(x2.min()), float(x2.median()), float(x2.max())])

        return note

    return [m.register_forward_pre_hook(hook(n)) for n, m in (norms[0], norms[-2])]


@torch.no_grad()
def _fused_change(model: nn.Module, held: list[tuple[Tensor, Tensor]], dtype: torch.dtype) -> float:
    plain = copy.deepcopy(model).to(dtype).eval()
    fused = copy.deepcopy(plain)
    inputs = [x.to(dtype) if x.is_floating_point() else x for x, _ in held]
    fuse_unified_norm(fused, inputs[0][:2])
    before, after = (torch.cat([m(x) for x in inputs]) for m in (plain, fused))
    return float((before - after).abs().max() / before.abs().max())


# Inference ---------------------------------------------------------------------------------------------------------


def _settle(model: nn.Module) -> nn.Module:
    """Give the norms statistics and gains as training does; what they are costs no time."""
    for norm in model.modules():
        if isinstance(norm, UnifiedNorm):
            norm.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.1)
    return model.eval()


def _interleaved(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[tuple[float, float]]]:
    """Return wall and CPU seconds of each call, round by round, in a turning order."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    names = list(calls)
    for call in calls.values():
        call()
    for k in range(repeats):
        for name in names[k % len(names) :] + names[: k % len(names)]:
            wall, cpu = time.perf_counter(), time.process_time()
            calls[name]()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return times


def _rows(times: dict[str, list[tuple[float, float]]], against: str) -> list[dict[str, Any]]:
    rows = []
    for name, found in times.items():
        ratios = [b[1] / a[1] for a, b in zip(found, times[against], strict=True)]  # of one round: the load is alike
        rows.append(
            {
                "norm": name,
                "ms, wall": 1e3 * median(w for w, _ in found),
                "ms, CPU": 1e3 * median(c for _, c in found),
                f"speed beside {against}, CPU": median(ratios),
                "rounds ahead of it": None if name == against else f"{sum(r > 1 for r in ratios)} of {len(ratios)}",
            }
        )
    return rows


@torch.no_grad()
def inference(batch: int, tokens: int, dim: int, n_layers: int, repeats: int) -> list[dict[str, Any]]:
    """Time a vision transformer of ``tokens`` tokens (a square and one) with each norm, on as many threads as set.

    Returns
    -------
    list of dict
        LayerNorm, RMSNorm, UnifiedNorm in ``eval()``, the same fused, and no norm at all: medians of wall and CPU
        milliseconds, speed beside LayerNorm in the same rounds, and the peak of the memory that one call takes.
    """
    side = math.isqrt(tokens)
    torch.manual_seed(0)

    def build(norm: str) -> nn.Module:
        return SmallViT(10, image_size=4 * side, dim=dim, n_layers=n_layers, n_heads=max(1, dim // 64), norm=norm)

    x = torch.randn(batch, 3, 4 * side, 4 * side)
    unified = _settle(build("unified"))
    fused = copy.deepcopy(unified)
    fuse_unified_norm(fused, x[:1])
    models = {
        "LayerNorm": build("layer").eval(),
        "RMSNorm": build("rms").eval(),
        "UnifiedNorm, as it is": unified,
        "UnifiedNorm, fused": fused,
        "no norm": replace_norms(build("layer"), lambda d: nn.Identity()).eval(),
    }
    rows = _rows(_interleaved({n: lambda m=m: m(x) for n, m in models.items()}, repeats), "LayerNorm")
    for row in rows:
        row["peak MiB"] = peak_bytes(lambda m=models[row["norm"]]: m(x)) / 2**20
    return rows


@torch.no_grad()
def pair_seconds(batch: int, tokens: int, dim: int, repeats: int) -> list[dict[str, Any]]:
    """Time one norm with the linear layer (dim to 3 dim) behind it, as in :func:`inference`."""
    torch.manual_seed(0)
    x = torch.randn(batch, tokens, dim)
    linear = nn.Linear(dim, 3 * dim)
    unified = _settle(nn.Sequential(UnifiedNorm(dim), copy.deepcopy(linear)))
    fused = copy.deepcopy(unified)
    fuse_unified_norm(fused, x[:1])
    pairs = {
        "LayerNorm": nn.Sequential(nn.LayerNorm(dim), linear),
        "RMSNorm": nn.Sequential(nn.RMSNorm(dim, eps=1e-6), linear),
        "UnifiedNorm, as it is": unified,
        "UnifiedNorm, fused": fused,
        "no norm": linear,
    }
    return _rows(_interleaved({n: lambda m=m: m(x) for n, m in pairs.items()}, repeats), "LayerNorm")


def peak_bytes(call: Callable[[], Any]) -> int:
    """Return the largest sum of what the call's tensors held at one time, by the allocator's own record."""
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        kept = call()
    del kept
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
