"""Run a study, and keep what it measured: ``benchmarks/NAME.json`` and ``.md``, with machine and versions."""

from __future__ import annotations

import datetime as dt
import importlib
import importlib.metadata
import inspect
import json
import math
import os
import platform
import shlex
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from skerry.core.errors import DataError, ParameterError, nearest
from skerry.core.files import atomic_write
from skerry.core.machine import processor

__all__ = ["STUDIES", "compare", "plain", "run_study", "to_markdown"]

STUDIES: dict[str, str] = {
    "alarms": "false alarms of the thresholds of series and streams, beside what they promise",
    "apre-mss": "autoencoder losses and mean-shift scoring on labelled tables",
    "autood": "searching for a detector: AutoOD beside random search",
    "beta-rank": "pruning filters after imbalanced training: Beta-Rank beside seven criteria",
    "conformal": "measured false discovery rate of conformal thresholds",
    "dllm": "quantized diffusion language models: methods x bits x tasks x models, and a census of outliers",
    "imdiffusion": "imputation by diffusion beside its ablations and peers",
    "outlier-driven-rescaling": "gated norms and PreAffine beside RMSNorm, and what a residual sink is for",
    "outlier-safe-pretraining": "Muon, one gain and projected embeddings beside Adam: outliers and 4 bits",
    "outrank": "cardinality-aware ranking beside the published package",
    "quantmcu": "inference in patches of mixed precision beside int8, layer by layer and in patches",
    "quantizable-transformers": "clipped softmax and gated heads beside softmax attention",
    "systematic-outliers": "variants of attention and the outliers they grow, and the check-up of a network",
    "outlier-suppression-plus": "static activations by shift and scale, beside SmoothQuant and min-max",
    "outliertune": "integer activations without a scale, beside per-token and static rounding",
    "splitquant": "three value ranges of a weight, at equal width and equal storage",
    "mambaquant": "rotations that make variances equal, on a Mamba model, beside QuaRot and SmoothQuant",
    "llm-int8": "outlier columns beside an 8-bit product",
    "olive": "outlier-victim pairs beside clipped int4",
    "adadim": "groups along outputs or inputs, chosen layer by layer, beside both, GPTQ and AWQ",
    "quantease": "coordinate descent on a layer's error beside RTN, AWQ, GPTQ and SpQR",
    "lrq-dit": "a diffusion transformer at 3 and 4 bits: twin logarithmic levels, adaptive rotations",
    "svdquant": "a low-rank branch beside smoothing at 4 bits",
    "quant": "every recipe at every width: perplexity, bytes, seconds, and the orderings of the papers",
    "pretrain-series": "the trained encoder of Themis beside the bank of random convolutions",
    "quant-race": "quantization beside llm-compressor, torchao and optimum-quanto",
    "quant-speed": "milliseconds of quantized linear layers beside bfloat16, float32, bitsandbytes and torchao",
    "robust-high-dimensional": "screening, nonconvex regression and mixed models",
    "optimizer-step": "seconds of a step of Muon and ROOT beside AdamW and their matrix products",
    "root-optimizer": "ROOT beside Muon and AdamW: exactness, cost, heavy-tailed gradients",
    "series": "every series detector beside those of PyOD, aeon and stumpy",
    "series-speed": "seconds and memory of series: matrix profile, default, streams, a month of seconds",
    "tabular": "accuracy of the default and of every detector beside PyOD",
    "tabular-apart": "accuracy on tables that had no part in the choice of the default",
    "tabular-stream": "tables larger than memory, beside the bare time of reading them",
    "tabular-speed-real": "the same on real tables",
    "tabular-speed": "seconds and memory beside PyOD, scikit-learn and faiss",
    "themis": "self-similarity of frozen embeddings on labelled series",
    "unified-normalization": "a norm that fuses away, beside LayerNorm, RMSNorm and batch norm",
    "train": "the laboratory: what grows outliers in training, and what does not",
    "tint-noise": "noise in chains of thought: static against dynamic, and the filters for it",
}
SYNTHETIC = frozenset(  # studies that need no data folder
    {
        "optimizer-step",
        "quant-speed",
        "robust-high-dimensional",
        "series-speed",
        "tabular-speed",
        "tabular-stream",
        "tint-noise",
    }
)
_PACKAGES = (
    "numpy",
    "scipy",
    "scikit-learn",
    "numba",
    "polars",
    "torch",
    "pyod",
    "faiss-cpu",
    "stumpy",
    "outrank",
    "statsmodels",
    "fastHDMI",
    "KDEpy",
)


def default_data() -> Path:
    """Return ``SKERRY_DATA`` or ``../shared/data``."""
    return Path(os.environ.get("SKERRY_DATA", "../shared/data"))


