"""MambaQuant on a small Mamba language model and a small Vision Mamba, natural and planted (arXiv 2501.13484).

Every method has the same quantizers: weights one asymmetric scale a row, inputs one static asymmetric scale a tensor,
states and C of the scan 8 bits a token. What differs is what stands before them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from skerry.bench.mamba_models import make_mamba_lab
from skerry.bench.quant_rows import Lab, by_name, increase, rows_of
from skerry.bench.vim_models import VimLab, make_vim_lab, vim_rows
from skerry.quant.recipe import Recipe
from skerry.quant.recipes import make_recipe

BITS = ("w8a8", "w4a8", "w4a4", "w4a16")
SMOOTH = ("gate", "bc", "dt", "conv")
ROTATE = ("residual", "dt", "out", "state")
VISION = {"smooth": ("gate", "channel"), "centre": True}  # the paper's recipe for images


def mine(bits: str, **settings: Any) -> Recipe:
    """Return MambaQuant's recipe."""
    return make_recipe("mambaquant", bits, **settings)


def alike(name: str, bits: str, **settings: Any) -> Recipe:
    """Return another recipe with MambaQuant's quantizers."""
    like = mine(bits)
    recipe = make_recipe(name, bits, **settings)
    return replace(recipe, weight=like.weight, activation=like.activation, operands=like.operands)


def run(quick: bool, data: Path, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    torch.set_flush_denormal(True)  # decayed states underflow, and denormal numbers take ten times as long
    lab = make_mamba_lab(data, quick=quick, progress=progress)
    cases: list[tuple[str, Callable[[str], Recipe]]] = [
        ("RTN", lambda bits: alike("rtn", bits)),
        ("GPTQ", lambda bits: alike("gptq", bits)),
        ("SmoothQuant 0.5", lambda bits: alike("smoothquant", bits)),
        ("QuaRot", lambda bits: alike("quarot", bits, random_state=10)),
        ("MambaQuant", mine),
    ]
    bits = BITS[:1] if quick else BITS
    rows = rows_of(lab, cases, bits, progress, check=False)
    steps = [
        ("Hadamard R1 R5", {"klt": False, "smooth": (), "rotate": ("residual", "dt")}),
        ("+ KLT, centred", {"smooth": (), "rotate": ("residual", "dt"), "centre": True}),
        ("+ smoothing S2 S4 S5 S7", {"rotate": ("residual", "dt"), "centre": True}),
        ("+ online Hadamard R2 R4", {"centre": True}),
    ]
    parts = [
        ("Hadamard", {"klt": False, "smooth": ()}),
        ("KLT and Hadamard", {"smooth": ()}),
        ("smoothing and Hadamard", {"klt": False}),
        ("smoothing alone", {"rotate": ()}),
        ("all, ranges at 0.999999", {"observer": "percentile"}),
    ]
    widths = bits[:2]
    at = by_name(rows)
    full, bare, quarot, smooth = (at[n] for n in ("MambaQuant", "RTN", "QuaRot", "SmoothQuant 0.5"))
    one = {"models": ("planted",), "check": False}
    stairs = [_renamed(bare, "nothing", widths), *rows_of(lab, _cases(steps), widths, progress, **one)]
    apart = [
        *rows_of(lab, _cases(parts), widths, progress, **one),
        _renamed(full, "smoothing, KLT and Hadamard", widths),
    ]
    noise = _noise(lab, [*cases, ("Hadamard alone", lambda b: mine(b, klt=False, smooth=()))], progress)
    vision = make_vim_lab(data, quick=quick, progress=progress)
    seen = vim_rows(vision, [*cases[:-1], ("MambaQuant", lambda bits: mine(bits, **VISION))], widths, progress)
    torch.set_flush_denormal(False)

    def line(key: str) -> str:
        return ", ".join(
            f"{row[key]:+.4f} {name}"
            for name, row in (("MambaQuant", full), ("SmoothQuant", smooth), ("QuaRot", quarot), ("RTN", bare))
        )

    claim = f"Static W8A8 with planted outliers, loss in nats: {line('planted w8a8')}; natural: {line('natural w8a8')}"
    if not quick:
        claim += f". W4A8, planted: {line('planted w4a8')}"
    return {
        "title": "MambaQuant: rotations that make variances equal, on a Mamba language model",
        "claim": claim + ".",
        "table": rows,
        "tables": {
            "The staircase of the ablation (planted, loss increase)": stairs,
            "KLT and smoothing, with and without (planted, loss increase)": apart,
            "Output noise of the kinds of layers, planted, W8A8 (decibels, mean over blocks)": noise,
            "Vision Mamba on Fashion-MNIST (loss increase, and points of accuracy lost)": seen,
        },
        "notes": [*_notes(lab, full), _shares(by_name(apart), bare), _sight(vision)],
    }


def _cases(found: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, Callable[[str], Recipe]]]:
    return [(label, lambda bits, given=given: mine(bits, **given)) for label, given in found]


