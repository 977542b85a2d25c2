"""The runs of the training studies: variants by name, trained once, kept in a cache folder and resumed from there.

The settings are those of the laboratory note: Bigram-Backcopy at a constant learning rate, where outliers form in
minutes; a byte model; masked bytes; small images. Studies ask for the variants they need and share what is trained.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from skerry.core.errors import DataError, ParameterError, nearest
from skerry.core.files import atomic_write, cache_folder

__all__ = [
    "SETTINGS",
    "VARIANTS",
    "Job",
    "lab_folder",
    "jobs",
    "kept",
    "load_model",
    "load_task",
    "plan_jobs",
    "train_all",
]

_FORMAT = 1  # raise it when training changes so that cached runs no longer stand for it
TEXTS = {"backcopy": "tinyshakespeare.txt.gz", "bytes": "wikitext2_valid.txt.gz", "masked": "wikitext2_valid.txt.gz"}

# Fields of LabConfig, and of the task: "task" is its kind, "bos" and "seq_len" its arguments.
SETTINGS: dict[str, dict[str, Any]] = {
    "backcopy": {"task": "backcopy", "seq_len": 48},
    "bytes": {
        "task": "bytes",
        "seq_len": 64,
        "n_layers": 4,
        "steps": 1000,
        "schedule": "cosine",
        "weight_decay": 0.1,
    },
    "masked": {
        "task": "masked",
        "seq_len": 64,
        "n_layers": 4,
        "steps": 1000,
        "schedule": "cosine",
        "weight_decay": 0.1,
    },
    "images": {
        "task": "images",
        "seq_len": 65,
        "n_layers": 4,
        "steps": 1000,
        "schedule": "cosine",
        "weight_decay": 0.05,
        "batch_size": 32,
        "lr": 1e-3,
    },
    "bytes-60m": {
        "task": "texts",
        "seq_len": 512,
        "dim": 512,
        "n_layers": 12,
        "n_heads": 8,
        "steps": 8000,
        "batch_size": 128,
        "lr": 4e-3,
        "warmup": 500,
        "schedule": "trapezoid",
        "weight_decay": 0.1,
        "mixed_precision": "bf16",
    },
}
VARIANTS: dict[str, dict[str, Any]] = {
    "Adam": {},
    "Adam, gate": {"attention": "gate"},
    "Adam, gate from 0.25": {"attention": "gate", "gate_init": 0.25},
    "Adam, element gate": {"attention": "gate-element"},
    "Adam, clip": {"attention": "clip"},
    "Adam, clip 2": {"attention": "clip", "alpha": 2.0},
    "Adam, clip 4": {"attention": "clip", "alpha": 4.0},
    "Adam, softmax + 1": {"attention": "plus-one"},
    "Adam, ReLU attention": {"attention": "relu"},
    "Adam, value bias": {"attention": "value-bias"},
    "Adam, context bias": {"attention": "context-bias"},
    "Adam, key bias": {"attention": "key-bias"},
    "Adam, context scale": {"attention": "context-scale"},
    "Adam, sigmoid": {"attention": "sigmoid"},
    "Adam, SSNorm": {"norm": "single"},
    "Adam, LayerNorm": {"norm": "layer"},
    "Adam, GatedNorm": {"norm": "gated"},
    "Adam, gate, GatedNorm": {"attention": "gate", "norm": "gated"},
    "Adam, PreAffine": {"norm": "pre-affine"},
    "Adam, gate, PreAffine": {"attention": "gate", "norm": "pre-affine"},
    "Adam, DyT": {"norm": "dyt"},
    "Adam, DyT, lr 5e-4": {"norm": "dyt", "lr": 5e-4},
    "Adam, gate, GatedDyT": {"attention": "gate", "norm": "gated-dyt"},
    "Adam, SwiGLU": {"ffn": "swiglu"},
    "Adam, GLU": {"ffn": "glu"},
    "Adam, stream clipped at 10": {"residual_clip": 10.0},
    "Adam, gate, stream clipped at 10": {"attention": "gate", "residual_clip": 10.0},
    "Adam, no BOS": {"bos": False},
    "Adam, lr 1e-2": {"lr": 1e-2},
    "Adam, lr 5e-4": {"lr": 5e-4},
    "SGD": {"optimizer": "sgd", "lr": 0.05},
    "Muon": {"optimizer": "muon"},
    "Muon everywhere": {"optimizer": "muon-everywhere"},
    "Muon, SSNorm": {"optimizer": "muon", "norm": "single"},
    "Muon, EmbProj": {"optimizer": "muon", "embedding_projection": True},
    "OSP": {"optimizer": "muon", "norm": "single", "embedding_projection": True},
    "ROOT": {"optimizer": "root"},
}


@dataclass(frozen=True)
class Job:
    """One run: a setting, a variant, a seed, and what they add up to."""

    setting: str
    variant: str
    seed: int
    config: Any
    task: tuple[tuple[str, Any], ...]

    @property
    def folder(self) -> str:
        """The run's name in the cache."""
        text = json.dumps([_FORMAT, self.config.key, *self.task])
        return (
            f"{self.setting}-{self.variant}-{self.seed}-".replace(" ", "-").replace(",", "")
            + (hashlib.sha256(text.encode()).hexdigest()[:12])
        )


