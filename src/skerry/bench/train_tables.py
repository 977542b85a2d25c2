"""From trained runs to tables: metrics, gaps at low bits, means over seeds and their spread."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skerry.bench.train_runs import Job, kept, load_model, plan_jobs, train_all
from skerry.core.errors import ParameterError

__all__ = [
    "MAIN",
    "cpu_minutes",
    "evaluate_all",
    "expectations",
    "expected",
    "gap_rows",
    "history",
    "main_rows",
    "mean",
    "run_plan",
    "seconds",
    "spread",
]

_GAPS = {
    "W8A8 t": {"weight_bits": 8, "activation_bits": 8, "per": "tensor"},
    "W8A8 static": {"weight_bits": 8, "activation_bits": 8, "per": "static"},
    "W6A6 t": {"weight_bits": 6, "activation_bits": 6, "per": "tensor"},
    "W4A4 k": {"per": "token"},
    "W4A4 t": {"per": "tensor"},
    "W4A4 k, FFN Hadamard": {"per": "token", "ffn_hadamard": True},
    "W4A4 t, FFN Hadamard": {"per": "tensor", "ffn_hadamard": True},
    "A4 t, in": {"weight_bits": 16, "per": "tensor", "sites": ("in",)},
    "A4 t, ao": {"weight_bits": 16, "per": "tensor", "sites": ("ao",)},
    "A4 t, ffn": {"weight_bits": 16, "per": "tensor", "sites": ("ffn",)},
    "A4 t, ffn, Hadamard": {"weight_bits": 16, "per": "tensor", "sites": ("ffn",), "ffn_hadamard": True},
}
MAIN = (
    "loss",
    "excess kurtosis",
    "floor",
    "peak",
    "MMR",
    "sink, best head",
    "sink, mean head",
    "value drain",
    "W8A8 t",
    "W4A4 k",
    "W4A4 t",
)
_SPREAD = ("loss", "excess kurtosis", "sink, mean head", "W4A4 t")


def seconds(text: str | float | None) -> float | None:
    """Return the seconds of ``"25m"``, ``"90s"``, ``"2h"`` or a number of seconds.

    Raises
    ------
    ParameterError
        For anything else.

    Examples
    --------
    >>> seconds("25m"), seconds(None)
    (1500.0, None)
    """
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", str(text))
    if not found or not float(found[1]) > 0:
        raise ParameterError(f"budget is {text!r}: give a time such as 90s, 25m or 2h")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def run_plan(
    plan: Mapping[str, Mapping[str, int]],
    quick: bool,
    data: Path,
    seed: int,
    progress: Callable[[str], None],
    seeds: int | None = None,
    budget: str | None = None,
    device: str = "cpu",
) -> tuple[dict[Job, dict[str, Any]], dict[Job, dict[str, float]]]:
    """Train the runs of a plan that the cache lacks and evaluate all: the opening of every study on the laboratory.

    Parameters
    ----------
    plan : mapping
        Setting to variant to its number of seeds.
    quick : bool
        30 steps in place of the setting's number.
    data : Path
    seed : int
        The first one.
    progress : callable
    seeds : int, optional
        In place of every number in the plan.
    budget : str, optional
        For all trainings together; see :func:`seconds`.
    device : str, default "cpu"

    Returns
    -------
    (states, figures)
        Of each run: what :func:`skerry.bench.train_runs.train_all` and :func:`evaluate_all` return.
    """
    wanted = plan_jobs(plan, seed, seeds, **({"steps": 30} if quick else {}))
    states = train_all(wanted, data, device=device, budget=seconds(budget), progress=progress)
    return states, evaluate_all(states, data, progress)


def evaluate_all(
    states: Mapping[Job, dict[str, Any]],
    data: Path,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[Job, dict[str, float]]:
    """Return metrics and gaps of every run that took a step; gaps are kept beside the checkpoint."""
    from joblib import Parallel, delayed

    runs = {job: state for job, state in states.items() if state["history"]}
    progress(f"losses at 8, 6 and 4 bits of {len(runs)} trained models")
    gaps = Parallel(n_jobs=1 if len(runs) < 3 else 2)(delayed(_gaps)(job, data, state) for job, state in runs.items())
    found = {}
    for (job, state), gap in zip(runs.items(), gaps, strict=True):
        last = next((row for row in reversed(state["history"]) if "loss" in row), {})
        found[job] = {**last, **gap, "steps": state["steps"], "seconds": state["seconds"]}
    return found


def _gaps(job: Job, data: Path, state: dict[str, Any]) -> dict[str, float]:
    return kept(state, "gaps", lambda: _new_gaps(job, data, state))


def _new_gaps(job: Job, data: Path, state: dict[str, Any]) -> dict[str, float]:
    import torch

    from skerry.bench.quantization_gap import mean_loss, quantization_gap

    torch.set_num_threads(1)
    model, task = load_model(job, data, state)
    held = task.validation(8, job.config.batch_size)
    calibration = [task.batch(k, job.config.batch_size, seed=1_000_003)[0] for k in range(16)]
    full = mean_loss(model, held)
    gaps = {
        name: quantization_gap(model, held, full=full, **how, calibration=calibration) for name, how in _GAPS.items()
    }
    return {**gaps, "W4A4 k, loss": full + gaps["W4A4 k"]}


def _grouped(found: Mapping[Job, dict[str, float]]) -> dict[str, list[dict[str, float]]]:
    groups: dict[str, list[dict[str, float]]] = defaultdict(list)
    for job, values in found.items():
        groups[job.variant].append(values)
    return groups


def _values(found: Mapping[Job, dict[str, float]], variant: str, key: str) -> list[float]:
    return [v[key] for job, v in found.items() if job.variant == variant and key in v]


def mean(found: Mapping[Job, dict[str, float]], variant: str, key: str) -> float:
    """Return the mean of a figure over a variant's seeds; NaN if it did not run."""
    values = _values(found, variant, key)
    return float(np.mean(values)) if values else math.nan