def _renamed(row: dict[str, Any], name: str, widths: tuple[str, ...]) -> dict[str, Any]:
    """Return a row of the main table under another name, with the columns of a smaller one."""
    return {"method": name} | {k: v for k, v in row.items() if k in [f"planted {w}" for w in widths]}


def _noise(lab: Lab, cases: list[Any], progress: Callable[[str], None]) -> list[dict[str, Any]]:
    """Return the mean signal to noise of every kind of layer on calibration tokens, input rounding included."""
    rows = []
    for label, make in cases:
        progress(f"{label}, layer by layer")
        _, report = increase(lab, "planted", make("w8a8"), check=False)
        kinds: dict[str, list[float]] = {}
        for layer in report.layers:
            kinds.setdefault(layer.name.rsplit(".", 1)[-1], []).append(layer.signal_to_noise)
        rows.append({"method": label} | {kind: sum(values) / len(values) for kind, values in kinds.items()})
    return rows


def _shares(apart: dict[str, dict[str, Any]], bare: dict[str, Any]) -> str:
    """Say which of the two ideas the figures speak for."""
    names = ("Hadamard", "KLT and Hadamard", "smoothing alone", "smoothing, KLT and Hadamard")
    figures = ", ".join(f"{apart[name]['planted w8a8']:+.4f} {name}" for name in names)
    return (
        f"Where the gain comes from (planted, W8A8, {bare['planted w8a8']:+.4f} without anything): {figures}. The "
        "paper's staircase gains from the KLT as well; on a model of 64 channels that step is not told from noise."
    )


def _sight(lab: VimLab) -> str:
    """Say what the images' model is."""
    loss, share = lab.float["natural"]
    model = lab.models["natural"].config
    return (
        f"Vision Mamba: {model.num_hidden_layers} blocks of width {model.hidden_size}, {model.state_size} states, both "
        f"directions; {100 * share:.1f} % of {len(lab.labels)} test images right, loss {loss:.3f} nats; one image "
        f"is {100 / len(lab.labels):.2f} points, below 0 more are right than before. "
        "MambaQuant as the paper has it for images: the gate and the states' channels smoothed, the time step's path "
        "centred."
    )


def _notes(lab: Lab, full: dict[str, Any]) -> list[str]:
    same = abs(lab.loss["planted"] - lab.loss["natural"])
    share = full["planted w8a8"] / lab.loss["planted"]
    return [
        f"Float loss {lab.loss['natural']:.4f} nats on {len(lab.held)} held-out windows of "
        f"{lab.held.shape[1] - 1} characters of tinyshakespeare; the planted twin differs by {same:.1g}. One model and "
        "one seed: differences in the third digit say nothing.",
        "Entries are loss increases in nats. All methods share the quantizers (weights by row, inputs static by "
        "tensor, both asymmetric; the convolution; states and C at 8 bits a token); the output layer over the alphabet "
        "stays in floating point for all.",
        "Planted, as function-preserving changes: 2 % of the gates 20 times as large, four channels between the two "
        "layers of the time step 30 times.",
        f"MambaQuant at W8A8 loses {100 * share:.2f} % of the planted model's float loss; the paper reports accuracy "
        "within one per cent on Vim on ImageNet and Mamba models of up to 2.8 billion weights, which are not run here.",
        "QuaRot is this library's: a rotated stream, and run-time Hadamard products before every layer that no norm "
        "feeds, also before those that make the time step, B and C. The staircase's first step rotates only what can "
        "be folded, as the paper's ablation does.",
    ]
