"""Milliseconds of a linear layer on every path of the quantization runtime, beside float32, bfloat16 and peers.

Square layers as large language models have them, one token (decoding), 32 and 512 tokens (prefill), random weights.
Every call uses another copy of the weight, so that caches are cold as they are in a model. The least and the median of
the repetitions are given: wall time on all threads, or, where the machine is busy with other work when the study
starts, CPU time of one thread, which others disturb least. Peers (bitsandbytes, torchao) are measured by the Python
named in ``SKERRY_QUANT_PEERS``, if it is set and has them, in a process started right after ours, together with its
own bfloat16.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["run"]

SIZES, TOKENS = (2048, 4096), (1, 32, 512)
QUICK_SIZES, QUICK_TOKENS = (512,), (1, 16)
COLD = 128 * 2**20  # bytes of weight copies cycled through
COPIES = 24
SECONDS, QUICK_SECONDS = 1.0, 0.05
PEERS_TIMEOUT = 900
PEERS = r"""
import json, statistics, sys, time, warnings
warnings.simplefilter("ignore")
import torch
sizes, tokens, seconds, threads, busy = json.loads(sys.argv[1])
torch.set_num_threads(threads)
clock = time.process_time if busy else time.perf_counter
def measure(run, copies):
    run(0)
    found, stop, i = [], time.perf_counter() + seconds, 0
    while len(found) < 5 or time.perf_counter() < stop:
        i = (i + 1) % copies
        started = clock()
        run(i)
        found.append(1e3 * (clock() - started))
    return [min(found), statistics.median(found)]
def bnb8(w):
    import bitsandbytes as bnb
    m = bnb.nn.Linear8bitLt(w.shape[1], w.shape[0], bias=False, has_fp16_weights=False, threshold=6.0)
    m.weight = bnb.nn.Int8Params(w.clone(), requires_grad=False, has_fp16_weights=False)
    return m.to("cpu").eval()
def bnb4(w):
    import bitsandbytes as bnb
    m = bnb.nn.Linear4bit(w.shape[1], w.shape[0], bias=False, quant_type="nf4", compute_dtype=torch.bfloat16)
    m.weight = bnb.nn.Params4bit(w.clone(), requires_grad=False, quant_type="nf4")
    return m.to("cpu").eval()
def ao(name):
    def make(w):
        import torchao.quantization as q
        m = torch.nn.Sequential(torch.nn.Linear(w.shape[1], w.shape[0], bias=False, dtype=torch.bfloat16))
        m[0].weight.data.copy_(w)
        q.quantize_(m, getattr(q, name)())
        return m.eval()
    return make
def bf16(w):
    m = torch.nn.Linear(w.shape[1], w.shape[0], bias=False, dtype=torch.bfloat16)
    m.weight.data.copy_(w)
    return m.eval()
paths = {"bfloat16 in the peers' process": bf16, "bitsandbytes LLM.int8 (threshold 6)": bnb8, "bitsandbytes NF4": bnb4,
         "torchao int8 dynamic, eager": ao("Int8DynamicActivationInt8WeightConfig"),
         "torchao int8 weight-only, eager": ao("Int8WeightOnlyConfig")}
found = {}
for size in sizes:
    w = torch.randn(size, size).bfloat16()
    for name, make in paths.items():
        try:
            with torch.no_grad():
                layers = [make(w) for _ in range(6)]
                for t in tokens:
                    x = torch.randn(t, size).bfloat16()
                    x[:, 5] *= 20.0
                    found[f"{size}|{name}|{t}"] = measure(lambda i: layers[i](x), len(layers))
        except Exception as error:
            found[f"{size}|{name}|error"] = f"{type(error).__name__}: {str(error)[:120]}"
versions = {}
for package in ("torch", "bitsandbytes", "torchao"):
    try:
        versions[package] = __import__("importlib.metadata").metadata.version(package)
    except Exception:
        pass
