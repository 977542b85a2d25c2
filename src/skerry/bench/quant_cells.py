"""One model, one recipe, one width: what it lost, how large it is, how long it took; kept on disk, cell by cell.

A subject is a model with its calibration rows and a way to judge it that gives one number an item (a window's loss, a
sentence's mean change of similarity), so that two recipes are compared item by item. A cell is measured on one thread
in processor seconds, which other work on the machine disturbs least, and written at once to a file of JSON lines
(``SKERRY_CACHE``, else ``~/.cache/skerry``). It counts only while the subject, the recipe and the code of
the recipe's parts are those it was made with; half a line, as an interruption leaves it, counts as none.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from skerry.core.errors import SkerryError
from skerry.core.files import cache_folder
from skerry.quant.api import use_kernels
from skerry.quant.calibration import run_model
from skerry.quant.comparison import stored_bytes
from skerry.quant.engine import quantize_model
from skerry.quant.linear import QuantizedLinear
from skerry.quant.recipe import PARTS, Recipe, to_plain

__all__ = ["Cells", "Judged", "Subject", "digest_of", "float_cell", "measured", "tokens_per_second"]


@dataclass(frozen=True)
class Judged:
    """How good a model is.

    Attributes
    ----------
    items : list of float
        One figure an item, lower is better, in the same order for every model of the subject.
    figures : mapping of str to float
        What the table shows.
    """

    items: list[float]
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Subject:
    """What is quantized and how it is judged.

    Attributes
    ----------
    name : str
    model : Module
    calibration : list
        Batches for ``model(batch)`` or ``model(**batch)``.
    judge : callable
        From a model to :class:`Judged`.
    batch : Tensor or mapping
        Timed.
    tokens : int
        Tokens in it.
    stamp : str
        Changes when the model, the rows or the judge do.
    """

    name: str
    model: nn.Module
    calibration: list[Any]
    judge: Callable[[nn.Module], Judged]
    batch: Any
    tokens: int
    stamp: str


def digest_of(model: nn.Module, tensors: list[Tensor], *words: object) -> str:
    """Return a short digest of a model's weights, of rows, and of settings."""
    whole = hashlib.sha256(repr(words).encode())
    for tensor in [*model.state_dict().values(), *tensors]:
        whole.update(tensor.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()[:16]


def measured(subject: Subject, recipe: Recipe) -> dict[str, Any]:
    """Quantize and judge; return a cell.

    A recipe that the model or the width refuses gives ``{"refused": why}``.
    """
    started = time.process_time()
    try:
        found, report = quantize_model(copy.deepcopy(subject.model), recipe, calibration=subject.calibration)
    except SkerryError as error:
        return {"refused": str(error)}
    seconds = time.process_time() - started
    layers = [m for m in found.modules() if isinstance(m, QuantizedLinear)]
    nbytes = stored_bytes(found)
    for layer in layers:
        layer.keep_dense()
    judged = subject.judge(found)
    for layer in layers:
        layer.keep_dense(False)
    kernels = sorted(set(use_kernels(found).values()))
    return {
        "items": judged.items,
        "figures": dict(judged.figures),
        "bytes": nbytes,
        "bits": report.bits_per_weight,
        "seconds": seconds,
        "speed": tokens_per_second(found, subject),
        "kernels": "+".join(kernels),
        "decibels": [layer.signal_to_noise for layer in report.layers],
    }


def float_cell(subject: Subject, dtype: torch.dtype) -> dict[str, Any]:
    """Return the cell of the model as it is, in float32 or bfloat16."""
    model = copy.deepcopy(subject.model).to(dtype)
    judged = subject.judge(model)
    return {
        "items": judged.items,
        "figures": dict(judged.figures),
        "bytes": stored_bytes(model),
        "bits": 8.0 * dtype.itemsize,
        "seconds": 0.0,
        "speed": tokens_per_second(model, subject),
        "kernels": "torch",
    }


@torch.no_grad()
def tokens_per_second(model: nn.Module, subject: Subject, *, repetitions: int = 5) -> float:
    """Return tokens a processor second of one forward pass over the subject's batch, best of the repetitions."""
    run_model(model, subject.batch)
    best = float("inf")
    for _ in range(repetitions):
        started = time.process_time()
        run_model(model, subject.batch)
        best = min(best, time.process_time() - started)
    return subject.tokens / max(best, 1e-6)


class Cells:
    """Cells by key, in a file.

    Parameters
    ----------
    name : str
        Of the file.
    folder : Path, optional
        Default ``bench`` in Skerry's cache folder.
    """

    def __init__(self, name: str, folder: Path | None = None) -> None:
        folder = folder or cache_folder() / "bench"
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{name}.jsonl"
        self.known = {(line["key"], line["stamp"]): line["cell"] for line in _lines(self.path)}

    def get(self, key: str, stamp: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the cell, made now if it is not known under this stamp."""
        if (key, stamp) not in self.known:
            cell = make()
            self.known[key, stamp] = cell
            with self.path.open("a") as file:
                file.write(json.dumps({"key": key, "stamp": stamp, "cell": cell}) + "\n")
        return self.known[key, stamp]

    def of(self, subject: Subject, key: str, recipe: Recipe) -> dict[str, Any]:
        """Return the cell of a recipe on a subject."""
        return self.get(f"{subject.name}|{key}", _stamp(subject, recipe), lambda: measured(subject, recipe))

    def knows(self, subject: Subject, key: str, recipe: Recipe) -> bool:
        """Return whether the cell need not be made."""
        return (f"{subject.name}|{key}", _stamp(subject, recipe)) in self.known


def _stamp(subject: Subject, recipe: Recipe) -> str:
    return f"{subject.stamp} {_code(recipe)} {platform.machine()}"


def _code(recipe: Recipe) -> str:
    """Return a digest of the recipe and of the files of its parts; a change of the engine wants a new cache."""
    names = {PARTS[name] for name in _parts(to_plain(recipe))}
    whole = hashlib.sha256(recipe.to_json().encode())
    for name in sorted(names - {"skerry.quant.recipe"}):
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin:
            whole.update(Path(spec.origin).read_bytes())
    return whole.hexdigest()[:12]


def _parts(plain: Any) -> Iterator[str]:
    if isinstance(plain, list):
        for one in plain:
            yield from _parts(one)
    elif isinstance(plain, dict):
        if "part" in plain:
            yield plain["part"]
        for one in plain.values():
            yield from _parts(one)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    for line in path.read_text().splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and found.keys() >= {"key", "stamp", "cell"}:
            yield found