def run_study(
    name: str,
    *,
    quick: bool = False,
    data: Path | None = None,
    seed: int = 0,
    out: Path | None = None,
    progress: Callable[[str], None] = lambda text: None,
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Run the study ``name`` and write its result to ``out`` (a folder), if given.

    ``options`` are further arguments of the study's own ``run``. SVG pictures that a study returns under ``pictures``
    are written beside its tables, as ``NAME-PICTURE.svg``; a study that has several results returns the name of this
    one's files under ``file``.

    Returns
    -------
    dict
        ``title``, ``claim``, ``table`` (rows of figures), ``tables``, ``notes``, ``machine``, ``versions`` ...

    Raises
    ------
    ParameterError
        For an unknown study, or an option that it does not take.
    DataError
        If the data folder is absent.
    """
    if name not in STUDIES:
        raise ParameterError(f"unknown study {name!r}: {nearest(name, STUDIES)}")
    data = data or default_data()
    if not data.is_dir() and name not in SYNTHETIC:
        raise DataError(f"no data folder at {data}: set SKERRY_DATA or --data to the folder of data sets")
    module = importlib.import_module(f"skerry.bench.{name.replace('-', '_')}")
    options = dict(options or {})
    taken = set(inspect.signature(module.run).parameters) - {"quick", "data", "seed", "progress"}
    for option in options:
        if option not in taken:
            known = ", ".join(f"--{t}" for t in sorted(taken))
            raise ParameterError(f"the study {name!r} takes no --{option}" + (f"; it takes {known}" if known else ""))
    started = time.perf_counter()
    result = module.run(quick=quick, data=data, seed=seed, progress=progress, **options)
    pictures, stem = result.pop("pictures", {}), result.pop("file", name)
    result |= {
        "name": name,
        "quick": quick,
        "seed": seed,
        "seconds": round(time.perf_counter() - started, 1),
        "date": dt.date.today().isoformat(),
        "command": f"skerry bench run {name}"
        + (" --quick" if quick else "")
        + "".join(f" --{k} {shlex.quote(str(v))}" for k, v in options.items()),
        "machine": _machine(),
        "versions": _versions(),
    }
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        for suffix, text in (
            (".json", json.dumps(plain(result), indent=1) + "\n"),
            (".md", to_markdown(result)),
            *((f"-{picture}.svg", text) for picture, text in pictures.items()),
        ):
            with atomic_write(out / f"{stem}{suffix}") as file:
                file.write(text.encode())
    return result


def compare(old: Path, new: Path) -> list[dict[str, Any]]:
    """Return the figures that differ between two result files: path, old and new value."""
    try:
        a, b = (json.loads(p.read_text()) for p in (old, new))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot compare {old} with {new}: {error}") from None
    rows = []
    for i, (x, y) in enumerate(zip(a.get("table", []), b.get("table", []), strict=False)):
        for key in x.keys() & y.keys():
            if isinstance(x[key], (int, float)) and x[key] != y[key]:
                rows.append({"row": i, "name": next(iter(x.values())), "figure": key, "old": x[key], "new": y[key]})
    return rows


def to_markdown(result: dict[str, Any]) -> str:
    """Return the result as a Markdown page."""
    lines = [f"# {result['title']}", "", result["claim"], "", *_table(result["table"])]
    for name, rows in result.get("tables", {}).items():
        lines += ["", f"## {name}", "", *_table(rows)]
    if result.get("notes"):
        lines += ["", "## Notes", "", *(f"- {n}" for n in result["notes"])]
    machine, versions = result["machine"], result["versions"]
    lines += [
        "",
        f"`{result['command']}`, {result['date']}, {result['seconds']} s, seed {result['seed']}; "
        f"{machine['processor']}, {machine['cores']} cores, Python {machine['python']}; "
        + ", ".join(f"{k} {v}" for k, v in versions.items()),
        "",
    ]
    return "\n".join(lines)


def _table(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return ["(no rows)"]
    keys = list(dict.fromkeys(k for r in rows for k in r))

    def cell(v: Any) -> str:
        if isinstance(v, float):
            return "-" if math.isnan(v) else f"{v:.4g}"
        return "" if v is None else str(v)

    return [
        "| " + " | ".join(keys) + " |",
        "|" + "---|" * len(keys),
        *("| " + " | ".join(cell(r.get(k)) for k in keys) + " |" for r in rows),
    ]


def plain(value: Any) -> Any:
    """Return ``value`` as JSON-ready data; NaN and infinities become null."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


def _machine() -> dict[str, Any]:
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def _versions() -> dict[str, str]:
    from skerry import __version__

    found = {"skerry": __version__}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