def spread(found: Mapping[Job, dict[str, float]], variant: str, key: str) -> str:
    """Return ``mean (least to largest)`` over a variant's seeds, or the one value."""
    values = _values(found, variant, key)
    if not values:
        return "not run"
    text = f"{np.mean(values):.3g}"
    return text if len(values) == 1 else f"{text} ({min(values):.3g} to {max(values):.3g})"


def main_rows(found: Mapping[Job, dict[str, float]], keys: Sequence[str] = MAIN) -> list[dict[str, Any]]:
    """Return a row for each variant: means over seeds, and standard deviations of what claims rest on."""
    rows = []
    for variant, runs in _grouped(found).items():
        row: dict[str, Any] = {"variant": variant, "seeds": len(runs)}
        for key in keys:
            row[key] = mean(found, variant, key)
            if key in _SPREAD and any(len(r) > 1 for r in _grouped(found).values()):
                values = _values(found, variant, key)
                row[f"{key}, sd"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
        steps = [int(r["steps"]) for r in runs]
        row["steps"] = steps[0] if len(set(steps)) == 1 else f"{min(steps)} to {max(steps)}"
        rows.append(row)
    return rows


def gap_rows(found: Mapping[Job, dict[str, float]]) -> list[dict[str, Any]]:
    """Return the table of losses at low bits: in sum, with a Hadamard transform in the FFN, and by site."""
    keys = ("W4A4 k, loss", *(k for k in _GAPS if k != "W8A8 t"))
    return [
        {"variant": v, "seeds": len(runs)} | {k: mean(found, v, k) for k in keys} for v, runs in _grouped(found).items()
    ]


def history(states: Mapping[Job, dict[str, Any]], key: str) -> dict[str, list[tuple[float, float]]]:
    """Return for each variant the curve of a metric over steps, mean over the seeds that have the point."""
    points: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for job, state in states.items():
        for row in state["history"]:
            if key in row:
                points[job.variant][row["step"]].append(row[key])
    return {v: [(s, float(np.mean(values))) for s, values in sorted(of.items())] for v, of in points.items()}


def expectations(rows: Sequence[tuple[str, float | str, bool | None]]) -> list[dict[str, Any]]:
    """Return a table of what was expected, measured, and whether it was met; None means that it did not run."""
    return [
        {"expected": what, "measured": value, "met": "not run" if met is None else "yes" if met else "no"}
        for what, value, met in rows
    ]


def expected(what: str, value: float, holds: Callable[[float], bool]) -> tuple[str, float, bool | None]:
    """Return one row for :func:`expectations`; a NaN did not run."""
    return what, value, None if math.isnan(value) else bool(holds(value))


def cpu_minutes(found: Mapping[Job, dict[str, float]]) -> float:
    """Return the minutes that training took, all runs together."""
    return sum(v["seconds"] for v in found.values()) / 60