def jobs(setting: str, variants: Sequence[str], seeds: Sequence[int], **changes: Any) -> list[Job]:
    """Return the runs of some variants, seed by seed.

    Parameters
    ----------
    setting : str
        A key of ``SETTINGS``.
    variants : sequence of str
        Keys of ``VARIANTS``.
    seeds : sequence of int
    **changes
        Fields of the configuration in place of the setting's.

    Raises
    ------
    ParameterError
        For an unknown variant.
    """
    from skerry.train.lab import LabConfig

    found = []
    for seed in seeds:
        for variant in variants:
            if variant not in VARIANTS:
                raise ParameterError(f"unknown variant {variant!r}: {nearest(variant, VARIANTS)}")
            fields = {**SETTINGS[setting], **VARIANTS[variant], **changes}
            task = {k: fields.pop(k) for k in ("task", "seq_len", "bos") if k in fields}
            found.append(Job(setting, variant, seed, LabConfig(**fields, seed=seed), tuple(sorted(task.items()))))
    return found


def plan_jobs(plan: Mapping[str, Mapping[str, int]], seed: int, seeds: int | None = None, **changes: Any) -> list[Job]:
    """Return the runs of a plan, setting to variant to its number of seeds: every variant once before any again.

    Parameters
    ----------
    plan : mapping
    seed : int
        The first one.
    seeds : int, optional
        In place of every number in the plan.
    **changes
        As for :func:`jobs`.
    """
    found = []
    for s in range(seeds or max(n for of in plan.values() for n in of.values())):
        for setting, of in plan.items():
            found += jobs(setting, [v for v, n in of.items() if s < (seeds or n)], [seed + s], **changes)
    return found


def lab_folder(cache: Path | None) -> Path:
    """Return the folder of trained runs: the given one, or ``lab`` in Skerry's cache folder."""
    return cache if cache is not None else cache_folder() / "lab"


@lru_cache(maxsize=4)
def load_task(data: Path, task: tuple[tuple[str, Any], ...]) -> Any:
    """Return the task of a job, made from the files in ``data``.

    Raises
    ------
    DataError
        If a file is absent or damaged.
    """
    from skerry.train import lab_data

    fields = dict(task)
    kind = fields.pop("task")
    if kind == "images":
        return _images(data / "images" / "cifar10_jpeg.npz")
    paths = sorted((data / "text").glob("*.txt.gz")) if kind == "texts" else [data / "text" / TEXTS[kind]]
    if not paths:
        raise DataError(f"{data / 'text'}: holds no *.txt.gz; put texts there or set SKERRY_DATA")
    parts = []
    for path in paths:
        try:
            parts.append(gzip.decompress(path.read_bytes()))
        except (OSError, EOFError) as error:
            raise DataError(f"{path}: cannot be read ({error}); put the text there or set SKERRY_DATA") from None
    text = b"\n".join(parts)
    if kind == "backcopy":
        return lab_data.BackcopyTask(text.decode("utf-8"), **fields)
    return (lab_data.MaskedWindows if kind == "masked" else lab_data.ByteWindows)(text, **fields)


def _images(path: Path, n_train: int = 10_000, n_held: int = 512) -> Any:
    import torch
    from PIL import Image

    from skerry.train.lab_data import Images

    if not path.exists():
        raise DataError(f"{path}: is not there; put CIFAR-10 there or set SKERRY_DATA")

    def read(z: Any, part: str, n: int) -> tuple[Any, Any]:
        raw, offset, y = z[f"jpeg_{part}"], z[f"offset_{part}"], z[f"y_{part}"]
        rows = np.random.default_rng(0).permutation(len(y))[:n]
        x = np.stack([np.asarray(Image.open(io.BytesIO(raw[offset[i] : offset[i + 1]]))) for i in rows])
        return torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(y[rows].astype(np.int64))

    with np.load(path, allow_pickle=False) as z:
        return Images(read(z, "train", n_train), read(z, "test", n_held), 10)


