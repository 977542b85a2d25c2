"""The grid of "Quantization meets dLLMs" (arXiv 2508.14896): models x methods x bits x tasks, one JSON line a cell.

Any recipe can be dropped in. A model is quantized once for each seed, which draws calibration text, rotations and
questions; float and quantized models answer the same questions and see the same masks. Cells are kept in the cache
folder, so that a run that was cut goes on where it stopped.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skerry.bench import dllm_tasks as tasks
from skerry.bench.quant_models import windows
from skerry.core.files import cache_folder
from skerry.deep.masked_diffusion import MaskedDiffusionLM, corrupt
from skerry.deep.masked_sampling import loglikelihood
from skerry.quant.engine import quantize_model
from skerry.quant.linear import QuantizedLinear
from skerry.quant.numerics import AffineGrid
from skerry.quant.recipe import Recipe, parse_bits
from skerry.quant.recipes import make_recipe
from skerry.quant.solvers.rtn import RTN

__all__ = ["FLOAT", "MASKED_CONFIGS", "PAPER_CONFIGS", "ROUNDING", "Config", "Sizes", "StudyGrid", "marginal"]

VERSION = 1  # of what a cell means: part of its key in the cache
USABLE = 5.0  # per cent that a usable cell may lose
CATEGORIES = {"cloze": "general", "addition": "maths", "brackets": "code", "copy": "code"}
BOUND = "bound"  # the likelihood bound in nats a character: told beside the tasks, in no mean


@dataclass(frozen=True)
class Config:
    """A method at its bits; ``calib`` is "clean" text (the paper's) or "masked" (shares of masks drawn uniformly)."""

    method: str
    bits: str
    calib: str = "clean"

    @property
    def name(self) -> str:
        """What a row of a table is called."""
        return f"{self.method} {self.bits}" + ("" if self.calib == "clean" else ", masked")


FLOAT = Config("float", "w16a16")
PAPER_CONFIGS = (
    *(Config(m, b) for b in ("w4a16g64", "w3a16g64") for m in ("gptq", "awq")),
    *(Config(m, b) for b in ("w8a8", "w4a4") for m in ("smoothquant", "quarot", "duquant")),
)
ROUNDING = (Config("rtn", "w3a16g64"), Config("rtn", "w4a4"))
MASKED_CONFIGS = tuple(
    Config(m, b, "masked") for m, b in (("gptq", "w3a16g64"), ("smoothquant", "w4a4"), ("duquant", "w4a4"))
)


@dataclass(frozen=True)
class Sizes:
    """How much is measured for each seed."""

    calibration: int = 16  # windows of 64 characters
    cloze: int = 24
    mc_num: int = 4
    questions: int = 48
    bound: int = 16  # windows
    duquant_steps: int = 64


QUICK = Sizes(calibration=4, cloze=4, mc_num=2, questions=4, bound=2, duquant_steps=4)


def recipe_of(config: Config, seed: int = 0, duquant_steps: int = 64) -> Recipe:
    """Return the recipe with the paper's settings: asymmetric SmoothQuant weights, a clip search for QuaRot's.

    Examples
    --------
    >>> recipe_of(Config("smoothquant", "w4a4")).weight.symmetric
    False
    """
    if config.method == "float":
        return Recipe("float")
    if config.method == "quarot":
        return replace(make_recipe("quarot", config.bits, random_state=seed), solver=RTN(clip=True))
    if config.method == "duquant":
        return make_recipe("duquant", config.bits, max_steps=duquant_steps, random_state=seed)
    recipe = make_recipe(config.method, config.bits)
    if config.method == "smoothquant" and isinstance(recipe.weight, AffineGrid):
        recipe = replace(recipe, weight=replace(recipe.weight, symmetric=False))
    return recipe


@dataclass
class StudyGrid:
    """Scores every configuration of every model on every task.

    Parameters
    ----------
    models : dict of str to MaskedDiffusionLM
    train, held : int64 Tensor
        Codes of the text for calibration and for questions.
    configs : sequence of Config
        For every model, unless ``only`` names others.
    seeds : sequence of int, default (0, 1, 2)
    sizes : Sizes
    only : dict of str to sequence of Config
        Configurations of single models.
    cache : Path, optional
        A JSONL file of cells; by default one in the cache folder.
    progress : callable
    """

    models: Mapping[str, MaskedDiffusionLM]
    train: Tensor
    held: Tensor
    configs: Sequence[Config] = PAPER_CONFIGS
    seeds: Sequence[int] = (0, 1, 2)
    sizes: Sizes = Sizes()
    only: Mapping[str, Sequence[Config]] = field(default_factory=dict)
    cache: Path | None = None
    progress: Callable[[str], None] = lambda text: None

    def run(self, *, resume: bool = True) -> list[dict[str, Any]]:
        """Return the cells, float ones included; with ``resume`` those that the cache has are not computed again."""
        path = self.cache or cache_folder() / "dllm-cells.jsonl"
        kept = _read(path) if resume else {}
        cells: list[dict[str, Any]] = []
        marks = {name: _fingerprint(model) for name, model in self.models.items()}
        for seed, (name, model) in itertools.product(self.seeds, self.models.items()):
            exact: dict[str, float] = {}
            for config in (FLOAT, *self.only.get(name, self.configs)):
                key = self._key(marks[name], config, seed)
                if key not in kept:
                    self.progress(f"{name}, seed {seed}, {config.name}")
                    kept[key] = self._measure(model, config, seed)
                    _append(path, key, kept[key])
                found = kept[key]
                exact = exact or found["scores"]
                cells += [_cell(name, config, seed, task, found, exact[task]) for task in found["scores"]]
        return cells

    def _measure(self, model: MaskedDiffusionLM, config: Config, seed: int) -> dict[str, Any]:
        started = time.process_time()
        recipe = recipe_of(config, seed, self.sizes.duquant_steps)
        text = windows(self.train, self.sizes.calibration, tasks.LENGTH, random_state=1000 + seed)
        if config.calib == "masked":
            generator = torch.Generator().manual_seed(seed)
            text = corrupt(text, model.mask_id, (torch.arange(len(text)) + 0.5) / len(text), generator=generator)[0]
        found, report = quantize_model(copy.deepcopy(model), recipe, calibration=list(text.split(8)), inplace=True)
        for module in found.modules():
            if isinstance(module, QuantizedLinear):
                module.keep_dense()
        scores = {task: self.score(found, task, seed) for task in (*tasks.TASKS, BOUND)}
        stored = 16.0 if config.method == "float" else float(report.bits_per_weight)
        return {"scores": scores, "seconds": time.process_time() - started, "bits_per_weight": stored}

    def score(self, model: MaskedDiffusionLM, task: str, seed: int) -> float:
        """Return the share of right answers or characters, or for "bound" the nats a character of held-out text."""
        if task == "cloze":
            asked = tasks.cloze(self.held, self.sizes.cloze, 2000 + seed)
            return tasks.score_cloze(model, asked, self.sizes.mc_num, 3000 + seed)
        if task == BOUND:
            text = windows(self.held, self.sizes.bound, tasks.LENGTH, random_state=4000 + seed)
            generator = torch.Generator().manual_seed(5000 + seed)
            empty, draws = text[:, :0], 2 * self.sizes.mc_num
            found = loglikelihood(model, empty, text, mc_num=draws, batch=draws, generator=generator)
            return -float(found.mean()) / tasks.LENGTH
        return tasks.score_written(model, tasks.questions(task, self.sizes.questions, 6000 + seed))

    def _key(self, mark: str, config: Config, seed: int) -> str:
        told = json.dumps([VERSION, mark, asdict(config), seed, asdict(self.sizes)], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:24]


def drop(score: float, exact: float, task: str) -> float:
    """Return what was lost in per cent of the float score; for "bound" what the nats rose by.

    Examples
    --------
    >>> round(drop(0.6, 0.8, "cloze"), 6), round(drop(2.2, 2.0, "bound"), 6)
    (25.0, 10.0)
    """
    if exact == 0.0:
        return float("nan")
    return 100.0 * (score - exact if task == BOUND else exact - score) / exact


def known_mean(values: Iterable[float]) -> float:
    """Return the mean of those that are not NaN (a drop from a float score of 0 is none); NaN if none is left.

    Examples
    --------
    >>> known_mean([1.0, float("nan"), 3.0])
    2.0
    """
    kept = [v for v in values if not np.isnan(v)]
    return float(np.mean(kept)) if kept else float("nan")


def _cell(name: str, config: Config, seed: int, task: str, found: Mapping[str, Any], exact: float) -> dict[str, Any]:
    bits = parse_bits(config.bits)
    lost = drop(found["scores"][task], exact, task)
    return {
        "model": name,
        "method": config.method,
        "bits": config.bits,
        "w_bits": bits.weight,
        "a_bits": bits.activation,
        "group": bits.group_size,
        "calib": config.calib,
        "task": task,
        "seed": seed,
        "score": round(found["scores"][task], 6),
        "fp_score": round(exact, 6),
        "drop_pct": None if np.isnan(lost) else round(lost, 4),
        "seconds": round(found["seconds"], 2),
        "bits_per_weight": round(found["bits_per_weight"], 3),
    }


def pooled(cells: Iterable[Mapping[str, Any]], keys: Sequence[str]) -> list[dict[str, Any]]:
    """Return for every value of ``keys`` the scores averaged over seeds, and the drop of the average.

    Parameters
    ----------
    cells : iterable of dict
    keys : sequence of str
        Fields of a cell; "task" must be among them.
    """
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for cell in cells:
        groups.setdefault(tuple(cell[k] for k in keys), []).append(cell)
    rows = []
    for values, members in groups.items():
        score, exact = (float(np.mean([m[k] for m in members])) for k in ("score", "fp_score"))
        row = dict(zip(keys, values, strict=True))
        rows.append(row | {"score": score, "fp_score": exact, "drop_pct": drop(score, exact, row["task"])})
    return rows


def marginal(cells: Iterable[Mapping[str, Any]], by: str) -> list[dict[str, Any]]:
    """Return a row for every bits, method, task category or model: mean drop, and how many cells are usable.

    A cell is a model, a configuration and a task, pooled over seeds; usable cells lose less than 5 %. The float model
    and masked calibration are left out.

    Parameters
    ----------
    cells : iterable of dict
    by : {"bits", "method", "category", "model"}
    """
    chosen = [c for c in cells if c["method"] != "float" and c["calib"] == "clean" and c["task"] != BOUND]
    rows = pooled(chosen, ("model", "method", "bits", "task"))
    groups: dict[str, list[float]] = {}
    for row in rows:
        value = CATEGORIES[row["task"]] if by == "category" else row[by]
        groups.setdefault(value, []).append(row["drop_pct"])
    return [
        {
            by: value,
            "mean drop, %": known_mean(drops),
            "largest drop, %": max((d for d in drops if not np.isnan(d)), default=float("nan")),
            "usable cells": f"{sum(d < USABLE for d in drops)} of {len(drops)}",
        }
        for value, drops in groups.items()
    ]


def _fingerprint(model: MaskedDiffusionLM) -> str:
    digest = hashlib.sha256(json.dumps(vars(model.config), sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:24]


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    found = {}
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # the last line of a run that was cut
        found[record.pop("key")] = record
    return found


def _append(path: Path, key: str, record: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps({"key": key} | dict(record)) + "\n")