print("RESULT" + json.dumps([found, versions]))
"""


def run(quick: bool, data: Path, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    import torch

    sizes, tokens = (QUICK_SIZES, QUICK_TOKENS) if quick else (SIZES, TOKENS)
    seconds = QUICK_SECONDS if quick else SECONDS
    busy, threads = _busy(), torch.get_num_threads()
    if busy:
        torch.set_num_threads(1)
    try:
        return _study(sizes, tokens, seconds, seed, busy, progress)
    finally:
        torch.set_num_threads(threads)


def _study(
    sizes: tuple[int, ...],
    tokens: tuple[int, ...],
    seconds: float,
    seed: int,
    busy: bool,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    import torch

    clock = time.process_time if busy else time.perf_counter
    figures: dict[tuple[int, str], dict[str, Any]] = {}
    with torch.no_grad():
        for size in sizes:
            for name, kernel, copies, bits in _paths(size, seed):
                row: dict[str, Any] = {
                    "inputs = outputs": size,
                    "path": name,
                    "kernel": kernel,
                    "bits per weight": bits,
                }
                for t in tokens:
                    x = torch.randn(t, size, generator=torch.Generator().manual_seed(seed))
                    x[:, 5] *= 20.0
                    x = x if name.startswith("float32") else x.bfloat16()
                    least, median = _measure(copies, x, seconds, clock)
                    row[f"{t} tokens ms"], row[f"{t} tokens median"] = least, median
                figures[size, name] = row
                progress(f"{size}, {name}: " + ", ".join(f"{row[f'{t} tokens ms']:.3f} ms" for t in tokens))
    notes = [
        ("CPU time, since the machine was busy with other work" if busy else "Wall time")
        + f", {torch.get_num_threads()} threads; least and median of repetitions over {seconds} s; weights cold "
        f"(copies of {COLD >> 20} MiB or {COPIES} layers in turn).",
        "Inputs in bfloat16 except for float32; one channel is 20 times larger, so that LLM.int8 finds an outlier.",
    ]
    peers, found = _peers(sizes, tokens, seconds, busy, progress)
    notes += found
    rows = list(figures.values()) + peers
    for row in rows:
        base = figures[row["inputs = outputs"], "bfloat16"]
        for t in tokens:
            if isinstance(row.get(f"{t} tokens ms"), float):
                row[f"{t}: times bfloat16"] = base[f"{t} tokens ms"] / row[f"{t} tokens ms"]
    return {
        "title": "Speed of quantized linear layers",
        "claim": _claim(figures, sizes[-1], tokens),
        "table": rows,
        "notes": notes,
    }


def _paths(size: int, seed: int):
    """Yield (name, kernel chosen on this processor, calls on copies of the layer, bits per weight held)."""
    import torch

    from skerry.quant.activation import TokenDynamic
    from skerry.quant.formats.mixed_decomposition import MixedInt8, OutlierSplit
    from skerry.quant.numerics import AffineGrid
    from skerry.quant.parts import LowRank, Solved
    from skerry.quant.runtime.choose import choose

    g = torch.Generator().manual_seed(seed)
    W = torch.randn(size, size, generator=g)
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        weights = [W.to(dtype) for _ in range(_copies(size * size * dtype.itemsize))]
        calls = [lambda x, w=w: torch.nn.functional.linear(x, w) for w in weights]
        yield name, "torch", calls, 8.0 * dtype.itemsize
    branch = LowRank(torch.randn(size, 32, generator=g).bfloat16(), torch.randn(32, size, generator=g).bfloat16())
    four = AffineGrid(4, group_size=128, scale_dtype="bfloat16").quantize(W)
    cases: list[tuple[str, Solved, Any]] = [
        ("W8A8, a scale a token", Solved(AffineGrid(8).quantize(W)), TokenDynamic(8)),
        ("W8A8 and a branch of rank 32", Solved(AffineGrid(8).quantize(W), low_rank=branch), TokenDynamic(8)),
        ("LLM.int8", Solved(MixedInt8().quantize(W)), OutlierSplit()),
        ("LLM.int8, no outlier", Solved(MixedInt8().quantize(W)), OutlierSplit(1e9)),
        ("W8A16", Solved(AffineGrid(8).quantize(W)), None),
        ("W4A16, groups of 128", Solved(four), None),
        ("W4A16 and a branch of rank 32", Solved(four, low_rank=branch), None),
        ("W4A8, a scale a row", Solved(AffineGrid(4).quantize(W)), TokenDynamic(8)),
    ]
    for label, solved, activation in cases:
        kind = choose(solved, activation)
        first = kind.prepare(solved, activation)
        copies = [first] + [kind.prepare(solved, activation) for _ in range(_copies(first.nbytes) - 1)]
        extra = 0 if solved.low_rank is None else solved.low_rank.nbytes
        yield label, kind.name, copies, 8.0 * (first.nbytes + extra) / (size * size)


def _copies(nbytes: int) -> int:
    return max(2, min(COPIES, -(-COLD // nbytes)))


def _measure(
    copies: list[Callable[[Any], Any]], x: Any, seconds: float, clock: Callable[[], float]
) -> tuple[float, float]:
    copies[0](x)
    found, stop, i = [], time.perf_counter() + seconds, 0
    while len(found) < 5 or time.perf_counter() < stop:
        i = (i + 1) % len(copies)
        started = clock()
        copies[i](x)
        found.append(1e3 * (clock() - started))
    return min(found), statistics.median(found)


def _busy() -> bool:
    """Return whether others keep the machine busy."""
    return hasattr(os, "getloadavg") and os.getloadavg()[0] > 1.5 * (os.cpu_count() or 1)


def _peers(
    sizes: tuple[int, ...], tokens: tuple[int, ...], seconds: float, busy: bool, progress: Callable[[str], None]
) -> tuple[list[dict[str, Any]], list[str]]:
    import torch

    python = os.environ.get("SKERRY_QUANT_PEERS")
    if not python:
        return [], ["No peers: set SKERRY_QUANT_PEERS to a Python that has bitsandbytes and torchao."]
    progress("peers")
    settings = json.dumps([sizes, tokens, seconds, torch.get_num_threads(), busy])
    try:
        done = subprocess.run(
            [python, "-c", PEERS, settings], capture_output=True, text=True, timeout=PEERS_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], [f"Peers could not be run: {error}"]
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    if not lines:
        return [], [f"Peers failed: {done.stderr.strip().splitlines()[-1:] or done.returncode}"]
    found, versions = json.loads(lines[-1][6:])
    rows: dict[tuple[int, str], dict[str, Any]] = {}
    notes = ["Peers: " + ", ".join(f"{k} {v}" for k, v in versions.items()) + ", six copies of the weight in turn."]
    for key, value in found.items():
        size, name, what = key.split("|")
        if what == "error":
            notes.append(f"{name} at {size}: {value}")
            continue
        row = rows.setdefault((int(size), name), {"inputs = outputs": int(size), "path": name})
        row[f"{what} tokens ms"], row[f"{what} tokens median"] = value
    return list(rows.values()), notes


def _claim(figures: dict[tuple[int, str], dict[str, Any]], size: int, tokens: tuple[int, ...]) -> str:
    parts = []
    for name in ("W8A8, a scale a token", "LLM.int8", "W4A16, groups of 128"):
        if (size, name) not in figures:
            continue
        ratios = []
        for base in ("bfloat16", "float32"):
            times = [figures[size, base][f"{t} tokens ms"] / figures[size, name][f"{t} tokens ms"] for t in tokens]
            ratios.append(f"{' / '.join(f'{r:.1f}' for r in times)} times {base}")
        parts.append(f"{name}: {', '.join(ratios)}")
    what = " / ".join(map(str, tokens))
    return f"Speed at {size} inputs and outputs and {what} tokens. " + "; ".join(parts) + "."
