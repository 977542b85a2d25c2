"""Quantization beside llm-compressor, torchao and optimum-quanto: time, error, size, and whether others load the file.

Every library quantizes the same float folder with the same calibration rows, each in its own interpreter (named by
``SKERRY_LLMCOMPRESSOR``, ``SKERRY_QUANT_PEERS`` for torchao, ``SKERRY_QUANTO``), one thread, through one worker
(:mod:`skerry.bench.quant_race_worker`) that also judges the result in place. Folders in the layout of
compressed-tensors are then loaded by transformers itself. Runs are cached, so that an interrupted study goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from skerry.bench.quant_cells import Cells
from skerry.bench.quant_models import CharModel, characters, trained_char_model, windows
from skerry.bench.quant_rows import QUICK
from skerry.quant.activation import TokenDynamic
from skerry.quant.formats.float8 import Float8, Float8Token
from skerry.quant.numerics import AffineGrid
from skerry.quant.recipe import Recipe
from skerry.quant.solvers import GPTQ
from skerry.quant.transforms.smooth import Smooth

WORKER = Path(__file__).parent / "quant_race_worker.py"
TIMEOUT = 1800
PYTHONS = {  # library: (environment variable, distribution)
    "llm-compressor": ("SKERRY_LLMCOMPRESSOR", "llmcompressor"),
    "torchao": ("SKERRY_QUANT_PEERS", "torchao"),
    "optimum-quanto": ("SKERRY_QUANTO", "optimum-quanto"),
}
REPORTED = "skerry with report"  # the same where calibration is given and nothing but the report looks at it
SCHEMES = {  # scheme: libraries that have it
    "W4A16 RTN": ("skerry", REPORTED, "llm-compressor", "torchao"),
    "W4A16 GPTQ": ("skerry", "llm-compressor"),
    "W8A8 SmoothQuant+GPTQ": ("skerry", "llm-compressor"),
    "W8A8": ("skerry", REPORTED, "torchao"),
    "W8A16 RTN": ("skerry", REPORTED, "optimum-quanto"),
    "FP8": ("skerry", REPORTED, "llm-compressor", "torchao", "optimum-quanto"),
}


def our_recipe(scheme: str, group: int) -> Recipe:
    """Return our recipe of a scheme; 4-bit grids follow the rule of compressed-tensors, as those of the peers do.

    Examples
    --------
    >>> our_recipe("W4A16 GPTQ", 32).weight.group_size
    32
    """
    four = AffineGrid(4, group_size=group, full_range=True, scale_dtype="bfloat16")
    if scheme == "W4A16 RTN":
        return Recipe("rtn", four)
    if scheme == "W4A16 GPTQ":
        return Recipe("gptq", four, GPTQ())
    if scheme == "W8A8 SmoothQuant+GPTQ":
        return Recipe("smoothquant+gptq", AffineGrid(8), GPTQ(), TokenDynamic(8), (Smooth(alpha=0.5),))
    if scheme == "W8A8":
        return Recipe("rtn", AffineGrid(8), activation=TokenDynamic(8))
    if scheme == "W8A16 RTN":
        return Recipe("rtn", AffineGrid(8))
    return Recipe("fp8", Float8(), activation=Float8Token())


def run(quick: bool, data: Path, seed: int, progress: Callable[[str], None], width: int = 1024) -> dict[str, Any]:
    width = 64 if quick else width
    cells = Cells("quant-race-quick" if quick else "quant-race")
    libraries, notes = _libraries()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as work:
        for make in (_lab, _wide):
            label, family, group, stamp = make(Path(work), data, quick, width, progress)
            rows += _race(Path(work), label, family, group, stamp, libraries, cells, progress)
    return {
        "title": "Quantization beside llm-compressor, torchao and optimum-quanto",
        "claim": _claim(rows),
        "table": rows,
        "notes": [
            *notes,
            "Seconds from the model in memory to the quantized model in memory, one thread; 'processor s' is what the "
            "process used, 'wall s' counts other work on the machine too. Saving and importing are not in them.",
            "Nobody looks at inputs to round to nearest, nor for W8A8 and FP8 with ranges found at run time; where "
            f"calibration is given, ours does, to tell what each layer lost: '{REPORTED}'.",
            "Layer error: squared error of what the layers that write to the residual stream give, over its square, in "
            "the quantized model's own flow on held-out rows, input rounding included; geometric mean over them. Loss "
            "in nats, increase over the float model.",
            "Saved MB is the folder: embeddings and head in 32 bits, which no library here touches. torchao's is a "
            "pickle of its tensors, optimum-quanto's a safetensors file without its map; neither is a folder that "
            "others load.",
            "optimum-quanto at 4 bits builds a C++ extension at first use, so it runs at 8 bits; its 8-bit weights "
            "leave inputs in floating point. torchao and optimum-quanto keep inputs in floating point at FP8, "
            "skerry and llm-compressor round them per token.",
        ],
    }


def _libraries() -> tuple[dict[str, tuple[str, str]], list[str]]:
    """Return (python, version) of every library that is there, and a note for each that is not."""
    found = dict.fromkeys(("skerry", REPORTED), (sys.executable, _our_version()))
    notes = []
    for name, (variable, package) in PYTHONS.items():
        python = os.environ.get(variable)
        if not python:
            notes.append(f"{name} did not run: set {variable} to a Python that has {package}.")
            continue
        code = f"import importlib.metadata as m; print(m.version('{package}'))"
        try:
            done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False, timeout=120)
            version = done.stdout.strip()
        except (OSError, subprocess.TimeoutExpired):
            version = ""
        if version:
            found[name] = (python, version)
        else:
            notes.append(f"{name} did not run: {variable} names no Python that has {package}.")
    told = ", ".join(f"{name} {version}" for name, (_, version) in found.items() if name in PYTHONS)
    return found, [f"Peers: {told or 'none'}.", *notes]


def _our_version() -> str:
    root, whole = WORKER.parents[1] / "quant", hashlib.sha256()
    parts = ("solvers/gptq.py", "solvers/layer.py", "numerics.py", "transforms/smooth.py", "formats/float8.py")
    for name in ("engine.py", "block.py", "statistics.py", *parts):
        whole.update((root / name).read_bytes())
    return whole.hexdigest()[:12]


def _lab(work: Path, data: Path, quick: bool, width: int, progress: Callable[[str], None]) -> tuple[str, str, int, str]:
    from safetensors.torch import save_file

    settings = QUICK if quick else CharModel()
    model = trained_char_model(data, settings, progress)
    train, held, _ = characters(data)
    rows = {
        "calibration": windows(train, 64, settings.context, random_state=11),
        "held": windows(held, 16 if quick else 96, settings.context + 1, random_state=7),
    }
    folder = work / "lab"
    model.save_pretrained(folder)
    save_file({k: v.contiguous() for k, v in rows.items()}, folder / "rows.st")
    return f"trained, width {settings.width} x {settings.blocks}", "opt", 32, f"{settings}"


def _wide(
    work: Path, data: Path, quick: bool, width: int, progress: Callable[[str], None]
) -> tuple[str, str, int, str]:
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    blocks = 2 if quick else 4
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=width,
        intermediate_size=2 * width + (3 * width // 4) // 128 * 128,
        num_hidden_layers=blocks,
        num_attention_heads=max(4, width // 64),
        num_key_value_heads=max(2, width // 256),
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    folder = work / "wide"
    LlamaForCausalLM(config).eval().save_pretrained(folder)
    ids = torch.randint(0, 512, (24, 129), generator=torch.Generator().manual_seed(0))
    save_file({"calibration": ids[:16, :-1].contiguous(), "held": ids[16:].contiguous()}, folder / "rows.st")
    return f"Llama, random, width {width} x {blocks}", "llama", 32 if quick else 128, f"{width} {blocks}"


def _race(
    work: Path,
    label: str,
    family: str,
    group: int,
    stamp: str,
    libraries: dict[str, tuple[str, str]],
    cells: Cells,
    progress: Callable[[str], None],
) -> list[dict[str, Any]]:
    folder = work / ("lab" if family == "opt" else "wide")
    rows = []
    order = {"model": str(folder), "rows": str(folder / "rows.st"), "group": group, "family": family, "threads": 1}
    base = cells.get(f"{label}|float", stamp, lambda: _ask(sys.executable, order | {"library": "transformers"}))
    for scheme, who in SCHEMES.items():
        for library in (w for w in who if w in libraries):
            progress(f"{label}: {library} {scheme}")
            python, version = libraries[library]
            told = cells.get(
                f"{label}|{library}|{scheme}",
                f"{stamp} {version} {_digest(WORKER)}",
                lambda p=python, s=scheme, n=library: _one(p, order | {"library": n, "scheme": s}, work),
            )
            row: dict[str, Any] = {"model": label, "scheme": scheme, "library": library}
            if "problem" in told:
                rows.append(row | {"problem": told["problem"]})
                continue
            row |= {
                "processor s": told["cpu"],
                "wall s": told["wall"],
                "layer error": told["error"],
                "loss increase": told["loss"] - base["loss"],
                "saved MB": told["bytes"] / 1e6,
            }
            if "client" in told:
                client = told["client"]
                row["transformers loads it"] = (
                    f"no: {client['problem']}" if "problem" in client else f"yes, {client['loss'] - base['loss']:+.4f}"
                )
            rows.append(row)
    return rows


def _one(python: str, order: dict[str, Any], work: Path) -> dict[str, Any]:
    """Return one library's run; a folder in the layout of compressed-tensors is then loaded by transformers."""
    with tempfile.TemporaryDirectory(dir=work) as out:
        target = Path(out) / "model"
        told = _ask(python, order | {"out": str(target)})
        config = target / "config.json"
        if "problem" not in told and config.is_file() and "compressed-tensors" in config.read_text():
            told["client"] = _ask(sys.executable, order | {"library": "transformers", "model": str(target)})
        return told


def _ask(python: str, order: dict[str, Any]) -> dict[str, Any]:
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    try:
        done = subprocess.run(
            [python, str(WORKER), json.dumps(order)],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
            env=os.environ | threads,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"problem": f"could not be run: {error}"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    if not lines:
        return {"problem": f"ended with {done.returncode}: {' '.join(done.stderr.strip().splitlines()[-1:])[:200]}"}
    return json.loads(lines[-1][6:])


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:8]


def _claim(rows: list[dict[str, Any]]) -> str:
    """Say, scheme by scheme, how our seconds and error stand to the peers'."""
    ours = {(r["model"], r["scheme"]): r for r in rows if r["library"] == "skerry" and "problem" not in r}
    told = []
    for row in rows:
        mine = ours.get((row["model"], row["scheme"]))
        if row["library"] not in PYTHONS or "problem" in row or mine is None:
            continue
        told.append(
            f"{row['scheme']} on {row['model'].split(',')[0]}, {row['library']}: ours takes "
            f"{mine['processor s'] / max(row['processor s'], 1e-9):.2f} times its seconds and has "
            f"{mine['layer error'] / max(row['layer error'], 1e-30):.2f} times its layer error"
        )
    return ("; ".join(told) + ".") if told else "No peer ran."