def train_all(
    wanted: Sequence[Job],
    data: Path,
    *,
    cache: Path | None = None,
    device: str = "cpu",
    budget: float | None = None,
    workers: int = 2,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[Job, dict[str, Any]]:
    """Train what the cache lacks, and return for each job its steps, seconds, history and checkpoint folder.

    Parameters
    ----------
    wanted : sequence of Job
    data : Path
    cache : Path, optional
        See :func:`lab_folder`.
    device : str, default "cpu"
    budget : float, optional
        Seconds for all that is left to train. Each run gets an equal share, and one that outlasts it stops at a
        checkpoint: the same call again goes on.
    workers : int, default 2
        Processes of one thread each; 1 on a GPU.
    progress : callable, optional
    """
    from joblib import Parallel, delayed

    root = lab_folder(cache)
    missing = [job for job in wanted if _state(root, job)["steps"] < job.config.steps]
    if missing:
        progress(f"{len(missing)} of {len(wanted)} runs to train; the rest is in the cache {root}")
        workers = 1 if device != "cpu" else max(1, min(workers, len(missing)))
        share = None if budget is None else budget * workers / len(missing)
        calls = (delayed(_train)(job, data, root, device, share) for job in missing)
        began = time.perf_counter()
        for k, job in enumerate(Parallel(n_jobs=workers, return_as="generator_unordered")(calls), 1):
            state = _state(root, job)
            found = next((r for r in reversed(state["history"]) if "loss" in r), {})
            progress(
                f"{k} of {len(missing)}, {time.perf_counter() - began:.0f} s: {job.setting}, {job.variant}, seed "
                f"{job.seed}: step {state['steps']}, loss {found.get('loss', float('nan')):.3f}, excess kurtosis "
                f"{found.get('excess kurtosis', float('nan')):.2f} (floor {found.get('floor', float('nan')):.2f})"
            )
    return {job: _state(root, job) for job in wanted}


def _train(job: Job, data: Path, root: Path, device: str, seconds: float | None) -> Job:
    from skerry.train.lab import train_lab

    every = 250 if job.config.steps >= 500 else job.config.steps
    train_lab(
        job.config,
        load_task(data, job.task),
        folder=root / job.folder,
        device=device,
        threads=1 if device == "cpu" else None,
        eval_every=every,
        eval_batches=8,
        seconds=seconds,
    )
    return job


def _state(root: Path, job: Job) -> dict[str, Any]:
    """Return what the cache holds of a run."""
    folder = root / job.folder
    index, log = folder / "checkpoint.json", folder / "log.jsonl"
    if not index.exists() or not log.exists():
        return {"steps": 0, "seconds": 0.0, "history": [], "folder": folder}
    steps = json.loads(index.read_text())["step"]
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    seconds = max((r.pop("seconds", 0.0) for r in rows), default=0.0)
    return {"steps": steps, "seconds": seconds, "history": rows, "folder": folder}


def kept(state: Mapping[str, Any], name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what ``compute`` gives for a run, kept beside its checkpoint as ``name.json``."""
    path = state["folder"] / f"{name}.json"
    stamp = {"format": _FORMAT, "steps": state["steps"]}
    if path.exists():
        found = json.loads(path.read_text())
        if found.get("stamp") == stamp:
            return found["value"]
    value = compute()
    with atomic_write(path) as file:
        file.write(json.dumps({"stamp": stamp, "value": value}).encode())
    return value


def load_model(job: Job, data: Path, state: dict[str, Any], *, merge: bool = True) -> tuple[Any, Any]:
    """Return the trained model of a run, its projections merged unless told otherwise, and its task."""
    from skerry.train.lab import build_model
    from skerry.train.lab_checkpoint import load_checkpoint
    from skerry.train.nn import ResidualClip, absorb_embedding_projection

    task = load_task(data, job.task)
    model = build_model(job.config, task)
    load_checkpoint(state["folder"], model)
    if merge and job.config.embedding_projection:
        absorb_embedding_projection(model)
    if job.config.residual_clip is not None:
        ResidualClip(model.blocks, job.config.residual_clip)
    return model.eval(), task
