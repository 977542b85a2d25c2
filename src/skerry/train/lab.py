"""The laboratory: train a small transformer whose norm, attention, embedding and optimizer are arguments, and watch it.

A run is a :class:`LabConfig` and a task; it logs loss and outlier metrics, resumes from its checkpoint with the same
digits, and goes through ``accelerate``, so that the same call trains on one core, a GPU, or several under
``accelerate launch``.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer

from skerry.core.errors import MissingExtra, ParameterError, nearest
from skerry.train.lab_checkpoint import load_checkpoint, save_checkpoint
from skerry.train.lab_data import Images, MaskedWindows, Task
from skerry.train.lab_model import SmallGPT, SmallViT
from skerry.train.metrics import measure, token_loss
from skerry.train.nn import ResidualClip
from skerry.train.optim import ROOT, Muon, split_params

__all__ = ["LabConfig", "LabRun", "OPTIMIZERS", "build_model", "build_optimizer", "train_lab"]

OPTIMIZERS = ("adamw", "sgd", "muon", "muon-everywhere", "root")
_SCHEDULES = ("constant", "cosine", "trapezoid")


@dataclass(frozen=True)
class LabConfig:
    """What a run is, save for its data; equal configurations and tasks give equal digits on one machine.

    Parameters
    ----------
    dim, n_layers, n_heads : int, default 64, 3, 2
    norm, attention, ffn, embedding_projection, alpha, gate_init
        Parts of :class:`skerry.train.lab_model.SmallGPT`.
    optimizer : {"adamw", "sgd", "muon", "muon-everywhere", "root"}, default "adamw"
        ``"muon-everywhere"`` also takes embeddings and head (the paper's control). SGD has momentum 0.9.
    lr : float, default 3e-3
    weight_decay : float, default 0.0
        On matrices only.
    schedule : {"constant", "cosine", "trapezoid"}, default "constant"
        After warm-up; cosine falls to a tenth, the trapezoid linearly to a tenth over the last fifth.
    warmup : int, default 100
    steps : int, default 2000
    batch_size : int, default 16
    residual_clip : float, optional
        Clamp the stream behind each block: a negative control.
    mixed_precision : {"no", "bf16"}, default "no"
    seed : int, default 0
        Of weights and batches.

    Raises
    ------
    ParameterError
        For an unknown choice or a number out of range.

    Examples
    --------
    >>> osp = LabConfig(optimizer="muon", norm="single", embedding_projection=True)
    >>> osp.key == osp.with_seed(0).key != osp.with_seed(1).key
    True
    """

    dim: int = 64
    n_layers: int = 3
    n_heads: int = 2
    norm: str = "rms"
    attention: str = "softmax"
    ffn: str = "gelu"
    embedding_projection: bool = False
    alpha: float = 3.0
    gate_init: float = 0.5
    optimizer: str = "adamw"
    lr: float = 3e-3
    weight_decay: float = 0.0
    schedule: str = "constant"
    warmup: int = 100
    steps: int = 2000
    batch_size: int = 16
    residual_clip: float | None = None
    mixed_precision: str = "no"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (
            ("optimizer", OPTIMIZERS),
            ("schedule", _SCHEDULES),
            ("mixed_precision", ("no", "bf16")),
        ):
            if getattr(self, name) not in known:
                raise ParameterError(f"unknown {name} {getattr(self, name)!r}: {nearest(getattr(self, name), known)}")
        if self.steps < 1 or self.batch_size < 1 or self.warmup < 0 or not self.lr > 0:
            raise ParameterError(
                f"steps={self.steps}, batch_size={self.batch_size}, warmup={self.warmup}, lr={self.lr}: "
                "at least 1, 1, 0 and above 0"
            )

    @property
    def key(self) -> str:
        """A short name of this configuration, different for different ones."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def with_seed(self, seed: int) -> LabConfig:
        """Return the same configuration with another seed."""
        return replace(self, seed=seed)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        done = max(0.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        shape = 1.0
        if self.schedule == "cosine":
            shape = 0.1 + 0.45 * (1 + math.cos(math.pi * done))
        elif self.schedule == "trapezoid":
            shape = min(1.0, 0.1 + 0.9 * (1 - done) / 0.2)
        return self.lr * warm * shape


@dataclass
class LabRun:
    """A run, whole or cut short.

    Attributes
    ----------
    model : torch.nn.Module
    steps : int
        Steps taken in all, earlier calls that were resumed among them.
    history : list of dict
        What was logged: ``step``, ``train loss``, and at times the metrics of :func:`skerry.train.metrics.measure`.
    seconds : float
        Of training, over all calls.
    """

    model: nn.Module
    steps: int
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def metrics(self) -> dict[str, float]:
        """The last row that holds metrics."""
        return next((row for row in reversed(self.history) if "excess kurtosis" in row), {})


def build_model(config: LabConfig, task: Task) -> nn.Module:
    """Return the network of a configuration for a task, from the configuration's seed alone.

    Examples
    --------
    >>> from skerry.train.lab_data import ByteWindows
    >>> type(build_model(LabConfig(dim=16), ByteWindows(b"abc" * 400))).__name__
    'SmallGPT'
    """
    parts = {k: getattr(config, k) for k in ("norm", "attention", "ffn", "alpha", "gate_init")}
    sizes = {k: getattr(config, k) for k in ("dim", "n_layers", "n_heads")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if isinstance(task, Images):
            if config.embedding_projection:
                raise ParameterError("embedding_projection belongs to language models: images have no embedding table")
            return SmallViT(task.vocabulary, task.image_size, task.patch_size, task.channels, **sizes, **parts)
        causal = not isinstance(task, MaskedWindows)
        projection = config.embedding_projection
        return SmallGPT(
            task.vocabulary, seq_len=task.seq_len, causal=causal, embedding_projection=projection, **sizes, **parts
        )


def build_optimizer(model: nn.Module, config: LabConfig) -> Optimizer:
    """Return the optimizer of a configuration: one learning rate for all groups, decay on matrices only.

    Examples
    --------
    >>> build_optimizer(nn.Linear(2, 2), LabConfig(optimizer="sgd")).defaults["momentum"]
    0.9
    """
    decay = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimizer in ("adamw", "sgd"):
        groups = [
            {"params": [p for p in model.parameters() if p.ndim >= 2], **decay},
            {"params": [p for p in model.parameters() if p.ndim < 2], **decay, "weight_decay": 0.0},
        ]
        groups = [g for g in groups if g["params"]]
        if config.optimizer == "sgd":
            return torch.optim.SGD(groups, momentum=0.9)
        return torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8, fused=True)
    everywhere = config.optimizer == "muon-everywhere"
    matrices, rest = split_params(model, embeddings="muon" if everywhere else "adamw")
    if config.optimizer == "root":
        return ROOT(matrices, adamw_params=rest, cache=None, **decay)
    return Muon(matrices, adamw_params=rest, **decay)


def train_lab(
    config: LabConfig,
    task: Task,
    *,
    folder: str | Path | None = None,
    device: str = "cpu",
    threads: int | None = None,
    eval_every: int = 250,
    eval_batches: int = 8,
    log_every: int = 50,
    seconds: float | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> LabRun:
    """Train, or go on training, and return the run.

    Parameters
    ----------
    config : LabConfig
    task : Task
    folder : path, optional
        For ``log.jsonl`` and a checkpoint at every evaluation; if one is there the run resumes, and gives the digits
        of a run that was never stopped.
    device : str, default "cpu"
        ``"cpu"``, or ``"auto"`` for what ``accelerate`` finds.
    threads : int, optional
        Threads of torch for the time of the run.
    eval_every, eval_batches : int, default 250, 8
        Metrics on validation batches of ``config.batch_size``, at these steps and at the end.
    log_every : int, default 50
    seconds : float, optional
        Stop after so long; the next call with the same folder goes on.
    progress : callable, optional
        Given a line at each evaluation.

    Raises
    ------
    MissingExtra
        Without ``accelerate``.
    ModelError
        If the folder's checkpoint is damaged or of another configuration.

    Notes
    -----
    Under ``accelerate launch`` every process draws batches of its own; process 0 logs and saves.

    Examples
    --------
    >>> from skerry.train.lab_data import ByteWindows
    >>> task = ByteWindows(b"the same again, " * 100, seq_len=16)
    >>> run = train_lab(LabConfig(dim=16, n_layers=1, steps=40, warmup=4), task, eval_batches=1)
    >>> run.history[0]["train loss"] > run.metrics["loss"]
    True
    """
    try:
        from accelerate import Accelerator
        from accelerate.utils import broadcast
    except ImportError:
        raise MissingExtra("accelerate", "deep") from None
    if device not in ("cpu", "auto"):
        raise ParameterError(f"device is {device!r}: give 'cpu' or 'auto'")
    folder = None if folder is None else Path(folder)
    described = {**asdict(config), "task": type(task).__name__}
    with _threads(threads):
        accelerator = Accelerator(cpu=device == "cpu", mixed_precision=config.mixed_precision)
        inner = build_model(config, task)
        model, optimizer = accelerator.prepare(inner, build_optimizer(inner, config))
        if config.residual_clip is not None:
            ResidualClip(inner.blocks, config.residual_clip)
        start = load_checkpoint(folder, inner, optimizer.optimizer, described) if folder else 0
        run = LabRun(inner, start, *_read_log(folder, start))
        held = [(x.to(accelerator.device), y.to(accelerator.device)) for x, y in task.validation(
            eval_batches, config.batch_size)]  # fmt: skip
        began, lead = time.perf_counter(), accelerator.is_main_process
        earlier = run.seconds
        model.train()
        for step in range(start, config.steps):
            x, y = (
                t.to(accelerator.device)
                for t in task.batch(step * accelerator.num_processes + accelerator.process_index, config.batch_size,
                                    config.seed)
            )  # fmt: skip
            for group in optimizer.param_groups:
                group["lr"] = config.rate(step)
            loss = token_loss(model(x), y)
            optimizer.zero_grad()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            run.steps = step + 1
            run.seconds = earlier + time.perf_counter() - began
            stop = seconds is not None and time.perf_counter() - began > seconds
            if seconds is not None and accelerator.num_processes > 1:  # clocks differ: process 0 decides for all
                stop = bool(broadcast(torch.tensor(float(stop), device=accelerator.device)) > 0)
            last = run.steps == config.steps or stop
            row = {"step": run.steps}
            if step % log_every == 0 or run.steps % eval_every == 0 or last:
                row["train loss"] = float(loss.detach())
            if run.steps % eval_every == 0 or last:
                row |= measure(inner, held)
                progress(f"step {run.steps} of {config.steps}: loss {row['loss']:.3f}, excess kurtosis "
                         f"{row['excess kurtosis']:.2f} (floor {row['floor']:.2f})")  # fmt: skip
            if len(row) > 1:
                run.history.append(row)
            if folder and lead and len(row) > 2:
                save_checkpoint(folder, run.steps, inner, optimizer.optimizer, described)
                _write_log(folder, run)
            if stop:
                break
    inner.eval()
    return run


@contextmanager
def _threads(n: int | None):
    """Let torch use n threads inside the block."""
    before = torch.get_num_threads()
    if n is not None:
        torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _write_log(folder: Path, run: LabRun) -> None:
    from skerry.core.files import atomic_write

    lines = [*({**row, "seconds": None} for row in run.history[:-1]), {**run.history[-1], "seconds": run.seconds}]
    with atomic_write(folder / "log.jsonl") as file:
        for row in lines:
            row = {k: v for k, v in row.items() if v is not None and v == v}
            file.write((json.dumps(row) + "\n").encode())


def _read_log(folder: Path | None, step: int) -> tuple[list[dict[str, float]], float]:
    """Return the rows up to the checkpoint and the seconds spent."""
    path = None if folder is None else folder / "log.jsonl"
    if not step or not path.exists():
        return [], 0.0
    rows = [json.loads(line) for line in path.read_text().splitlines() if line]
    rows = [r for r in rows if r["step"] <= step]
    seconds = max((r.pop("seconds", 0.0) for r in rows), default=0.0)
    return rows, seconds
